// Attention over ranges of keys, backward: probabilities computed anew from the lse, in two kernels without atomics.
//
//     P = exp(Q K' - lse)    dP = dO V'    dS = P (dP - row)    dQ = dS K    dK = dS' Q    dV = P' dO
//
// range_dq has a tile of queries and walks over its keys, as the forward does. range_dkv has a tile of keys and walks
// over the queries that see it: plan.h cuts the keys wherever a range begins or ends, so that all keys of a tile are
// seen by the same spans of queries. Source: FlashAttention-2 (Dao, 2023), section 3.1.
//
// Paged, each page is an attention of its own, with its own lse, dO (float) and row, and gradients add up over pages.
// As nobody on the host knows the page table, a tile of keys asks every page which of its keys lie in it.
#pragma once

#include "tile.cuh"

namespace avis::gpu {

constexpr int kBackRows = 2, kBackQueries = kDown * kBackRows;
// Four tiles of channels must fit into shared memory together: fewer keys where channels are many.
AV_CONSTANT int backward_columns(int channels) { return channels > 64 ? 1 : channels > 32 ? 2 : 4; }
AV_CONSTANT int backward_keys(int channels) { return kAcross * backward_columns(channels); }

// row = sum of grad_out * out, less the gradient of the lse; a warp has one (batch, query, head).
template <class T>
AV_KERNEL(kThreads, 8)
range_row(AV_ARGUMENT(RangeArgs) args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const long long rows = static_cast<long long>(args.batch) * args.queries * args.heads;
  const long long own = static_cast<long long>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const long long row = own < rows ? own : rows - 1;  // all lanes of the last warps take part in the shuffles
  const int head = static_cast<int>(row % args.heads), query = static_cast<int>(row / args.heads % args.queries);
  const int batch = static_cast<int>(row / args.heads / args.queries);
  const T* grad = static_cast<const T*>(args.grad_out.data) + token_at(args.grad_out, batch, head, query);
  const T* out = static_cast<const T*>(args.out) + row * args.channels;
  float sum = 0.0f;
  for (int c = lane; c < args.channels; c += 32) sum += widen(grad[c]) * widen(out[c]);
  sum = warp_sum(sum);
  if (lane != 0 || own >= rows) return;
  const long long at = (static_cast<long long>(batch) * args.heads + head) * args.queries + query;
  args.row[at] = sum - (args.grad_lse == nullptr || args.lse[at] == -AV_INFINITY ? 0.0f : args.grad_lse[at]);
}

// What a thread knows of its two queries; +inf as the lse makes the probabilities of a query without keys 0.
struct BackwardQuery {
  float lse = AV_INFINITY, row = 0.0f;

  // `plane` counts pages and images together.
  AV_DEVICE static BackwardQuery of(const RangeArgs& args, const float* lse, int plane, int head, int query, int last) {
    BackwardQuery known;
    if (query >= last) return known;
    const long long at = (static_cast<long long>(plane) * args.heads + head) * args.queries + query;
    known.lse = lse[at] == -AV_INFINITY ? AV_INFINITY : lse[at] * kLog2E;
    known.row = args.row[at];
    return known;
  }
};

// Where the gradients of the results lie: those of page `page`, or the caller's.
template <bool kPaged>
AV_DEVICE AvTokens grads_of(const RangeArgs& args, int page) {
  if constexpr (kPaged) {
    const long long per_token = static_cast<long long>(args.heads) * args.channels, image = args.queries * per_token;
    return {args.part_grad + page * args.batch * image, image, per_token, args.channels};
  }
  return args.grad_out;
}
template <class T, bool kPaged>
struct GradType {
  using type = T;
};
template <class T>
struct GradType<T, true> {
  using type = float;
};

// P and dS of the thread's queries and keys, into tiles [queries][keys + 4]; `p` may be null. Of the tile's keys, those
// from `from` to `to` are seen.
template <int kColumns, int kChannels>
AV_DEVICE void differentiate(const RangeArgs& args, int batch, int key, int from, int to, const float* queries,
                             const float* grads, const float* keys, const float* values,
                             const BackwardQuery (&known)[kBackRows], float* p, float* ds) {
  constexpr int kKeys = kAcross * kColumns;
  const int x = static_cast<int>(threadIdx.x) % kAcross, y = static_cast<int>(threadIdx.x) / kAcross;
  float scores[kBackRows][kColumns] = {}, dp[kBackRows][kColumns] = {};
  add_dots<kBackRows, kColumns, kChannels>(queries + y * kBackRows * (kChannels + 4), keys, x, scores);
  add_dots<kBackRows, kColumns, kChannels>(grads + y * kBackRows * (kChannels + 4), values, x, dp);
  AV_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int place = x + kAcross * j;
    const float bias = place >= from && place < to ? bias_of(args, batch, key + place) : -AV_INFINITY;
    AV_UNROLL
    for (int r = 0; r < kBackRows; ++r) {
      // A key that is taken away may hold anything: 0 times it must be 0.
      const float probability = bias == -AV_INFINITY ? 0.0f : exp2f(scores[r][j] + bias - known[r].lse);
      const int at = (y * kBackRows + r) * (kKeys + 4) + place;
      if (p != nullptr) p[at] = probability;
      ds[at] = probability == 0.0f ? 0.0f : probability * (dp[r][j] - known[r].row);
    }
  }
}

