#define AVIS_ISA base
#include "kernels.inl"

namespace avis {
const Kernels kernels_base = AVIS_KERNELS;
}
