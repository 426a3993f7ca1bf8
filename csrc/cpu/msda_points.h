// Stage one of the fast kernels: from locations and weights to the four rows that each point reads.
//
// Works on all points of a row at once, a vector of points at a time, whatever their levels and heads: what differs
// between them lies in tables. With 8 heads, 3 levels and 4 points that is 96 points, whole vectors in every width.
#pragma once

#include "avis/msda.h"
#include "tile.h"

namespace avis::AVIS_ISA {

constexpr int kMaxPoints = 512;  // of a row; longer ones take the general kernels
// Columns that are a power of two apart would all fall into the same few sets of the first cache.
constexpr int kColumn = kMaxPoints + 16;

// Points of one row. Corners in the order top left, top right, bottom left, bottom right.
struct RowPoints {
  alignas(64) std::int32_t inside[kColumn];     // -1, or 0 for points that are skipped
  alignas(64) std::int32_t offset[4][kColumn];  // of a corner that exists: itself, or its neighbour
  alignas(64) float weight[4][kColumn];         // bilinear factor times attention weight; 0 for absent corners
};

// What the gradients of locations and weights need besides.
struct RowSlopes {
  alignas(64) float fx[kColumn], fy[kColumn];  // distance from the left and top corners, in [0, 1)
  alignas(64) float attention[kColumn];        // 0 for skipped points
  alignas(64) std::int32_t left[kColumn], right[kColumn], top[kColumn], bottom[kColumn];  // exists: -1
};

// A vector of points.
struct PointVector {
  Vf x, y, attention;

  static AVIS_INLINE PointVector read(const float* loc, const float* weight) {
    const Vf a = load(loc), b = load(loc + kLanes);
    return {even(a, b), odd(a, b), load(weight)};
  }
  // The last few points of a list, which may end where readable memory does.
  static __attribute__((noinline)) void read_some(const float* loc, const float* weight, int count, PointVector* out) {
    float copy[3 * kLanes] = {};
    for (int i = 0; i < 2 * count; ++i) copy[i] = loc[i];
    for (int i = 0; i < count; ++i) copy[2 * kLanes + i] = weight[i];
    *out = read(copy, copy + 2 * kLanes);
  }
};

// `readable`: how many points lie in memory from the first of these on, the table's and those behind; never fewer.
template <bool kSlopes>
AVIS_INLINE void locate(const PointTable& table, const float* loc, const float* attention, std::int64_t readable,
                        RowPoints* points, RowSlopes* slopes) {
  const Vf one = splat(1.0f), half = splat(0.5f);
  const Vi col_step = splat(table.col_step);
  for (int i = 0; i < table.count; i += kLanes) {
    const Vf width = load(table.width + i), height = load(table.height + i);
    PointVector point;
    if (readable - i >= kLanes)  // the last lanes may be another row's points: the table says where it ends
      point = PointVector::read(loc + 2 * i, attention + i);
    else
      PointVector::read_some(loc + 2 * i, attention + i, static_cast<int>(readable - i), &point);
    Vf x = point.x * width - half, y = point.y * height - half;
    // All comparisons are false for NaN, and nothing lies between -1 and the size -1 of a padding entry.
    const Vi inside = (x > -one) & (y > -one) & (x < width) & (y < height);
    x = zero_unless(inside, x);
    y = zero_unless(inside, y);
    const Vf a = zero_unless(inside, point.attention);

    // floor: conversion cuts towards zero, which is one too many just for -1 < x < 0.
    Vi x0 = to_int(x), y0 = to_int(y);
    x0 += to_float(x0) > x;
    y0 += to_float(y0) > y;
    const Vf fx = x - to_float(x0), fy = y - to_float(y0);
    const Vi x1 = x0 + 1, y1 = y0 + 1, last_x = to_int(width) - 1, last_y = to_int(height) - 1;
    const Vi left = (x0 >= 0) & inside, top = (y0 >= 0) & inside;
    const Vi right = (x1 <= last_x) & inside, bottom = (y1 <= last_y) & inside;

    const Vi row_step = load(table.row_step + i), base = load(table.base + i), none = splat(0);
    const Vi row0 = base + max(y0, none) * row_step, row1 = base + min(y1, last_y) * row_step;
    const Vi col0 = max(x0, none) * col_step, col1 = min(x1, last_x) * col_step;
    store(points->inside + i, inside);
    store(points->offset[0] + i, row0 + col0);
    store(points->offset[1] + i, row0 + col1);
    store(points->offset[2] + i, row1 + col0);
    store(points->offset[3] + i, row1 + col1);

    const Vf above = zero_unless(top, a * (one - fy)), below = zero_unless(bottom, a * fy);
    const Vf before = zero_unless(left, one - fx), behind = zero_unless(right, fx);
    store(points->weight[0] + i, above * before);
    store(points->weight[1] + i, above * behind);
    store(points->weight[2] + i, below * before);
    store(points->weight[3] + i, below * behind);
    if constexpr (kSlopes) {
      store(slopes->fx + i, fx);
      store(slopes->fy + i, fy);
      store(slopes->attention + i, a);
      store(slopes->left + i, left);
      store(slopes->right + i, right);
      store(slopes->top + i, top);
      store(slopes->bottom + i, bottom);
    }
  }
}

// The fused operator's inputs of one row, turned into locations and weights: exp and max over each head's logits, and
// reference points spread to where their offsets are. What is left of a row behind the last point stays as it was.
struct FusedRow {
  alignas(64) float loc[2 * kColumn], weight[kColumn];

  AVIS_INLINE void fill(const MsdaArgs& args, std::int64_t row) {
    const std::int64_t heads = args.heads, points = args.points, per_head = args.levels * points;
    const auto* offsets = static_cast<const float*>(args.source.loc) + 2 * row * heads * per_head;
    const auto* ref = static_cast<const float*>(args.source.ref) + 2 * row * args.levels;
    float spread[2 * kMaxPoints];
    for (std::int64_t i = 0; i < per_head; ++i) {
      spread[2 * i] = ref[i / points * 2];
      spread[2 * i + 1] = ref[i / points * 2 + 1];
    }
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t i = 0; i < 2 * per_head; ++i)
        loc[2 * head * per_head + i] = spread[i] + offsets[2 * head * per_head + i] * args.source.pixel[i];
    fill_weights(static_cast<const float*>(args.source.weight) + row * heads * per_head, heads, per_head);
  }

  AVIS_INLINE void fill_weights(const float* logits, std::int64_t heads, std::int64_t per_head) {
    const std::int64_t count = heads * per_head;
    for (std::int64_t head = 0; head < heads; ++head) {
      const float* own = logits + head * per_head;
      float max = own[0];
      for (std::int64_t i = 1; i < per_head; ++i) max = own[i] > max ? own[i] : max;
      for (std::int64_t i = 0; i < per_head; ++i)
        weight[head * per_head + i] = (own[i] - max) * static_cast<float>(kLog2E);
    }
    for (std::int64_t i = count; i < count + kLanes; ++i) weight[i] = 0;
    for (std::int64_t i = 0; i < count; i += kLanes) store(weight + i, exp2(load(weight + i)));
    for (std::int64_t head = 0; head < heads; ++head) {
      float* own = weight + head * per_head;
      float total = 0;
      for (std::int64_t i = 0; i < per_head; ++i) total += own[i];
      const float inverse = 1 / total;
      for (std::int64_t i = 0; i < per_head; ++i) own[i] *= inverse;
    }
  }
};

}  // namespace avis::AVIS_ISA