template <class T, int kChannels, bool kPaged>
AV_KERNEL(kThreads, 4)
range_dq(AV_ARGUMENT(RangeArgs) args) {
  using Grad = typename GradType<T, kPaged>::type;
  constexpr int kColumns = backward_columns(kChannels), kKeys = kAcross * kColumns, kOwn = kChannels / kAcross;
  AV_SHARED(float, queries, kBackQueries*(kChannels + 4));
  AV_SHARED(float, grads, kBackQueries*(kChannels + 4));
  AV_SHARED(float, keys, kKeys*(kChannels + 4));
  AV_SHARED(float, values, kKeys*(kChannels + 4));
  AV_SHARED(float, ds, kBackQueries*(kKeys + 4));
  const int x = static_cast<int>(threadIdx.x) % kAcross, y = static_cast<int>(threadIdx.x) / kAcross;
  const int batch = static_cast<int>(blockIdx.y) / args.heads, head = static_cast<int>(blockIdx.y) % args.heads;
  int first = static_cast<int>(blockIdx.x) * kBackQueries, last = args.queries, range = 0, end = args.pages;
  if constexpr (!kPaged) {
    const int4 tile = *reinterpret_cast<const int4*>(args.tiles + 4 * blockIdx.x);
    first = tile.x;
    last = tile.y;
    range = tile.z;
    end = tile.z + tile.w;
  }
  stage<T, kBackQueries, kChannels>(args.q, args.wide_q, batch, head, first, last - first, args.channels,
                                    args.scale * kLog2E, queries);
  BackwardQuery known[kBackRows];
  bool first_tile = true;
  float dq[kBackRows][kOwn] = {};
  for (; range < end; ++range) {
    const int start = max(args.ranges[2 * range], 0), stop = min(args.ranges[2 * range + 1], args.keys);
    if (kPaged || first_tile) {  // other ranges of a group share what the first one needed
      __syncthreads();           // the last tile has been read
      stage<Grad, kBackQueries, kChannels>(grads_of<kPaged>(args, range), args.wide_grad, batch, head, first,
                                           last - first, args.channels, 1.0f, grads);
      const float* lse = kPaged ? args.page_lse : args.lse;
      AV_UNROLL
      for (int r = 0; r < kBackRows; ++r)
        known[r] = BackwardQuery::of(args, lse, kPaged ? range * args.batch + batch : batch, head,
                                     first + y * kBackRows + r, last);
      first_tile = false;
    }
    for (int key = start; key < stop; key += kKeys) {
      __syncthreads();  // the last tile has been read
      stage<T, kKeys, kChannels>(args.k, args.wide_k, batch, head, key, stop - key, args.channels, 1.0f, keys);
      stage<T, kKeys, kChannels>(args.v, args.wide_v, batch, head, key, stop - key, args.channels, 1.0f, values);
      __syncthreads();
      differentiate<kColumns, kChannels>(args, batch, key, 0, stop - key, queries, grads, keys, values, known, nullptr,
                                         ds);
      __syncwarp();  // a row of dS is written and read by one half of a warp
      add_weighted<kBackRows, kKeys, kChannels>(ds + y * kBackRows * (kKeys + 4), keys, x, dq);
    }
  }
  AV_UNROLL
  for (int r = 0; r < kBackRows; ++r) {
    const int query = first + y * kBackRows + r;
    if (query >= last) continue;
    AV_UNROLL
    for (int c = 0; c < kOwn; ++c) dq[r][c] *= args.scale;
    const long long row = (static_cast<long long>(batch) * args.queries + query) * args.heads + head;
    store_channels(dq[r], static_cast<T*>(args.dq) + row * args.channels, x * kOwn, args.channels);
  }
}

// Sums over the queries of a tile, for the gradients of keys: threads stand anew, in 16 rows of 8. Row y has the keys
// y, y + 16, ..., column x the channels 4 x ... 4 x + 3, and 32 further.
template <int kColumns, int kQuads>
struct KeySums {
  float dk[kColumns][kQuads][4] = {}, dv[kColumns][kQuads][4] = {}, dbias[kColumns] = {};

  AV_DEVICE void add(const float* queries, const float* grads, const float* p, const float* ds, int x, int y) {
    constexpr int kStride = 32 * kQuads + 4, kKeys = kAcross * kColumns;
    AV_UNROLL_BY(2)
    for (int query = 0; query < kBackQueries; ++query) {
      AV_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const float probability = p[query * (kKeys + 4) + y + kAcross * j];
        const float slope = ds[query * (kKeys + 4) + y + kAcross * j];
        dbias[j] += slope;
        AV_UNROLL
        for (int i = 0; i < kQuads; ++i) {
          const int at = query * kStride + 4 * x + 32 * i;
          add_scaled(slope, *reinterpret_cast<const float4*>(queries + at), dk[j][i]);
          add_scaled(probability, *reinterpret_cast<const float4*>(grads + at), dv[j][i]);
        }
      }
    }
  }

  AV_DEVICE static void add_scaled(float factor, float4 x, float (&to)[4]) {
    to[0] += factor * x.x;
    to[1] += factor * x.y;
    to[2] += factor * x.z;
    to[3] += factor * x.w;
  }
};

