// Backward: five products over blocks of queries and chunks of keys, probabilities computed anew from the lse.
//
//     P = exp(Q K' - lse)    dP = dO V'    dS = P (dP - row)    dQ = dS K    dK = dS' Q    dV = P' dO
//
// dK and dV of a chunk stay close while all queries pass by. One task has a head and a group to itself and adds in a
// fixed order, so results do not depend on threads. Source: FlashAttention-2 (Dao, 2023), section 3.1.
#pragma once

#include "range_attn_pack.h"

namespace avis::AVIS_ISA {

constexpr std::int64_t kKeyChunk = kManyRegisters ? 384 : 288;  // a multiple of the tile, and of kBlock
constexpr std::int64_t kQueryBlock = 48;                        // likewise of kBlock
static_assert(kKeyChunk % kTile == 0 && kKeyChunk % kBlock == 0 && kQueryBlock % kBlock == 0);

struct BackwardRoom {
  float *k_tiles, *v_tiles, *k_rows, *v_rows, *bias, *q, *grad, *lse, *row, *dq, *dk, *dv, *dbias, *p, *ds;
  std::int64_t floats;

  BackwardRoom(float* base, std::int64_t queries, std::int64_t seen, std::int64_t padded) {
    const std::int64_t rows = round_up(queries, kQueryBlock), places = round_up(seen, kKeyChunk);
    std::int64_t at = 0;
    const auto take = [&](std::int64_t n) {
      float* p = base == nullptr ? nullptr : base + at;
      at += round_up(n, 16);
      return p;
    };
    k_tiles = take(places * padded);
    v_tiles = take(places * padded);
    k_rows = take(seen * padded);
    v_rows = take(seen * padded);
    bias = take(places);
    q = take(rows * padded);
    grad = take(rows * padded);
    lse = take(rows);
    row = take(rows);
    dq = take(rows * padded);
    dk = take(places * padded);
    dv = take(places * padded);
    dbias = take(places);
    p = take(kQueryBlock * kKeyChunk);
    ds = take(kQueryBlock * kKeyChunk);
    floats = at;
  }
};

// P and dS of kRows queries, from `query` on, with a chunk of keys.
AVIS_INLINE void differentiate(const BackwardRoom& room, std::int64_t padded, std::int64_t query, std::int64_t first,
                               std::int64_t count, float* p, float* ds) {
  for (std::int64_t key = 0; key < count; key += kTile) {
    Tile<kRows, kColumns> scores, dp;
    scores.add_product(room.q + query * padded, padded, 1, room.k_tiles + (first + key) * padded, kTile, padded);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i)
        scores.c[r][i] = exp2(scores.c[r][i] + load(room.bias + first + key + i * kLanes) - splat(room.lse[query + r]));
    scores.put(p + key, kKeyChunk);
    dp.add_product(room.grad + query * padded, padded, 1, room.v_tiles + (first + key) * padded, kTile, padded);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i)
        dp.c[r][i] = load(p + r * kKeyChunk + key + i * kLanes) * (dp.c[r][i] - splat(room.row[query + r]));
    dp.put(ds + key, kKeyChunk);
  }
}

// All queries of the group in the room: scaled for base 2, their gradients, lse and row; zeros behind the last.
template <class T>
AVIS_INLINE void pack_queries(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                              std::int64_t padded, const BackwardRoom& room) {
  const std::int64_t queries = group.q_last - group.q_first, rows = round_up(queries, kQueryBlock);
  const std::int64_t at = (batch * args.heads + head) * args.queries + group.q_first;
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t query = group.q_first + i;
    copy_row(token<T>(args.q, batch, head, query), args.channels, static_cast<float>(args.scale * kLog2E),
             room.q + i * padded, padded);
    copy_row(token<float>(args.grad_out, batch, head, query), args.channels, 1.0f, room.grad + i * padded, padded);
    const float lse = static_cast<const float*>(args.lse)[at + i];
    // A query without keys has P = 0; +inf here makes it so.
    room.lse[i] = lse == -kInfinity ? kInfinity : lse * static_cast<float>(kLog2E);
    room.row[i] = static_cast<const float*>(args.row)[at + i];
  }
  const std::int64_t missing = rows - queries;
  __builtin_memset(room.q + queries * padded, 0, missing * padded * sizeof(float));
  __builtin_memset(room.grad + queries * padded, 0, missing * padded * sizeof(float));
  for (std::int64_t i = queries; i < rows; ++i) {
    room.lse[i] = kInfinity;
    room.row[i] = 0;
  }
}

