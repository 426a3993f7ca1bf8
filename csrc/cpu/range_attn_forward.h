// Forward: six queries at a time against all keys of their group.
//
// Scores of up to kChunk keys stay in the first cache between the two products; longer rows are taken chunk by chunk
// with the running maximum and sum of online softmax (Milakov and Gimelshein, 2018). What a query computes depends on
// its group alone: not on its place among the six, on other groups, or on the thread.
#pragma once

#include "range_attn_pack.h"

namespace avis::AVIS_ISA {

constexpr std::int64_t kChunk = 1024;
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
    q = take(kRows * padded);
    scores = take(kRows * kScoreRow);
    out = take(kRows * padded);
    floats = at;
  }
};

// Running softmax of one query, in base 2.
struct Online {
  float max = -kInfinity, sum = 0;
};

// Scores of six queries with `count` keys from `first` on; returns in `max` the largest of each.
AVIS_INLINE void score(const ForwardRoom& room, std::int64_t padded, std::int64_t first, std::int64_t count,
                       float (&max)[kRows]) {
  Vf highest[kRows];
  for (auto& x : highest) x = splat(-kInfinity);
  for (std::int64_t key = 0; key < count; key += kTile) {
    Tile<2> tile;
    tile.add_product(room.q, padded, 1, room.k_tiles + (first + key) * padded, kTile, padded);
    const Vf bias[2] = {load(room.bias + first + key), load(room.bias + first + key + kLanes)};
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        tile.c[r][i] += bias[i];
        highest[r] = avis::AVIS_ISA::max(tile.c[r][i], highest[r]);
      }
    tile.put(room.scores + key, kScoreRow);
  }
  for (int r = 0; r < kRows; ++r) max[r] = largest(highest[r]);
}

// Turns scores into exp2(score - maximum) and brings what was summed before to the new maximum.
AVIS_INLINE void exponentiate(float* scores, std::int64_t count, float chunk_max, Online* online, float* out,
                              std::int64_t padded) {
  const float max = chunk_max > online->max ? chunk_max : online->max;
  const Vf shift = splat(max == -kInfinity ? 0.0f : max);
  Vf sums[2] = {splat(0.0f), splat(0.0f)};
  for (std::int64_t key = 0; key < count; key += kTile)
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vf p = exp2(load(scores + key + i * kLanes) - shift);
      store(scores + key + i * kLanes, p);
      sums[i] += p;
    }
  const float earlier = exp2(splat(online->max) - shift)[0];
  for (std::int64_t c = 0; c < padded; ++c) out[c] *= earlier;
  online->sum = online->sum * earlier + sum(sums[0] + sums[1]);
  online->max = max;
}

template <class T, class Out>
void range_attn_forward_fast(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                             void* scratch) {
  const std::int64_t padded = round_up(args.channels, kLanes);
  const ForwardRoom room(static_cast<float*>(scratch), group.seen, padded);
  pack_tiles(natural<T>(args, args.k, batch, head, group, padded, room.k_rows), group.seen, padded, room.k_tiles);
  const Rows values = natural<T>(args, args.v, batch, head, group, padded, room.v_rows);
  pack_bias(args, batch, group, room.bias, round_up(group.seen, kTile));
  auto* lse = static_cast<float*>(args.lse) + (batch * args.heads + head) * args.queries;
  auto* out = static_cast<Out*>(args.out);

  for (std::int64_t first_query = group.q_first; first_query < group.q_last; first_query += kRows) {
    const std::int64_t left = group.q_last - first_query, queries = left < kRows ? left : kRows;
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t query = first_query + (r < queries ? r : 0);
      copy_row(token<T>(args.q, batch, head, query), args.channels, static_cast<float>(args.scale * kLog2E),
               room.q + r * padded, padded);
    }
    Online online[kRows];
    __builtin_memset(room.out, 0, kRows * padded * sizeof(float));
    for (std::int64_t first = 0; first < group.seen; first += kChunk) {
      const std::int64_t count = group.seen - first < kChunk ? group.seen - first : kChunk;
      float max[kRows];
      score(room, padded, first, count, max);
      for (int r = 0; r < kRows; ++r)
        exponentiate(room.scores + r * kScoreRow, count, max[r], &online[r], room.out + r * padded, padded);
      add_product(room.out, padded, padded, room.scores, kScoreRow, 1, values.data + first * values.stride,
                  values.stride, count);
    }
    for (std::int64_t r = 0; r < queries; ++r) {
      const float sum = online[r].sum, inverse = sum == 0 ? 0 : 1 / sum;  // NaN stays
      Out* row = out + ((batch * args.queries + first_query + r) * args.heads + head) * args.channels;
      for (std::int64_t c = 0; c < args.channels; ++c) narrow(room.out[r * padded + c] * inverse, row + c);
      lse[first_query + r] = sum != 0 ? (online[r].max + __builtin_log2f(sum)) * static_cast<float>(kLn2) : -kInfinity;
    }
  }
}

}  // namespace avis::AVIS_ISA
