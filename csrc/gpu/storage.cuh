// Numbers as they lie in memory, widened to float on the way in and rounded on the way out, 128 bits at a time.
#pragma once

#include "compat.h"

namespace avis::gpu {

struct BFloat16 {
  unsigned short bits;
};
struct Float16 {
  unsigned short bits;
};

AV_DEVICE float widen(float x) { return x; }
AV_DEVICE float widen(BFloat16 x) { return AV_BITS_AS_FLOAT(static_cast<unsigned>(x.bits) << 16); }
AV_DEVICE float widen(Float16 x) {
#if defined(__CUDACC__)
  float wide;  // cuda_fp16.h would do the same, but NVRTC has no headers
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  return emu::float_of_half(x.bits);
#endif
}

// Rounds to nearest, ties to even.
AV_DEVICE void narrow(float x, float* out) { *out = x; }
AV_DEVICE void narrow(float x, BFloat16* out) {
  const unsigned bits = AV_FLOAT_AS_BITS(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<unsigned short>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
AV_DEVICE void narrow(float x, Float16* out) {
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
#else
  out->bits = emu::half_of_float(x);
#endif
}

// `n` numbers in a row. Sixteen bytes are moved as one; the rest is for single numbers and for pairs of them.
template <class T, int n>
struct alignas(n * sizeof(T)) Bundle {
  T x[n];
};

template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <int n, class T>
AV_DEVICE void load(const T* from, float (&to)[n]) {
  if constexpr (n * sizeof(T) == 16) {
    union {
      uint4 all;
      Bundle<T, n> each;
    } bits;
    bits.all = __ldg(reinterpret_cast<const uint4*>(from));
    AV_UNROLL
    for (int i = 0; i < n; ++i) to[i] = widen(bits.each.x[i]);
  } else {
    const Bundle<T, n> bundle = *reinterpret_cast<const Bundle<T, n>*>(from);
    AV_UNROLL
    for (int i = 0; i < n; ++i) to[i] = widen(bundle.x[i]);
  }
}

template <int n, class T>
AV_DEVICE void store(const float (&from)[n], T* to) {
  if constexpr (n * sizeof(T) == 16) {
    union {
      uint4 all;
      Bundle<T, n> each;
    } bits;
    AV_UNROLL
    for (int i = 0; i < n; ++i) narrow(from[i], &bits.each.x[i]);
    *reinterpret_cast<uint4*>(to) = bits.all;
  } else if constexpr (n * sizeof(T) == 32) {
    const float low[n / 2] = {from[0], from[1], from[2], from[3]}, high[n / 2] = {from[4], from[5], from[6], from[7]};
    store(low, to);
    store(high, to + n / 2);
  } else {
    Bundle<T, n> bundle;
    AV_UNROLL
    for (int i = 0; i < n; ++i) narrow(from[i], &bundle.x[i]);
    *reinterpret_cast<Bundle<T, n>*>(to) = bundle;
  }
}

}  // namespace avis::gpu
