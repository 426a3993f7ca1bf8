// What `range_attn` and `range_attn_paged` share on the CPU: layouts, and how queries are shared out.
#pragma once

#include <algorithm>
#include <optional>

#include "avis/kernels.h"
#include "range_attn_checks.h"

namespace avis {

inline HeadTokens head_tokens(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

// The tensors of a call in usable layouts, and the arguments that point into them.
struct Call {
  Tensor q, k, v;
  std::optional<Tensor> key_bias;
  RangeAttnArgs args{};

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const std::optional<Tensor>& bias, double scale)
      : q(channels_contiguous(q_)), k(channels_contiguous(k_)), v(channels_contiguous(v_)) {
    if (bias) key_bias = contiguous_as(*bias, wide_type(q));
    args.batch = q.size(0);
    args.queries = q.size(1);
    args.keys = k.size(1);
    args.heads = q.size(2);
    args.channels = q.size(3);
    args.storage = storage_of(q, "q");
    args.q = head_tokens(q);
    args.k = head_tokens(k);
    args.v = head_tokens(v);
    args.key_bias = key_bias ? key_bias->const_data_ptr() : nullptr;
    args.scale = scale;
  }
};

inline std::size_t scratch_bytes(const RangeAttnArgs& args, const std::vector<RangeGroup>& groups, bool backward) {
  std::size_t bytes = 64;
  for (const RangeGroup& group : groups) bytes = std::max(bytes, kernels().range_attn_scratch(args, group, backward));
  return bytes;
}

// Queries of a few groups are shared out too, in pieces, where heads and groups alone would leave threads idle. A
// query's result does not depend on the piece that it is in.
inline std::vector<RangeGroup> cut(const std::vector<RangeGroup>& groups, std::int64_t heads) {
  constexpr std::int64_t kPiece = 48;
  const auto tasks = static_cast<std::int64_t>(groups.size()) * heads;
  if (tasks >= 2 * static_cast<std::int64_t>(torch::stable::get_num_threads())) return groups;
  std::vector<RangeGroup> pieces;
  for (const RangeGroup& group : groups)
    for (std::int64_t first = group.q_first; first < group.q_last; first += kPiece) {
      RangeGroup piece = group;
      piece.q_first = first;
      piece.q_last = std::min(group.q_last, first + kPiece);
      pieces.push_back(piece);
    }
  return pieces;
}

// In which order heads and their groups are computed: each thread has heads of its own, which makes shares alike, and
// goes through them group by group, for the keys of all heads lie side by side.
class Order {
 public:
  Order(std::int64_t heads, std::int64_t groups)
      : heads_(heads),
        groups_(groups),
        block_(std::max<std::int64_t>(1, heads / static_cast<std::int64_t>(torch::stable::get_num_threads()))) {}

  struct Task {
    std::int64_t head, group;
  };
  std::int64_t count() const { return heads_ * groups_; }
  Task operator[](std::int64_t index) const {
    const std::int64_t first = index / (block_ * groups_) * block_, width = std::min(block_, heads_ - first);
    index -= first * groups_;
    return {first + index % width, index / width};
  }

 private:
  std::int64_t heads_, groups_, block_;
};

}  // namespace avis
