#define AVIS_ISA base
#include "kernels.inl"

const avis::Kernels avis::kernels_base = {"base", avis::base::msda_forward, avis::base::msda_backward_points,
                                          avis::base::msda_backward_value};
