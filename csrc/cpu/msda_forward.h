// Forward: stage two. Each query and head adds up the rows that its points read, all channels in registers.
//
// Heads side by side in memory, a few queries of one head at a time, was tried and is no faster (ADR 0103).
#pragma once

#include "msda_points.h"
#include "storage.h"

namespace avis::AVIS_ISA {

// Two independent sums, or every addition would wait for the one before.
template <class T, int D>
struct Sums {
  static constexpr int kVectors = Row<T, D>::kVectors;
  Row<T, D> a, b;

  static AVIS_INLINE void add(Row<T, D>* sum, const T* row, float weight) {
    const Row<T, D> values = Row<T, D>::at(row);
    const Vf factor = splat(weight);
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) sum->v[i] += values.v[i] * factor;
  }
};

template <class T, int D>
AVIS_INLINE void gather(const T* image, const RowPoints& points, int first, int last, T* out) {
  Sums<T, D> sums{};
  for (int i = first; i < last; ++i) {
    if (points.inside[i] == 0) continue;
    Sums<T, D>::add(&sums.a, image + points.offset[0][i], points.weight[0][i]);
    Sums<T, D>::add(&sums.b, image + points.offset[1][i], points.weight[1][i]);
    Sums<T, D>::add(&sums.a, image + points.offset[2][i], points.weight[2][i]);
    Sums<T, D>::add(&sums.b, image + points.offset[3][i], points.weight[3][i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < Sums<T, D>::kVectors; ++i) sums.a.v[i] += sums.b.v[i];
  sums.a.put(out);
}

template <class T, int D>
void msda_forward_fast(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  RowPoints points;
  FusedRow fused{};  // what lies behind a row's points is read too
  const std::int64_t per_row = args.row_points.count, per_head = args.levels * args.points;
  const std::int64_t all_rows = args.images * args.queries;
  const auto* loc = static_cast<const float*>(args.source.loc);
  const auto* weight = static_cast<const float*>(args.source.weight);
  for (std::int64_t row = first; row < last; ++row) {
    const T* image = static_cast<const T*>(args.value) + row / args.queries * args.image_stride;
    T* out = static_cast<T*>(args.out) + row * args.heads * D;
    if (args.source.ref == nullptr) {
      locate<false>(args.row_points, loc + 2 * row * per_row, weight + row * per_row, (all_rows - row) * per_row,
                    &points, nullptr);
    } else {
      fused.fill(args, row);
      locate<false>(args.row_points, fused.loc, fused.weight, kColumn, &points, nullptr);
    }
    for (std::int64_t head = 0; head < args.heads; ++head)
      gather<T, D>(image, points, head * per_head, (head + 1) * per_head, out + head * D);
  }
}

}  // namespace avis::AVIS_ISA
