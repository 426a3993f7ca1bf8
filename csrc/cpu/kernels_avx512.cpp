#define AVIS_ISA avx512
#include "kernels.inl"

namespace avis {
const Kernels kernels_avx512 = AVIS_KERNELS;
}
