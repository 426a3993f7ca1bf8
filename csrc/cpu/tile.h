// The one product that all attention is made of.
//
// A tile is kRows x (kVectors * kLanes) of a matrix product, held in registers while the shared dimension runs:
//     c[r][:] += sum over k of a(r, k) * b[k][:]
// with a(r, k) a single number, broadcast, and b[k] a row of vectors. 6 x 2 vectors are 12 sums, enough to keep two
// multipliers busy at a latency of 4 to 5, and leave room in 16 registers for b and a. By its two strides `a` may be
// read along rows or along columns, so the same tile serves QK, PV, and their transposes in the backward.
#pragma once

#include "vec.h"

namespace avis::AVIS_ISA {

constexpr int kRows = 6;
constexpr int kTile = 2 * kLanes;  // columns

template <int kVectors>
struct Tile {
  Vf c[kRows][kVectors] = {};

  static AVIS_INLINE Tile at(const float* p, std::int64_t row_stride) {
    Tile tile;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) tile.c[r][i] = load(p + r * row_stride + i * kLanes);
    return tile;
  }
  AVIS_INLINE void put(float* p, std::int64_t row_stride) const {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) store(p + r * row_stride + i * kLanes, c[r][i]);
  }
  AVIS_INLINE void add_product(const float* a, std::int64_t a_row, std::int64_t a_step, const float* b,
                               std::int64_t b_step, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k, a += a_step, b += b_step) {
      Vf columns[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) columns[i] = load(b + i * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const Vf factor = splat(a[r * a_row]);
#pragma GCC unroll 2
        for (int i = 0; i < kVectors; ++i) c[r][i] += factor * columns[i];
      }
    }
  }
};

// c[0 .. 5][0 .. width) += a * b for any width that is a whole number of vectors.
AVIS_INLINE void add_product(float* c, std::int64_t c_stride, std::int64_t width, const float* a, std::int64_t a_row,
                             std::int64_t a_step, const float* b, std::int64_t b_step, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kTile <= width; i += kTile) {
    auto tile = Tile<2>::at(c + i, c_stride);
    tile.add_product(a, a_row, a_step, b + i, b_step, count);
    tile.put(c + i, c_stride);
  }
  if (i < width) {
    auto tile = Tile<1>::at(c + i, c_stride);
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
// stays.
AVIS_INLINE Vf exp2(Vf x) {
  const Vi tiny = x < splat(-125.0f);
  x = zero_unless(~tiny, x);
  // Adding 1.5 * 2^23 leaves the nearest whole number in the lowest bits, ready to be added to an exponent.
  const Vf shifted = x + splat(12582912.0f);
  const Vf f = x - (shifted - splat(12582912.0f));  // in [-0.5, 0.5], where Taylor to degree 6 is off by 1.2e-7
  Vf p = splat(1.540353039338161e-4f);
  p = p * f + splat(1.333355814642844e-3f);
  p = p * f + splat(9.618129107628477e-3f);
  p = p * f + splat(5.550410866482158e-2f);
  p = p * f + splat(2.402265069591007e-1f);
  p = p * f + splat(6.931471805599453e-1f);
  p = p * f + splat(1.0f);
  return zero_unless(~tiny, (Vf)((Vi)p + ((Vi)shifted << 23)));
}

// One number at a time, for what is rare.
AVIS_INLINE float exp_of(float x) { return __builtin_expf(x); }
AVIS_INLINE double exp_of(double x) { return __builtin_exp(x); }
AVIS_INLINE float log_of(float x) { return __builtin_logf(x); }
AVIS_INLINE double log_of(double x) { return __builtin_log(x); }

AVIS_INLINE float sum(Vf x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}
AVIS_INLINE float largest(Vf x) {
  float found = x[0];
  for (int i = 1; i < kLanes; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

}  // namespace avis::AVIS_ISA
