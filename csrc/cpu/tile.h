// The one product that all attention is made of.
//
// A tile is kRows x (kVectors * kLanes) of a matrix product, held in registers while the shared dimension runs:
//     c[r][:] += sum over k of a(r, k) * b[k][:]
// with a(r, k) a single number, broadcast, and b[k] a row of vectors. 6 x 2 vectors are 12 sums, enough to keep two
// multipliers busy at a latency of 4 to 5, and leave room in 16 registers for b and a. With 32 registers a tile has
// twice as many sums, so that it loads less for each product: 10 or 14 loads for 24 instead of 8 for 12. By its two
// strides `a` may be read along rows or along columns, so the same tile serves QK, PV, and their transposes in the
// backward. Every element adds up its products one by one in the order of k, whatever tile it is in.
#pragma once

#include "vec.h"

namespace avis::AVIS_ISA {

constexpr bool kManyRegisters = kLanes == 16;

constexpr int kRows = 6;                          // of a tile that is wide: scores
constexpr int kColumns = kManyRegisters ? 4 : 2;  // vectors of it
constexpr int kTile = kColumns * kLanes;
constexpr int kBlock = kManyRegisters ? 2 * kRows : kRows;  // rows of a tile that is two vectors wide: channels

template <int rows, int vectors>
struct Tile {
  Vf c[rows][vectors] = {};

  static AVIS_INLINE Tile at(const float* p, std::int64_t row_stride) {
    Tile tile;
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) tile.c[r][i] = load(p + r * row_stride + i * kLanes);
    return tile;
  }
  AVIS_INLINE void put(float* p, std::int64_t row_stride) const {
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) store(p + r * row_stride + i * kLanes, c[r][i]);
  }
  AVIS_INLINE void add_product(const float* a, std::int64_t a_row, std::int64_t a_step, const float* b,
                               std::int64_t b_step, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k, a += a_step, b += b_step) {
      Vf columns[vectors];
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) columns[i] = load(b + i * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const Vf factor = splat(a[r * a_row]);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) c[r][i] += factor * columns[i];
      }
    }
  }
};

// c[0 .. rows)[0 .. width) += a * b for any width that is a whole number of vectors.
template <int rows>
AVIS_INLINE void add_product(float* c, std::int64_t c_stride, std::int64_t width, const float* a, std::int64_t a_row,
                             std::int64_t a_step, const float* b, std::int64_t b_step, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    auto tile = Tile<rows, 2>::at(c + i, c_stride);
    tile.add_product(a, a_row, a_step, b + i, b_step, count);
    tile.put(c + i, c_stride);
  }
  if (i < width) {
    auto tile = Tile<rows, 1>::at(c + i, c_stride);
    tile.add_product(a, a_row, a_step, b + i, b_step, count);
    tile.put(c + i, c_stride);
  }
}

// Turns kLanes rows into kLanes columns. First 4 x 4 numbers within each 128-bit block, where shuffles are cheap; then
// the blocks themselves, by a perfect shuffle for each doubling: row group g, block b  ->  column group b, block g.
AVIS_INLINE void transpose(Vf (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    const Vf low01 = block_low_(rows[i], rows[i + 1], Lanes{}), high01 = block_high_(rows[i], rows[i + 1], Lanes{});
    const Vf low23 = block_low_(rows[i + 2], rows[i + 3], Lanes{}),
             high23 = block_high_(rows[i + 2], rows[i + 3], Lanes{});
    rows[i] = pairs_low_(low01, low23, Lanes{});
    rows[i + 1] = pairs_high_(low01, low23, Lanes{});
    rows[i + 2] = pairs_low_(high01, high23, Lanes{});
    rows[i + 3] = pairs_high_(high01, high23, Lanes{});
  }
#pragma GCC unroll 2
  for (int n = 4; n < kLanes; n *= 2) {
    Vf next[kLanes];
#pragma GCC unroll 4
    for (int group = 0; group < kLanes / 8; ++group)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Vf a = rows[4 * group + c], b = rows[4 * group + c + kLanes / 2];
        next[8 * group + c] = zip_blocks_low(a, b);
        next[8 * group + 4 + c] = zip_blocks_high(a, b);
      }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

constexpr float kInfinity = __builtin_inff();
constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942;

// 2^x for x <= about 1, relative error below 2e-7; exactly 1 at 0, and exactly 0 below 2^-125, -inf included. NaN
// stays. With x = n + f, f in [-0.5, 0.5], 2^f is a polynomial of degree 5 whose greatest relative error is least
// (8e-8; found by linear programming with p(0) = 1).
AVIS_INLINE Vf exp2(Vf x) {
#if defined(__AVX512DQ__) && AVIS_LANES == 16
  const Vf f = (Vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);  // x less the nearest whole number
#else
  const Vi tiny = x < splat(-125.0f);
  x = zero_unless(~tiny, x);
  // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits, ready to be added to an exponent.
  const Vf shifted = x + splat(12582912.0f);
  const Vf f = x - (shifted - splat(12582912.0f));
#endif
  Vf p = splat(1.3274633093e-3f);
  p = p * f + splat(9.6719618887e-3f);
  p = p * f + splat(5.5506784468e-2f);
  p = p * f + splat(2.4022234976e-1f);
  p = p * f + splat(6.9314706326e-1f);
  p = p * f + splat(1.0f);
#if defined(__AVX512DQ__) && AVIS_LANES == 16
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);
  return (Vf)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)(x - f));
#else
  const Vf power = zero_unless(~tiny, (Vf)((Vi)p + ((Vi)shifted << 23)));
  return x == x ? power : x;  // what a NaN carries would have been added to an exponent
#endif
}

// One number at a time, for what is rare.
AVIS_INLINE float exp_of(float x) { return __builtin_expf(x); }
AVIS_INLINE double exp_of(double x) { return __builtin_exp(x); }
AVIS_INLINE float log_of(float x) { return __builtin_logf(x); }
AVIS_INLINE double log_of(double x) { return __builtin_log(x); }

// The 128-bit blocks first, then four numbers: few steps, each waiting for the one before.
AVIS_INLINE float sum(Vf x) {
  const V4 four = add_blocks(x);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
AVIS_INLINE float largest(Vf x) {
  V4 blocks[kLanes / 4];
  __builtin_memcpy(blocks, &x, sizeof(x));
  V4 four = blocks[0];
  for (int i = 1; i < kLanes / 4; ++i) four = blocks[i] > four ? blocks[i] : four;
  const float left = four[0] > four[2] ? four[0] : four[2], right = four[1] > four[3] ? four[1] : four[3];
  return left > right ? left : right;
}

}  // namespace avis::AVIS_ISA
