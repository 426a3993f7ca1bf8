#define AVIS_ISA avx512
#include "kernels.inl"

const avis::Kernels avis::kernels_avx512 = {"avx512", avis::avx512::msda_forward, avis::avx512::msda_backward_points,
                                            avis::avx512::msda_backward_value};
