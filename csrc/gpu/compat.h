// One kernel source, three compilers: nvcc or NVRTC for the GPU, g++ for the emulator that runs it on the CPU.
#pragma once

#include "avis/cuda_api.h"

#if defined(__CUDACC__)
#define AV_DEVICE __device__ __forceinline__
#define AV_CONSTANT __host__ __device__ constexpr
// Threads of a block; and, where the compiler's own choice of registers ends in a stack, how many blocks a
// multiprocessor shall hold.
#define AV_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define AV_ARGUMENT(Type) const __grid_constant__ Type  // read in place, never copied to a stack
#define AV_SHARED(Type, name, count) __shared__ __align__(16) Type name[count]
#define AV_DYNAMIC_SHARED(Type, name)                      \
  extern __shared__ __align__(16) unsigned char memory_[]; \
  Type* name = reinterpret_cast<Type*>(memory_)
#define AV_UNROLL _Pragma("unroll")
#define AV_UNROLL_BY(n) AV_PRAGMA(unroll n)  // where all of it would need too many registers
#define AV_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC_RTC__)
#define AV_INFINITY __int_as_float(0x7f800000)  // there are no headers to take it from
#else
#define AV_INFINITY __builtin_huge_valf()  // first values of members are compiled for the host too
#endif
#define AV_BITS_AS_FLOAT(bits) __uint_as_float(bits)
#define AV_FLOAT_AS_BITS(x) __float_as_uint(x)
#else
#include "emu.h"
#define AV_CONSTANT constexpr
#define AV_ARGUMENT(Type) const Type
#define AV_INFINITY std::numeric_limits<float>::infinity()
#define AV_UNROLL
#define AV_UNROLL_BY(n)
#endif