// to[...] += from * factor, for one row of the result.
AVIS_INLINE void add_row(const float* from, float factor, std::int64_t channels, float* to) {
  for (std::int64_t c = 0; c < channels; ++c) to[c] += from[c] * factor;
}

template <class T>
void range_attn_backward_fast(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                              void* scratch) {
  const std::int64_t padded = round_up(args.channels, kLanes), queries = group.q_last - group.q_first;
  const BackwardRoom room(static_cast<float*>(scratch), queries, group.seen, padded);
  const std::int64_t rows = round_up(queries, kQueryBlock), places = round_up(group.seen, kKeyChunk);
  const Rows keys = natural<T>(args, args.k, batch, head, group, padded, room.k_rows);
  pack_tiles(keys, group.seen, padded, room.k_tiles);
  pack_tiles(natural<T>(args, args.v, batch, head, group, padded, room.v_rows), group.seen, padded, room.v_tiles);
  pack_bias(args, batch, group, room.bias, places);
  pack_queries<T>(args, batch, head, group, padded, room);
  __builtin_memset(room.dq, 0, rows * padded * sizeof(float));
  __builtin_memset(room.dk, 0, places * padded * sizeof(float));
  __builtin_memset(room.dv, 0, places * padded * sizeof(float));
  __builtin_memset(room.dbias, 0, places * sizeof(float));
  // Columns behind the last key of a chunk belong to no tile, but to a block of keys.
  __builtin_memset(room.p, 0, kQueryBlock * kKeyChunk * sizeof(float));
  __builtin_memset(room.ds, 0, kQueryBlock * kKeyChunk * sizeof(float));

  for (std::int64_t first = 0; first < group.seen; first += kKeyChunk) {
    const std::int64_t left = group.seen - first, count = left < kKeyChunk ? left : kKeyChunk;
    if (count < kKeyChunk) {
      __builtin_memset(room.p, 0, kQueryBlock * kKeyChunk * sizeof(float));
      __builtin_memset(room.ds, 0, kQueryBlock * kKeyChunk * sizeof(float));
    }
    for (std::int64_t block = 0; block < rows; block += kQueryBlock) {
      for (std::int64_t r = 0; r < kQueryBlock; r += kRows)
        differentiate(room, padded, block + r, first, count, room.p + r * kKeyChunk, room.ds + r * kKeyChunk);
      if (args.dq != nullptr)
        for (std::int64_t r = 0; r < kQueryBlock; r += kBlock)
          add_product<kBlock>(room.dq + (block + r) * padded, padded, padded, room.ds + r * kKeyChunk, kKeyChunk, 1,
                              keys.data + first * keys.stride, keys.stride, count);
      for (std::int64_t key = 0; key < count; key += kBlock) {
        if (args.dk != nullptr)
          add_product<kBlock>(room.dk + (first + key) * padded, padded, padded, room.ds + key, 1, kKeyChunk,
                              room.q + block * padded, padded, kQueryBlock);
        if (args.dv != nullptr)
          add_product<kBlock>(room.dv + (first + key) * padded, padded, padded, room.p + key, 1, kKeyChunk,
                              room.grad + block * padded, padded, kQueryBlock);
      }
      if (args.dbias != nullptr)
        for (std::int64_t r = 0; r < kQueryBlock; ++r)
          for (std::int64_t key = 0; key < count; ++key) room.dbias[first + key] += room.ds[r * kKeyChunk + key];
    }
  }

  const std::int64_t channels = args.channels;
  if (args.dq != nullptr)
    for (std::int64_t i = 0; i < queries; ++i) {
      const std::int64_t at = (batch * args.queries + group.q_first + i) * args.heads + head;
      add_row(room.dq + i * padded, static_cast<float>(args.scale), channels,
              static_cast<float*>(args.dq) + at * channels);
    }
  each_key(group, [&](std::int64_t key, std::int64_t place) {
    const std::int64_t at = ((batch * args.keys + key) * args.heads + head) * channels;
    // The packed queries carry log2(e) besides the scale.
    if (args.dk != nullptr)
      add_row(room.dk + place * padded, static_cast<float>(kLn2), channels, static_cast<float*>(args.dk) + at);
    if (args.dv != nullptr) add_row(room.dv + place * padded, 1.0f, channels, static_cast<float*>(args.dv) + at);
    if (args.dbias != nullptr)
      static_cast<float*>(args.dbias)[(batch * args.heads + head) * args.keys + key] += room.dbias[place];
  });
}

}  // namespace avis::AVIS_ISA
