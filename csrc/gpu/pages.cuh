// What pages gave, merged; and gradients on their way back through the merge.
//
//     lse = log(sum of e^lse_p)    share_p = e^(lse_p - lse)    out = sum of share_p out_p
//
// over the initial part first, then the pages in order. Source: FlashDecoding, the split softmax.
#pragma once

#include "tile.cuh"

namespace avis::gpu {

constexpr int kMergeThreads = 128;

struct PagedArgs : RangeArgs {
  const float *init_out, *init_lse, *grad_page_out, *grad_page_lse;
  float* new_part_grad;  // the split writes what RangeArgs calls part_grad
  float *grad_init_out, *grad_init_lse;

  // Part -1 is the initial one.
  AV_DEVICE float part_lse(int part, long long at, long long rows) const {
    return part < 0 ? init_lse[at] : page_lse[part * rows + at];
  }
  AV_DEVICE const float* part_out(int part, long long row, long long rows) const {
    return part < 0 ? init_out + row * channels : page_out + (part * rows + row) * channels;
  }
};

// Which (image, query, head) a thread works on: its row in values, and its place in an lse.
struct MergeRow {
  long long row, lse_at;
  AV_DEVICE static MergeRow of(const RangeArgs& args, long long row) {
    const long long token = row / args.heads;
    const int head = static_cast<int>(row % args.heads);
    return {row, (token / args.queries * args.heads + head) * args.queries + token % args.queries};
  }
};

// `kWide` channels a thread: 4, or 1 where channels do not divide by 4. The few exponentials are computed by each anew.
template <class T, int kWide>
AV_KERNEL(kMergeThreads, 8)
merge_pages(AV_ARGUMENT(PagedArgs) args) {
  const int per_row = args.channels / kWide;
  const long long rows = static_cast<long long>(args.batch) * args.queries * args.heads;
  const long long i = static_cast<long long>(blockIdx.x) * kMergeThreads + threadIdx.x;
  if (i >= rows * per_row) return;
  const MergeRow at = MergeRow::of(args, i / per_row);
  const int c = static_cast<int>(i % per_row) * kWide, first = args.init_lse == nullptr ? 0 : -1;

  float highest = -AV_INFINITY;
  for (int part = first; part < args.pages; ++part) highest = fmaxf(highest, args.part_lse(part, at.lse_at, rows));
  const float shift = highest == -AV_INFINITY ? 0.0f : highest;
  float total = 0.0f, sum[kWide] = {};
  for (int part = first; part < args.pages; ++part) {
    const float share = expf(args.part_lse(part, at.lse_at, rows) - shift);
    if (share == 0.0f) continue;  // a part without keys; what it holds does not count, NaN included
    total += share;
    float x[kWide];
    load(args.part_out(part, at.row, rows) + c, x);
    AV_UNROLL
    for (int n = 0; n < kWide; ++n) sum[n] += share * x[n];
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  AV_UNROLL
  for (int n = 0; n < kWide; ++n) sum[n] *= inverse;
  store(sum, static_cast<T*>(args.out) + at.row * args.channels + c);
  if (c == 0) args.lse[at.lse_at] = total == 0.0f ? -AV_INFINITY : shift + logf(total);
}

// A warp has one (image, query, head). Each part gets share_p * dO besides what came to it directly, and its lse
// share_p * (dO . (out_p - out) + d lse); `row` is what range_dq and range_dkv want to know: dO_p . out_p less d lse_p.
template <class T>
AV_KERNEL(kMergeThreads, 6)
split_pages(AV_ARGUMENT(PagedArgs) args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const long long rows = static_cast<long long>(args.batch) * args.queries * args.heads;
  const long long own = static_cast<long long>(blockIdx.x) * (kMergeThreads / 32) + threadIdx.x / 32;
  const bool active = own < rows;
  const MergeRow at = MergeRow::of(args, active ? own : rows - 1);  // all lanes take part in the shuffles
  const T* grad = static_cast<const T*>(args.grad_out.data) + at.row * args.channels;
  const T* out = static_cast<const T*>(args.out) + at.row * args.channels;
  const float lse = args.lse[at.lse_at];
  for (int part = args.init_lse == nullptr ? 0 : -1; part < args.pages; ++part) {
    const float own_lse = args.part_lse(part, at.lse_at, rows);
    const float share = own_lse == -AV_INFINITY ? 0.0f : expf(own_lse - lse);
    const float* value = args.part_out(part, at.row, rows);
    const long long to = part * rows + at.row;
    float towards = 0.0f, row = 0.0f;
    for (int c = lane; c < args.channels; c += 32) {
      const float g = widen(grad[c]);
      float passed = share == 0.0f ? 0.0f : share * g;
      if (share != 0.0f) towards += g * (value[c] - widen(out[c]));
      if (part < 0) {
        if (active && args.grad_init_out != nullptr) args.grad_init_out[at.row * args.channels + c] = passed;
        continue;
      }
      if (args.grad_page_out != nullptr) passed += args.grad_page_out[to * args.channels + c];
      if (active) args.new_part_grad[to * args.channels + c] = passed;
      row += passed * value[c];
    }
    towards = warp_sum(towards);
    row = warp_sum(row);
    if (lane != 0 || !active) continue;
    // What saw nothing has a grad_lse of NaN after a logaddexp.
    float lse_grad =
        share == 0.0f ? 0.0f : share * (towards + (args.grad_lse == nullptr ? 0.0f : args.grad_lse[at.lse_at]));
    if (part < 0) {
      if (args.grad_init_lse != nullptr) args.grad_init_lse[at.lse_at] = lse_grad;
      continue;
    }
    const long long lse_to = part * rows + at.lse_at;
    if (args.grad_page_lse != nullptr) lse_grad += args.grad_page_lse[lse_to];
    args.row[lse_to] = row - (own_lse == -AV_INFINITY ? 0.0f : lse_grad);
  }
}

}  // namespace avis::gpu
