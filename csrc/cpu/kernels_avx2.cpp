#define AVIS_ISA avx2
#include "kernels.inl"

namespace avis {
const Kernels kernels_avx2 = AVIS_KERNELS;
}
