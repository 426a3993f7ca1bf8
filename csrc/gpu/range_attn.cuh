// Attention over ranges of keys, forward: whole groups, or one page at a time with partial results.
//
// A block has a tile of queries of one group and one head and walks over the group's keys with online softmax (Milakov
// and Gimelshein, 2018). Keys and values take turns in one tile of shared memory. What a query computes depends on its
// group alone: no atomics, no split of the keys other than the caller's pages, the same bits every time.
#pragma once

#include "tile.cuh"

namespace avis::gpu {

// Running softmax of one query, in base 2; all threads of its half warp hold the same.
struct Online {
  float max = -AV_INFINITY, sum = 0.0f;

  // Takes in the scores of a tile, turns them into weights, and returns what earlier results must be scaled by.
  template <int kColumns>
  AV_DEVICE float take(float (&scores)[kColumns]) {
    float highest = scores[0];
    AV_UNROLL
    for (int j = 1; j < kColumns; ++j) highest = fmaxf(highest, scores[j]);
    highest = fmaxf(max, half_warp_max(highest));
    const float shift = highest == -AV_INFINITY ? 0.0f : highest;
    float total = 0.0f;
    AV_UNROLL
    for (int j = 0; j < kColumns; ++j) total += scores[j] = exp2f(scores[j] - shift);
    const float earlier = exp2f(max - shift);
    sum = sum * earlier + half_warp_sum(total);
    max = highest;
    return earlier;
  }
  AV_DEVICE float lse() const { return sum == 0.0f ? -AV_INFINITY : (max + log2f(sum)) * kLn2; }
};

AV_CONSTANT int forward_columns(int channels) { return channels > 64 ? 2 : 4; }

// kPaged: block z has page z of the table, all queries see it, and results are floats of that page.
template <class T, int kChannels, int kRows, bool kPaged>
AV_KERNEL(kThreads, kRows > 2 ? 4 : 1)
range_forward(AV_ARGUMENT(RangeArgs) args) {
  constexpr int kColumns = forward_columns(kChannels), kKeys = kAcross * kColumns, kQueries = kDown * kRows;
  constexpr int kOwn = kChannels / kAcross;
  AV_SHARED(float, queries, kQueries*(kChannels + 4));
  AV_SHARED(float, tokens, kKeys*(kChannels + 4));
  AV_SHARED(float, weights, kQueries*(kKeys + 4));
  const int x = static_cast<int>(threadIdx.x) % kAcross, y = static_cast<int>(threadIdx.x) / kAcross;
  const int batch = static_cast<int>(blockIdx.y) / args.heads, head = static_cast<int>(blockIdx.y) % args.heads;
  int first = static_cast<int>(blockIdx.x) * kQueries, last = args.queries;
  int range = static_cast<int>(blockIdx.z), ranges = 1;
  if constexpr (!kPaged) {
    const int4 tile = *reinterpret_cast<const int4*>(args.tiles + 4 * blockIdx.x);
    first = tile.x;
    last = tile.y;
    range = tile.z;
    ranges = tile.w;
  }
  stage<T, kQueries, kChannels>(args.q, args.wide_q, batch, head, first, last - first, args.channels,
                                args.scale * kLog2E, queries);

  Online online[kRows];
  float out[kRows][kOwn] = {};
  for (const int end = range + ranges; range < end; ++range) {
    // Nobody checked a page table on the host: it changes under a captured graph.
    const int start = max(args.ranges[2 * range], 0), stop = min(args.ranges[2 * range + 1], args.keys);
    for (int key = start; key < stop; key += kKeys) {
      const int count = stop - key;
      __syncthreads();  // the last tile's values have been read
      stage<T, kKeys, kChannels>(args.k, args.wide_k, batch, head, key, count, args.channels, 1.0f, tokens);
      __syncthreads();
      float scores[kRows][kColumns] = {};
      add_dots<kRows, kColumns, kChannels>(queries + y * kRows * (kChannels + 4), tokens, x, scores);
      float bias[kColumns];
      AV_UNROLL
      for (int j = 0; j < kColumns; ++j)
        bias[j] = x + kAcross * j < count ? bias_of(args, batch, key + x + kAcross * j) : -AV_INFINITY;
      AV_UNROLL
      for (int r = 0; r < kRows; ++r) {
        AV_UNROLL
        for (int j = 0; j < kColumns; ++j) scores[r][j] += bias[j];
        const float earlier = online[r].take(scores[r]);
        AV_UNROLL
        for (int c = 0; c < kOwn; ++c) out[r][c] *= earlier;
        AV_UNROLL
        for (int j = 0; j < kColumns; ++j) weights[(y * kRows + r) * (kKeys + 4) + x + kAcross * j] = scores[r][j];
      }
      __syncthreads();  // the keys have been read
      stage<T, kKeys, kChannels>(args.v, args.wide_v, batch, head, key, count, args.channels, 1.0f, tokens);
      __syncthreads();
      add_weighted<kRows, kKeys, kChannels>(weights + y * kRows * (kKeys + 4), tokens, x, out);
    }
  }

  const long long page = kPaged ? static_cast<long long>(blockIdx.z) * args.batch : 0;
  AV_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int query = first + y * kRows + r;
    if (query >= last) continue;
    const float inverse = online[r].sum == 0.0f ? 0.0f : 1.0f / online[r].sum;  // NaN stays
    AV_UNROLL
    for (int c = 0; c < kOwn; ++c) out[r][c] *= inverse;
    const long long row = ((page + batch) * args.queries + query) * args.heads + head;
    if constexpr (kPaged)
      store_channels(out[r], args.page_out + row * args.channels, x * kOwn, args.channels);
    else
      store_channels(out[r], static_cast<T*>(args.out) + row * args.channels, x * kOwn, args.channels);
    float* lse = kPaged ? args.page_lse : args.lse;
    if (x == 0) lse[((page + batch) * args.heads + head) * args.queries + query] = online[r].lse();
  }
}

}  // namespace avis::gpu
