// Forward: a block of queries at a time against all keys of their group.
//
// Scores of up to kChunk keys stay in the first cache between the two products; longer rows are taken chunk by chunk
// with the running maximum and sum of online softmax (Milakov and Gimelshein, 2018). What a query computes depends on
// its group alone: not on its place in the block, on other groups, or on the thread.
#pragma once

#include "range_attn_pack.h"

namespace avis::AVIS_ISA {

// 24 KB of scores for either block: twelve queries, or six.
constexpr std::int64_t kChunk = kManyRegisters ? 512 : 1024;
// From one row of scores to the next; a power of two would put all rows into the same few sets of the cache.
constexpr std::int64_t kScoreRow = kChunk + 32;

struct ForwardRoom {
  float *k_tiles, *k_rows, *v_rows, *bias, *q, *scores, *out;
  std::int64_t floats;

  // With `base` null, only the size counts.
  ForwardRoom(float* base, std::int64_t seen, std::int64_t padded) {
    const std::int64_t places = round_up(seen, kTile);
    std::int64_t at = 0;
    const auto take = [&](std::int64_t n) {
      float* p = base == nullptr ? nullptr : base + at;
      at += round_up(n, 16);
      return p;
    };
    k_tiles = take(places * padded);
    k_rows = take(seen * padded);
    v_rows = take(seen * padded);
    bias = take(places);
    q = take(kBlock * padded);
    scores = take(kBlock * kScoreRow);
    out = take(kBlock * padded);
    floats = at;
  }
};

// Running softmax of one query, in base 2.
struct Online {
  float max = -kInfinity, sum = 0;
};

// Scores of `rows` queries with `count` keys from `first` on; returns in `max` the largest of each.
template <int rows>
AVIS_INLINE void score(const ForwardRoom& room, std::int64_t padded, std::int64_t first, std::int64_t count,
                       float (&max)[rows]) {
  alignas(64) Vf highest[rows];
  for (auto& x : highest) x = splat(-kInfinity);
  for (std::int64_t key = 0; key < count; key += kTile) {
    for (int top = 0; top < rows; top += kRows) {
      Tile<kRows, kColumns> tile;
      tile.add_product(room.q + top * padded, padded, 1, room.k_tiles + (first + key) * padded, kTile, padded);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < kColumns; ++i) {
          // Not before the product: held through it, biases take registers, and GCC reads keys anew for every row.
          tile.c[r][i] += load(room.bias + first + key + i * kLanes);
          highest[top + r] = avis::AVIS_ISA::max(tile.c[r][i], highest[top + r]);
        }
      tile.put(room.scores + top * kScoreRow + key, kScoreRow);
    }
  }
  for (int r = 0; r < rows; ++r) max[r] = largest(highest[r]);
}

// Turns scores into exp2(score - maximum) and brings what was summed before to the new maximum.
AVIS_INLINE void exponentiate(float* scores, std::int64_t count, float chunk_max, Online* online, float* out,
                              std::int64_t padded) {
  const float max = chunk_max > online->max ? chunk_max : online->max;
  const Vf shift = splat(max == -kInfinity ? 0.0f : max);
  Vf sums[kColumns] = {};
  for (std::int64_t key = 0; key < count; key += kTile)
#pragma GCC unroll 4
    for (int i = 0; i < kColumns; ++i) {
      const Vf p = exp2(load(scores + key + i * kLanes) - shift);
      store(scores + key + i * kLanes, p);
      sums[i] += p;
    }
  for (int i = kColumns - 1; i > 0; --i) sums[i / 2] += sums[i];
  const float earlier = exp2(splat(online->max) - shift)[0];
  for (std::int64_t c = 0; c < padded; ++c) out[c] *= earlier;
  online->sum = online->sum * earlier + sum(sums[0]);
  online->max = max;
}

// The first `queries` of `rows` queries; the other places are filled up with the first of them.
template <int rows, class T, class Out>
AVIS_INLINE void attend(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                        const ForwardRoom& room, const Rows& values, std::int64_t first_query, std::int64_t queries) {
  const std::int64_t padded = round_up(args.channels, kLanes);
  for (int r = 0; r < rows; ++r) {
    const std::int64_t query = first_query + (r < queries ? r : 0);
    copy_row(token<T>(args.q, batch, head, query), args.channels, static_cast<float>(args.scale * kLog2E),
             room.q + r * padded, padded);
  }
  Online online[rows];
  __builtin_memset(room.out, 0, rows * padded * sizeof(float));
  for (std::int64_t first = 0; first < group.seen; first += kChunk) {
    const std::int64_t count = group.seen - first < kChunk ? group.seen - first : kChunk;
    float max[rows];
    score<rows>(room, padded, first, count, max);
    for (int r = 0; r < rows; ++r)
      exponentiate(room.scores + r * kScoreRow, count, max[r], &online[r], room.out + r * padded, padded);
    add_product<rows>(room.out, padded, padded, room.scores, kScoreRow, 1, values.data + first * values.stride,
                      values.stride, count);
  }
  auto* lse = static_cast<float*>(args.lse) + (batch * args.heads + head) * args.queries;
  auto* out = static_cast<Out*>(args.out);
  for (std::int64_t r = 0; r < queries; ++r) {
    const float sum = online[r].sum, inverse = sum == 0 ? 0 : 1 / sum;  // NaN stays
    Out* row = out + ((batch * args.queries + first_query + r) * args.heads + head) * args.channels;
    for (std::int64_t c = 0; c < args.channels; ++c) narrow(room.out[r * padded + c] * inverse, row + c);
    lse[first_query + r] = sum != 0 ? (online[r].max + __builtin_log2f(sum)) * static_cast<float>(kLn2) : -kInfinity;
  }
}

template <class T, class Out>
void range_attn_forward_fast(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                             void* scratch) {
  const std::int64_t padded = round_up(args.channels, kLanes);
  const ForwardRoom room(static_cast<float*>(scratch), group.seen, padded);
  pack_tiles(natural<T>(args, args.k, batch, head, group, padded, room.k_rows), group.seen, padded, room.k_tiles);
  const Rows values = natural<T>(args, args.v, batch, head, group, padded, room.v_rows);
  pack_bias(args, batch, group, room.bias, round_up(group.seen, kTile));
  for (std::int64_t query = group.q_first; query < group.q_last;) {
    const std::int64_t left = group.q_last - query;
    if (left > kRows) {
      attend<kBlock, T, Out>(args, batch, head, group, room, values, query, left < kBlock ? left : kBlock);
      query += kBlock;
    } else {
      attend<kRows, T, Out>(args, batch, head, group, room, values, query, left);
      query += kRows;
    }
  }
}

}  // namespace avis::AVIS_ISA
