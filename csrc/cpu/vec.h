// A vector of floats as wide as the instruction set has registers, on GCC's and Clang's vector extensions.
//
// One source serves every width: kLanes is 4 (SSE2, NEON), 8 (AVX2) or 16 (AVX-512). `a * b + c` becomes a fused
// multiply-add where there is one (-ffp-contract=fast).
//
// Everything here and in the kernels lives in a namespace of its instruction set and uses no function of the standard
// library that is not a compiler builtin: an inline function compiled here with AVX-512 must never be the copy that the
// linker picks for code that runs anywhere.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#if !defined(AVIS_LANES)
#if defined(__AVX512F__)
#define AVIS_LANES 16
#elif defined(__AVX2__)
#define AVIS_LANES 8
#else
#define AVIS_LANES 4
#endif
#endif

#define AVIS_INLINE inline __attribute__((always_inline))

namespace avis::AVIS_ISA {

constexpr int kLanes = AVIS_LANES;
using Lanes = std::make_integer_sequence<int, kLanes>;

using Vf = float __attribute__((vector_size(kLanes * 4)));
using Vi = std::int32_t __attribute__((vector_size(kLanes * 4)));
using Vu = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using V4 = float __attribute__((vector_size(16)));

// The same without alignment, for loads and stores.
using VfAt = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using ViAt = std::int32_t __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using VuAt = std::uint32_t __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
using V4At = float __attribute__((vector_size(16), aligned(4), may_alias));

AVIS_INLINE Vf load(const float* p) { return *reinterpret_cast<const VfAt*>(p); }
AVIS_INLINE Vi load(const std::int32_t* p) { return *reinterpret_cast<const ViAt*>(p); }
AVIS_INLINE void store(float* p, Vf x) { *reinterpret_cast<VfAt*>(p) = x; }
AVIS_INLINE void store(std::int32_t* p, Vi x) { *reinterpret_cast<ViAt*>(p) = x; }
AVIS_INLINE void store4(float* p, V4 x) { *reinterpret_cast<V4At*>(p) = x; }

// Stores as many of the lanes as there is room for, none if `out` is null.
AVIS_INLINE void put(float* out, std::int64_t at, Vf x, int room) {
  if (out == nullptr || room <= 0) return;
  if (room >= kLanes) return store(out + at, x);
  for (int i = 0; i < room; ++i) out[at + i] = x[i];
}

template <int... i>
AVIS_INLINE Vf splat_(float x, std::integer_sequence<int, i...>) {
  return Vf{((void)i, x)...};
}
template <int... i>
AVIS_INLINE Vi splat_(std::int32_t x, std::integer_sequence<int, i...>) {
  return Vi{((void)i, x)...};
}
AVIS_INLINE Vf splat(float x) { return splat_(x, Lanes{}); }
AVIS_INLINE Vi splat(std::int32_t x) { return splat_(x, Lanes{}); }

AVIS_INLINE Vf to_float(Vi x) { return __builtin_convertvector(x, Vf); }
AVIS_INLINE Vi to_int(Vf x) { return __builtin_convertvector(x, Vi); }
AVIS_INLINE Vf zero_unless(Vi mask, Vf x) { return (Vf)((Vi)x & mask); }
AVIS_INLINE Vf max(Vf a, Vf b) { return a > b ? a : b; }
AVIS_INLINE Vi max(Vi a, Vi b) { return a > b ? a : b; }
AVIS_INLINE Vi min(Vi a, Vi b) { return a < b ? a : b; }

// Shuffles two vectors by an index function: lane i of the result is element index(i) of a followed by b.
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define AVIS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define AVIS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Vi{__VA_ARGS__})
#endif

// a, b = x0 y0 x1 y1 ...  ->  x0 x1 ... and y0 y1 ...
template <int... i>
AVIS_INLINE Vf even_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (2 * i)...);
}
template <int... i>
AVIS_INLINE Vf odd_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (2 * i + 1)...);
}
AVIS_INLINE Vf even(Vf a, Vf b) { return even_(a, b, Lanes{}); }
AVIS_INLINE Vf odd(Vf a, Vf b) { return odd_(a, b, Lanes{}); }

// The way back: x0 y0 x1 y1 ... of the first half of the lanes, and of the second.
template <int... i>
AVIS_INLINE Vf zip_low_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 2 + (i % 2 ? kLanes : 0))...);
}
template <int... i>
AVIS_INLINE Vf zip_high_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (kLanes / 2 + i / 2 + (i % 2 ? kLanes : 0))...);
}
AVIS_INLINE Vf zip_low(Vf a, Vf b) { return zip_low_(a, b, Lanes{}); }
AVIS_INLINE Vf zip_high(Vf a, Vf b) { return zip_high_(a, b, Lanes{}); }

// Within each 128-bit block, where shuffles are cheap: a0 b0 a1 b1 | a2 b2 a3 b3 ("low" and "high" of a block).
template <int... i>
AVIS_INLINE Vf block_low_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 4 * 4 + i % 4 / 2 + (i % 2 ? kLanes : 0))...);
}
template <int... i>
AVIS_INLINE Vf block_high_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 4 * 4 + 2 + i % 4 / 2 + (i % 2 ? kLanes : 0))...);
}
template <int... i>
AVIS_INLINE Vf pairs_low_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 4 * 4 + i % 2 + (i % 4 < 2 ? 0 : kLanes))...);
}
template <int... i>
AVIS_INLINE Vf pairs_high_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 4 * 4 + 2 + i % 2 + (i % 4 < 2 ? 0 : kLanes))...);
}

// The same with whole blocks: a0-3 b0-3 a4-7 b4-7 ... of the first half, and of the second.
template <int... i>
AVIS_INLINE Vf zip_blocks_low_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (i / 8 * 4 + i % 4 + (i / 4 % 2 ? kLanes : 0))...);
}
template <int... i>
AVIS_INLINE Vf zip_blocks_high_(Vf a, Vf b, std::integer_sequence<int, i...>) {
  return AVIS_SHUFFLE(a, b, (kLanes / 2 + i / 8 * 4 + i % 4 + (i / 4 % 2 ? kLanes : 0))...);
}
AVIS_INLINE Vf zip_blocks_low(Vf a, Vf b) { return zip_blocks_low_(a, b, Lanes{}); }
AVIS_INLINE Vf zip_blocks_high(Vf a, Vf b) { return zip_blocks_high_(a, b, Lanes{}); }

// Sums of the 128-bit blocks of a vector.
AVIS_INLINE V4 add_blocks(Vf x) {
  V4 blocks[kLanes / 4];
  __builtin_memcpy(blocks, &x, sizeof(x));
  if constexpr (kLanes == 16)
    return (blocks[0] + blocks[2]) + (blocks[1] + blocks[3]);
  else if constexpr (kLanes == 8)
    return blocks[0] + blocks[1];
  else
    return blocks[0];
}

// The sums of four vectors at once, in half the shuffles that four single sums would take.
AVIS_INLINE V4 sum4(Vf a, Vf b, Vf c, Vf d) {
  const Vf ab = block_low_(a, b, Lanes{}) + block_high_(a, b, Lanes{});  // a b a b of each block
  const Vf cd = block_low_(c, d, Lanes{}) + block_high_(c, d, Lanes{});
  return add_blocks(pairs_low_(ab, cd, Lanes{}) + pairs_high_(ab, cd, Lanes{}));
}

}  // namespace avis::AVIS_ISA
