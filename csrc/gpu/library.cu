// libavis_cuda.so: all kernels for all architectures.

#include "library.inl"
