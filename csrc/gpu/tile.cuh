// Blocks of 128 threads over tiles in shared memory: what forward and backward of attention have in common.
//
// Threads stand in 8 rows of 16. In a product of a tile of queries with a tile of keys, row y of them owns the queries
// y * R ... y * R + R - 1 and column x the keys x, x + 16, ...: a query's scores lie in half a warp, so that softmax
// needs no more than shuffles. Rows of a tile are 4 floats longer than the channels: lanes that read different rows
// then read different banks.
#pragma once

#include "storage.cuh"

namespace avis::gpu {

constexpr int kThreads = 128;
constexpr int kAcross = 16, kDown = kThreads / kAcross;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;

// What the kernels get: the caller's arguments, the plan on the device, and what the host found out about the tensors.
struct RangeArgs : AvRange {
  const int32_t *tiles, *ranges, *key_tiles, *spans;  // see plan.h; paged: ranges is the page table
  int32_t pages;
  float* page_out;  // paged: out and lse of each page apart
  float* page_lse;
  const float* part_grad;  // paged: as page_out
  // Whether rows can be read 16 bytes at a time.
  bool wide_q, wide_k, wide_v, wide_grad;
};

// Row of one token, in elements from the tensor's first.
AV_DEVICE long long token_at(const AvTokens& x, int batch, int head, int token) {
  return batch * x.batch_stride + head * x.head_stride + token * x.token_stride;
}

// Copies `count` tokens from `first` on into a tile [kTokens][kChannels + 4], times `factor`; zeros behind the last
// token and the last channel. Rows that do not begin at a multiple of 16 bytes are read number by number.
template <class T, int kTokens, int kChannels>
AV_DEVICE void stage(const AvTokens& x, bool wide, int batch, int head, int first, int count, int channels,
                     float factor, float* tile) {
  constexpr int kWide = kVector<T>, kPerRow = kChannels / kWide;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kPerRow; i += kThreads) {
    const int token = i / kPerRow, c = i % kPerRow * kWide;
    float values[kWide] = {};
    if (token < count && c < channels) {
      const T* from = static_cast<const T*>(x.data) + token_at(x, batch, head, first + token) + c;
      if (wide) {
        load(from, values);
      } else {
        AV_UNROLL
        for (int n = 0; n < kWide; ++n)
          if (c + n < channels) values[n] = widen(from[n]);
      }
    }
    AV_UNROLL
    for (int n = 0; n < kWide; n += 4)
      *reinterpret_cast<float4*>(tile + token * (kChannels + 4) + c + n) =
          make_float4(values[n] * factor, values[n + 1] * factor, values[n + 2] * factor, values[n + 3] * factor);
  }
}

// scores[r][j] += rows[r] . columns[x + 16 * j], over all channels; `rows` begins with the thread's own first row.
template <int kRows, int kColumns, int kChannels>
AV_DEVICE void add_dots(const float* rows, const float* columns, int x, float (&scores)[kRows][kColumns]) {
  AV_UNROLL_BY(4)
  for (int c = 0; c < kChannels; c += 4) {
    float4 row[kRows];
    AV_UNROLL
    for (int r = 0; r < kRows; ++r) row[r] = *reinterpret_cast<const float4*>(rows + r * (kChannels + 4) + c);
    AV_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const float4 column = *reinterpret_cast<const float4*>(columns + (x + kAcross * j) * (kChannels + 4) + c);
      AV_UNROLL
      for (int r = 0; r < kRows; ++r)
        scores[r][j] += row[r].x * column.x + row[r].y * column.y + row[r].z * column.z + row[r].w * column.w;
    }
  }
}

// out[r][:] += sum over keys of p[r][key] * tokens[key][own channels]; the thread's channels begin at x * kOwn.
template <int kRows, int kKeys, int kChannels>
AV_DEVICE void add_weighted(const float* p, const float* tokens, int x, float (&out)[kRows][kChannels / kAcross]) {
  constexpr int kOwn = kChannels / kAcross;
  AV_UNROLL_BY(2)
  for (int key = 0; key < kKeys; key += 4) {
    float4 weights[kRows];
    AV_UNROLL
    for (int r = 0; r < kRows; ++r) weights[r] = *reinterpret_cast<const float4*>(p + r * (kKeys + 4) + key);
    AV_UNROLL
    for (int k = 0; k < 4; ++k) {
      const float* token = tokens + (key + k) * (kChannels + 4) + x * kOwn;
      AV_UNROLL
      for (int c = 0; c < kOwn; c += 2) {
        const float2 pair = *reinterpret_cast<const float2*>(token + c);
        AV_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const float w = k == 0 ? weights[r].x : k == 1 ? weights[r].y : k == 2 ? weights[r].z : weights[r].w;
          out[r][c] += w * pair.x;
          out[r][c + 1] += w * pair.y;
        }
      }
    }
  }
}

// Stores n of a row's channels, from channel c on; those behind the last are left out.
template <int n, class T>
AV_DEVICE void store_channels(const float (&from)[n], T* row, int c, int channels) {
  if (channels % n == 0) {
    if (c < channels) store(from, row + c);
    return;
  }
  AV_UNROLL
  for (int i = 0; i < n; ++i)
    if (c + i < channels) narrow(from[i], row + c + i);
}

AV_DEVICE float half_warp_max(float x) {
  AV_UNROLL
  for (int step = 1; step < kAcross; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
AV_DEVICE float half_warp_sum(float x) {
  AV_UNROLL
  for (int step = 1; step < kAcross; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

AV_DEVICE float warp_sum(float x) {
  AV_UNROLL
  for (int step = 1; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A key's bias in units of the exponent (base 2).
AV_DEVICE float bias_of(const RangeArgs& args, int batch, int key) {
  return args.key_bias == nullptr ? 0.0f : args.key_bias[static_cast<long long>(batch) * args.keys + key] * kLog2E;
}

}  // namespace avis::gpu
