// Keys, values and queries of one head in the layouts that the tiles want, as floats, channels padded with zeros.
#pragma once

#include "avis/range_attn.h"
#include "storage.h"
#include "tile.h"

namespace avis::AVIS_ISA {

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Rows of [tokens][channels] floats, in place or packed.
struct Rows {
  const float* data;
  std::int64_t stride;
};

template <class T>
AVIS_INLINE const T* token(const HeadTokens& x, std::int64_t batch, std::int64_t head, std::int64_t index) {
  return static_cast<const T*>(x.data) + batch * x.batch_stride + head * x.head_stride + index * x.token_stride;
}

template <class T>
AVIS_INLINE void copy_row(const T* from, std::int64_t channels, float factor, float* to, std::int64_t padded) {
  std::int64_t c = 0;
  for (; c < channels; ++c) to[c] = widen(from[c]) * factor;
  for (; c < padded; ++c) to[c] = 0;
}

// Calls visit(key, place in the group) for all keys that a group sees, in its own order.
template <class Visit>
AVIS_INLINE void each_key(const RangeGroup& group, const Visit& visit) {
  std::int64_t place = 0;
  for (std::int64_t r = 0; r < group.range_count; ++r)
    for (std::int64_t key = group.ranges[2 * r]; key < group.ranges[2 * r + 1]; ++key) visit(key, place++);
}

// The keys that a group sees, one row each: packed, or in place if that is possible and too few queries come by to
// repay the copy. In place, rows lie all heads apart, which leaves most sets of the caches idle.
template <class T>
Rows natural(const RangeAttnArgs& args, const HeadTokens& x, std::int64_t batch, std::int64_t head,
             const RangeGroup& group, std::int64_t padded, float* room) {
  std::int64_t used = 0, first = 0;
  for (std::int64_t r = 0; r < group.range_count; ++r)
    if (group.ranges[2 * r] < group.ranges[2 * r + 1]) {
      ++used;
      first = group.ranges[2 * r];
    }
  if constexpr (sizeof(T) == 4)
    if (used <= 1 && padded == args.channels && group.q_last - group.q_first <= 4 * kRows)
      return {token<float>(x, batch, head, first), x.token_stride};
  each_key(group, [&](std::int64_t key, std::int64_t place) {
    copy_row(token<T>(x, batch, head, key), args.channels, 1.0f, room + place * padded, padded);
  });
  return {room, padded};
}

// Tiles of kTile keys, [tile][channel][key]: a channel of many keys is one load. Missing keys are zeros.
inline void pack_tiles(const Rows& rows, std::int64_t count, std::int64_t padded, float* tiles) {
  alignas(64) static constexpr float zeros[kLanes] = {};
  for (std::int64_t first = 0; first < count; first += kTile, tiles += kTile * padded)
    for (std::int64_t half = 0; half < kTile; half += kLanes)
      for (std::int64_t c = 0; c < padded; c += kLanes) {
        Vf block[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const std::int64_t key = first + half + i;
          block[i] = load(key < count ? rows.data + key * rows.stride + c : zeros);
        }
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store(tiles + (c + i) * kTile + half, block[i]);
      }
}

// Biases of the keys a group sees, in units of the exponent (base 2), -inf for the places behind the last.
inline void pack_bias(const RangeAttnArgs& args, std::int64_t batch, const RangeGroup& group, float* bias,
                      std::int64_t places) {
  const auto* all = static_cast<const float*>(args.key_bias);
  each_key(group, [&](std::int64_t key, std::int64_t place) {
    bias[place] = all == nullptr ? 0.0f : all[batch * args.keys + key] * static_cast<float>(kLog2E);
  });
  for (std::int64_t place = group.seen; place < places; ++place) bias[place] = -kInfinity;
}

}  // namespace avis::AVIS_ISA
