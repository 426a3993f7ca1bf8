#define AVIS_ISA avx2
#include "kernels.inl"

const avis::Kernels avis::kernels_avx2 = {"avx2", avis::avx2::msda_forward, avis::avx2::msda_backward_points,
                                          avis::avx2::msda_backward_value};