template <class T, int kChannels, bool kPaged>
AV_KERNEL(kThreads, 3)
range_dkv(AV_ARGUMENT(RangeArgs) args) {
  using Grad = typename GradType<T, kPaged>::type;
  constexpr int kColumns = backward_columns(kChannels), kKeys = kAcross * kColumns, kQuads = kChannels / 32;
  AV_SHARED(float, queries, kBackQueries*(kChannels + 4));
  AV_SHARED(float, grads, kBackQueries*(kChannels + 4));
  AV_SHARED(float, keys, kKeys*(kChannels + 4));
  AV_SHARED(float, values, kKeys*(kChannels + 4));
  AV_SHARED(float, p, kBackQueries*(kKeys + 4));
  AV_SHARED(float, ds, kBackQueries*(kKeys + 4));
  const int x = static_cast<int>(threadIdx.x) % 8, y = static_cast<int>(threadIdx.x) / 8;
  const int own_row = static_cast<int>(threadIdx.x) / kAcross * kBackRows;
  const int batch = static_cast<int>(blockIdx.y) / args.heads, head = static_cast<int>(blockIdx.y) % args.heads;
  int first_key = static_cast<int>(blockIdx.x) * kKeys, last_key = min(first_key + kKeys, args.keys);
  int span = 0, end = args.pages;
  if constexpr (!kPaged) {
    const int4 tile = *reinterpret_cast<const int4*>(args.key_tiles + 4 * blockIdx.x);
    first_key = tile.x;
    last_key = tile.y;
    span = tile.z;
    end = tile.z + tile.w;
  }
  const int count = last_key - first_key;
  stage<T, kKeys, kChannels>(args.k, args.wide_k, batch, head, first_key, count, args.channels, 1.0f, keys);
  stage<T, kKeys, kChannels>(args.v, args.wide_v, batch, head, first_key, count, args.channels, 1.0f, values);

  KeySums<kColumns, kQuads> sums;
  for (; span < end; ++span) {
    int from = 0, to = count, begin = 0, stop = args.queries;
    if constexpr (kPaged) {
      from = max(args.ranges[2 * span], first_key) - first_key;
      to = min(args.ranges[2 * span + 1], last_key) - first_key;
      if (from >= to) continue;  // the same for the whole block
    } else {
      begin = args.spans[2 * span];
      stop = args.spans[2 * span + 1];
    }
    const float* lse = kPaged ? args.page_lse : args.lse;
    const int plane = kPaged ? span * args.batch + batch : batch;
    for (int first = begin; first < stop; first += kBackQueries) {
      __syncthreads();  // the last tile has been read
      stage<T, kBackQueries, kChannels>(args.q, args.wide_q, batch, head, first, stop - first, args.channels,
                                        args.scale * kLog2E, queries);
      stage<Grad, kBackQueries, kChannels>(grads_of<kPaged>(args, span), args.wide_grad, batch, head, first,
                                           stop - first, args.channels, 1.0f, grads);
      BackwardQuery known[kBackRows];
      AV_UNROLL
      for (int r = 0; r < kBackRows; ++r)
        known[r] = BackwardQuery::of(args, lse, plane, head, first + own_row + r, stop);
      __syncthreads();
      differentiate<kColumns, kChannels>(args, batch, first_key, from, to, queries, grads, keys, values, known, p, ds);
      __syncthreads();
      sums.add(queries, grads, p, ds, x, y);
    }
  }
  AV_UNROLL
  for (int j = 0; j < kColumns; ++j) {
    const int place = y + kAcross * j;
    if (place >= count) continue;
    const long long row = (static_cast<long long>(batch) * args.keys + first_key + place) * args.heads + head;
    AV_UNROLL
    for (int i = 0; i < kQuads; ++i) {
      const int c = 4 * x + 32 * i;
      // The staged queries carry log2(e) besides the scale.
      AV_UNROLL
      for (int n = 0; n < 4; ++n) sums.dk[j][i][n] *= kLn2;
      if (args.dk != nullptr)
        store_channels(sums.dk[j][i], static_cast<T*>(args.dk) + row * args.channels, c, args.channels);
      if (args.dv != nullptr)
        store_channels(sums.dv[j][i], static_cast<T*>(args.dv) + row * args.channels, c, args.channels);
    }
    if (x == 0 && args.dbias != nullptr)
      args.dbias[(static_cast<long long>(batch) * args.heads + head) * args.keys + first_key + place] = sums.dbias[j];
  }
}

}  // namespace avis::gpu
