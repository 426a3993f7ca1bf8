// Numbers as they lie in memory: float, bfloat16 and half are widened on the way in and rounded on the way out.
//
// `Row<T, D>` is D channels of one token in registers, as D / kLanes vectors of floats.
#pragma once

#include "vec.h"

namespace avis::AVIS_ISA {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

AVIS_INLINE float widen(float x) { return x; }
AVIS_INLINE double widen(double x) { return x; }
AVIS_INLINE float widen(BFloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}
AVIS_INLINE float widen(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Shifts exponent and mantissa into place; multiplying by 2^112 mends the exponent's bias, subnormals included.
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16, rest = std::uint32_t{x.bits & 0x7fffu} << 13;
  std::uint32_t bits = rest;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  wide *= 0x1p112f;
  __builtin_memcpy(&bits, &wide, 4);
  if (rest >= (0x1fu << 23)) bits = rest | 0x7f800000u;  // Inf and NaN
  bits |= sign;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
#endif
}

// Rounds to nearest, ties to even.
AVIS_INLINE void narrow(float x, float* out) { *out = x; }
AVIS_INLINE void narrow(double x, double* out) { *out = x; }
AVIS_INLINE void narrow(float x, BFloat16* out) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  out->bits = static_cast<std::uint16_t>(nan ? bits >> 16 | 0x40u : rounded >> 16);
}
AVIS_INLINE void narrow(float x, Float16* out) {
#if defined(__F16C__)
  out->bits = static_cast<std::uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  std::uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // rounds beyond the largest half, 65504
    half = 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal: adding 0.5 makes the float's own rounding cut at the right place
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&half, &magnitude, 4);
    half -= 0x3f000000u;
  } else {
    half = (bits + 0xfffu + (bits >> 13 & 1u) - (112u << 23)) >> 13;
  }
  out->bits = static_cast<std::uint16_t>(half | sign);
#endif
}

template <class T, int D>
struct Row;

template <int D>
struct Row<float, D> {
  static constexpr int kVectors = D / kLanes;
  Vf v[kVectors];
  static AVIS_INLINE Row at(const float* p) {
    Row row;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) row.v[i] = load(p + i * kLanes);
    return row;
  }
  // Channels in the order of memory.
  static AVIS_INLINE Row in_order(const float* p) { return at(p); }
  AVIS_INLINE void put(float* p) const {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) store(p + i * kLanes, v[i]);
  }
};

// One load gives two vectors: the even channels by a shift, the odd ones by a mask. They stay apart in all sums and
// meet again when they are rounded and stored; what is multiplied with them must be split the same way.
template <int D>
struct Row<BFloat16, D> {
  static constexpr int kVectors = D / kLanes;
  static_assert(kVectors % 2 == 0);
  Vf v[kVectors];  // even, odd, even, odd, ...
  static AVIS_INLINE Row at(const BFloat16* p) {
    Row row;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; i += 2) {
      const Vu both = *reinterpret_cast<const VuAt*>(p + i * kLanes);
      row.v[i] = (Vf)(both << 16);
      row.v[i + 1] = (Vf)(both & 0xffff0000u);
    }
    return row;
  }
  // Splits floats in the order of memory as `at` splits its channels.
  static AVIS_INLINE Row in_order(const float* p) {
    Row row;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; i += 2) {
      const Vf a = load(p + i * kLanes), b = load(p + (i + 1) * kLanes);
      row.v[i] = even(a, b);
      row.v[i + 1] = odd(a, b);
    }
    return row;
  }
  static AVIS_INLINE Vu rounded(Vf x) {
    const Vu bits = (Vu)x;
    const Vu up = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (Vi)((Vi)bits & 0x7fffffff) > 0x7f800000 ? (bits | 0x400000u) : up;
  }
  AVIS_INLINE void put(BFloat16* p) const {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; i += 2)
      *reinterpret_cast<VuAt*>(p + i * kLanes) = (rounded(v[i]) >> 16) | (rounded(v[i + 1]) & 0xffff0000u);
  }
};

template <int D>
struct Row<Float16, D> {
  static constexpr int kVectors = D / kLanes;
  Vf v[kVectors];
  static AVIS_INLINE Row at(const Float16* p) {
    Row row;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) {
#if defined(__AVX512F__) && AVIS_LANES == 16
      row.v[i] = (Vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * kLanes)));
#elif defined(__F16C__) && AVIS_LANES == 8
      row.v[i] = (Vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * kLanes)));
#else
      for (int lane = 0; lane < kLanes; ++lane) row.v[i][lane] = widen(p[i * kLanes + lane]);
#endif
    }
    return row;
  }
  static AVIS_INLINE Row in_order(const float* p) {
    Row row;
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) row.v[i] = load(p + i * kLanes);
    return row;
  }
  AVIS_INLINE void put(Float16* p) const {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i)
      for (int lane = 0; lane < kLanes; ++lane) narrow(v[i][lane], p + i * kLanes + lane);
  }
};

}  // namespace avis::AVIS_ISA
