// Backward, in two passes that need not know of each other.
//
// Points: the gradients of a point's location and weight follow from four dot products, of the output's gradient with
// the four rows that the point read. That is the forward's walk once more, with sums across channels instead of points;
// rows of the output are independent.
//
// Value: a row of the value collects the gradients of all points that read it. One task has one head of one image (or
// one level of it) to itself and goes through the queries in order, so no two threads add to the same row, and the
// order of additions, down to the last bit, is that of the queries for any number of threads. It adds into a slab
// [S, D] of its own: the rows of one head lie M * D floats apart in the gradient, which would leave most cache sets
// idle. Sorting the points by the four pixels that they lie between, to keep these sums in registers, was tried and is
// 1.3 to 1.4 times slower (AVX2, Zen) and no faster with AVX-512 (ADR 0104): neighbouring queries read neighbouring
// places, so the slab's rows are near anyway, and the sort is not free.
#pragma once

#include "msda_points.h"
#include "storage.h"

namespace avis::AVIS_ISA {

template <class T, int D>
AVIS_INLINE Vf dot(const Row<T, D>& grad, const T* row) {
  const Row<T, D> values = Row<T, D>::at(row);
  Vf sum = grad.v[0] * values.v[0];
#pragma GCC unroll 16
  for (int i = 1; i < Row<T, D>::kVectors; ++i) sum += grad.v[i] * values.v[i];
  return sum;
}

template <class T, int D>
void msda_backward_points_fast(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  RowPoints points;
  RowSlopes slopes;
  alignas(64) float dots[kMaxPoints][4];
  const int count = args.row_points.count, per_head = static_cast<int>(args.levels * args.points);
  const auto* loc = static_cast<const float*>(args.source.loc);
  const auto* weight = static_cast<const float*>(args.source.weight);
  const auto* grad_out = static_cast<const float*>(args.grad_out);
  const std::int64_t all_rows = args.images * args.queries;
  auto* grad_loc = static_cast<float*>(args.grad_loc);
  auto* grad_weight = static_cast<float*>(args.grad_weight);
  for (std::int64_t row = first; row < last; ++row) {
    const T* image = static_cast<const T*>(args.value) + row / args.queries * args.image_stride;
    locate<true>(args.row_points, loc + 2 * row * count, weight + row * count, (all_rows - row) * count, &points,
                 &slopes);
    for (int head = 0; head < args.heads; ++head) {
      const auto grad = Row<T, D>::in_order(grad_out + (row * args.heads + head) * D);
      for (int i = head * per_head; i < (head + 1) * per_head; ++i) {
        if (points.inside[i] == 0) {
          store4(dots[i], V4{});
          continue;
        }
        store4(dots[i],
               sum4(dot<T, D>(grad, image + points.offset[0][i]), dot<T, D>(grad, image + points.offset[1][i]),
                    dot<T, D>(grad, image + points.offset[2][i]), dot<T, D>(grad, image + points.offset[3][i])));
      }
    }
    for (int i = 0; i < count; i += kLanes) {
      const Vf a = load(dots[i]), b = load(dots[i] + kLanes), c = load(dots[i] + 2 * kLanes),
               d = load(dots[i] + 3 * kLanes);
      const Vf first_and_third = even(a, b), second_and_fourth = odd(a, b);
      const Vf first_and_third2 = even(c, d), second_and_fourth2 = odd(c, d);
      const Vi left = load(slopes.left + i), right = load(slopes.right + i);
      const Vi top = load(slopes.top + i), bottom = load(slopes.bottom + i);
      const Vf top_left = zero_unless(top & left, even(first_and_third, first_and_third2));
      const Vf top_right = zero_unless(top & right, even(second_and_fourth, second_and_fourth2));
      const Vf bottom_left = zero_unless(bottom & left, odd(first_and_third, first_and_third2));
      const Vf bottom_right = zero_unless(bottom & right, odd(second_and_fourth, second_and_fourth2));

      const Vf fx = load(slopes.fx + i), fy = load(slopes.fy + i), attention = load(slopes.attention + i);
      const Vf along_top = top_right - top_left, along_bottom = bottom_right - bottom_left;
      const Vf at_top = top_left + fx * along_top, at_bottom = bottom_left + fx * along_bottom;
      const Vf down = at_bottom - at_top;
      const Vf along = along_top + fy * (along_bottom - along_top);
      const Vf sampled = at_top + fy * down;
      const Vf grad_x = attention * along * load(args.row_points.width + i);
      const Vf grad_y = attention * down * load(args.row_points.height + i);
      const int left_over = count - i;
      put(grad_weight, row * count + i, sampled, left_over);
      put(grad_loc, 2 * (row * count + i), zip_low(grad_x, grad_y), 2 * left_over);
      put(grad_loc, 2 * (row * count + i) + kLanes, zip_high(grad_x, grad_y), 2 * left_over - kLanes);
    }
  }
}

// grad_value of the levels [first_level, last_level).
template <class T, int D>
void msda_backward_value_fast(const MsdaArgs& args, std::int64_t image, std::int64_t head, std::int64_t first_level,
                              std::int64_t last_level, void* scratch) {
  auto* slab = static_cast<float*>(scratch);
  RowPoints points;
  const PointTable& table = args.slab_points;
  const int first_point = static_cast<int>(first_level * args.points),
            last_point = static_cast<int>(last_level * args.points);
  const auto* loc = static_cast<const float*>(args.source.loc);
  const auto* weight = static_cast<const float*>(args.source.weight);
  const auto* grad_out = static_cast<const float*>(args.grad_out);
  const std::int64_t all_heads = args.images * args.queries * args.heads;
  std::int64_t first_token = 0, last_token = 0;
  for (std::int64_t level = 0; level < last_level; ++level) {
    if (level == first_level) first_token = last_token;
    last_token += args.sizes[2 * level] * args.sizes[2 * level + 1];
  }
  __builtin_memset(slab + first_token * D, 0, (last_token - first_token) * D * sizeof(float));

  for (std::int64_t row = image * args.queries; row < (image + 1) * args.queries; ++row) {
    const std::int64_t at = row * args.heads + head;
    locate<false>(table, loc + 2 * at * table.count, weight + at * table.count, (all_heads - at) * table.count, &points,
                  nullptr);
    const auto grad = Row<float, D>::at(grad_out + at * D);
    for (int i = first_point; i < last_point; ++i) {
      if (points.inside[i] == 0) continue;
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) {
        float* sum = slab + points.offset[corner][i];
        const Vf factor = splat(points.weight[corner][i]);
#pragma GCC unroll 16
        for (int c = 0; c < Row<float, D>::kVectors; ++c)
          store(sum + c * kLanes, load(sum + c * kLanes) + factor * grad.v[c]);
      }
    }
  }

  T* out = static_cast<T*>(args.grad_value) + image * args.tokens * args.heads * D + head * D;
  for (std::int64_t token = first_token; token < last_token; ++token)
    for (int c = 0; c < D; ++c) narrow(slab[token * D + c], out + token * args.heads * D + c);
}

}  // namespace avis::AVIS_ISA
