// Kernels with one deliberate fault each, which the emulator or a sanitizer must find; and the same without the fault,
// which they must not complain about.

#include "compat.h"
#include "launch.h"

namespace avis::gpu {

struct Out {
  float* x;
};

template <bool fixed>
AV_KERNEL(128, 1)
missing_barrier(AV_ARGUMENT(Out) out) {
  AV_SHARED(float, s, 128);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (fixed) __syncthreads();
  out.x[threadIdx.x] = s[127 - threadIdx.x];
}

template <bool fixed>
AV_KERNEL(64, 1)
missing_syncwarp(AV_ARGUMENT(Out) out) {
  AV_SHARED(float, s, 64);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (fixed) __syncwarp();
  out.x[threadIdx.x] = s[threadIdx.x ^ 1];
}

// A shuffle exchanges registers and orders no memory.
template <bool fixed>
AV_KERNEL(64, 1)
shuffle_as_barrier(AV_ARGUMENT(Out) out) {
  AV_SHARED(float, s, 64);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  const float other = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  if (fixed) __syncwarp();
  out.x[threadIdx.x] = s[threadIdx.x ^ 1] + other;
}

template <bool fixed>
AV_KERNEL(128, 1)
shared_overrun(AV_ARGUMENT(Out) out) {
  AV_SHARED(float, s, 128);
  s[threadIdx.x + (fixed ? 0 : 1)] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out.x[threadIdx.x] = s[threadIdx.x];
}

template <bool fixed>
AV_KERNEL(128, 1)
global_overrun(AV_ARGUMENT(Out) out) {
  if (!fixed || threadIdx.x < 64) out.x[64 + threadIdx.x] = 1.0f;  // x has 128 numbers
}

template <bool fixed>
AV_KERNEL(128, 1)
divergent_barrier(AV_ARGUMENT(Out) out) {
  if (fixed || threadIdx.x < 64) __syncthreads();
  out.x[threadIdx.x] = 1.0f;
}

template <bool fixed>
AV_KERNEL(32, 1)
absent_lane(AV_ARGUMENT(Out) out) {
  if (fixed || threadIdx.x < 16) out.x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, static_cast<float>(threadIdx.x), 16);
}

template <bool fixed>
AV_KERNEL(32, 1)
plain_add(AV_ARGUMENT(Out) out) {
  if (fixed)
    atomicAdd(out.x, 1.0f);
  else
    out.x[0] += 1.0f;
}

// Reads what no thread has written; the emulator fills shared memory with NaN.
template <bool fixed>
AV_KERNEL(32, 1)
unwritten(AV_ARGUMENT(Out) out) {
  AV_SHARED(float, s, 64);
  s[threadIdx.x] = 0.0f;
  if (fixed) s[threadIdx.x + 32] = 0.0f;
  __syncthreads();
  out.x[threadIdx.x] = s[threadIdx.x] + s[63 - threadIdx.x];
}

}  // namespace avis::gpu

#define FAULT(name, threads)                                                        \
  extern "C" int name(float* x, int fixed) {                                        \
    using namespace avis::gpu;                                                      \
    return fixed ? launch<avis::gpu::name<true>>(1u, threads, 0, nullptr, Out{x})   \
                 : launch<avis::gpu::name<false>>(1u, threads, 0, nullptr, Out{x}); \
  }
FAULT(missing_barrier, 128)
FAULT(missing_syncwarp, 64)
FAULT(shuffle_as_barrier, 64)
FAULT(shared_overrun, 128)
FAULT(global_overrun, 128)
FAULT(divergent_barrier, 128)
FAULT(absent_lane, 32)
FAULT(plain_add, 32)
FAULT(unwritten, 32)

extern "C" void seed(unsigned value) { emu::settings().seed = value; }
extern "C" const char* error() { return emu::last_error(); }
