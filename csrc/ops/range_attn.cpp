// avis::range_attn on the CPU: checks, groups, and who computes which. The arithmetic is in csrc/cpu.

#include <limits>
#include <numeric>

#include "range_attn_call.h"

namespace avis {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Ints q_starts,
                                   const Ints k_ranges, const std::optional<Tensor> key_bias, double scale) {
  check_tensors(q, k, v, key_bias);
  const auto groups = cut(check_groups(q.size(1), k.size(1), q_starts, k_ranges), q.size(0) * q.size(2));
  Tensor out = empty_like(q, sizes_of(q), q.scalar_type());
  Tensor lse = empty_like(q, {q.size(0), q.size(2), q.size(1)}, wide_type(q));
  if (lse.numel() == 0) return {out, lse};
  Call call(q, k, v, key_bias, scale);
  call.args.out = out.mutable_data_ptr();
  call.args.lse = lse.mutable_data_ptr();
  const std::size_t bytes = scratch_bytes(call.args, groups, false);
  const Order order(call.args.batch * call.args.heads, static_cast<std::int64_t>(groups.size()));
  torch::stable::parallel_for(0, order.count(), 1, [&](std::int64_t first, std::int64_t last) {
    const Scratch scratch(bytes);
    for (std::int64_t i = first; i < last; ++i) {
      const auto [head, group] = order[i];
      kernels().range_attn_forward(call.args, head / call.args.heads, head % call.args.heads, groups[group],
                                   scratch.get());
    }
  });
  return {out, lse};
}

// Groups that share keys must not run at the same time: lists of groups, each list in order, no two lists sharing keys.
std::vector<std::vector<RangeGroup>> components(const std::vector<RangeGroup>& groups) {
  std::vector<std::size_t> leader(groups.size());
  std::iota(leader.begin(), leader.end(), 0);
  const auto find = [&](std::size_t g) {
    while (leader[g] != g) g = leader[g] = leader[leader[g]];
    return g;
  };
  std::vector<std::tuple<std::int64_t, std::int64_t, std::size_t>> ranges;
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (std::int64_t r = 0; r < groups[g].range_count; ++r)
      if (groups[g].ranges[2 * r] < groups[g].ranges[2 * r + 1])
        ranges.emplace_back(groups[g].ranges[2 * r], groups[g].ranges[2 * r + 1], g);
  std::sort(ranges.begin(), ranges.end());
  std::int64_t reach = -1;
  std::size_t last = 0;
  for (const auto& [start, stop, g] : ranges) {
    if (start < reach) {
      const auto a = find(last), b = find(g);
      leader[std::max(a, b)] = std::min(a, b);
    }
    if (stop > reach) {
      reach = stop;
      last = g;
    }
  }
  std::vector<std::vector<RangeGroup>> lists(groups.size());
  for (std::size_t g = 0; g < groups.size(); ++g) lists[find(g)].push_back(groups[g]);
  std::erase_if(lists, [](const auto& list) { return list.empty(); });
  return lists;
}

Tensor zeros(const Tensor& like, const Ints& sizes, ScalarType type) {
  Tensor result = empty_like(like, sizes, type);
  return torch::stable::zero_(result);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const std::optional<Tensor> grad_lse,
                                                    const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const Tensor& out, const Tensor& lse, const Ints q_starts,
                                                    const Ints k_ranges, const std::optional<Tensor> key_bias,
                                                    double scale, const std::vector<bool> mask) {
  check_tensors(q, k, v, key_bias);
  const auto groups = check_groups(q.size(1), k.size(1), q_starts, k_ranges);
  const ScalarType wide = wide_type(q);
  const std::int64_t batch = q.size(0), queries = q.size(1), heads = q.size(2), channels = q.size(3);
  check_saved(grad_out, q, out, lse);
  Tensor dq = zeros(q, mask[0] ? sizes_of(q) : Ints{0}, wide), dk = zeros(q, mask[1] ? sizes_of(k) : Ints{0}, wide);
  Tensor dv = zeros(q, mask[2] ? sizes_of(v) : Ints{0}, wide);
  Tensor dbias = zeros(q, mask[3] ? Ints{batch, heads, k.size(1)} : Ints{0}, wide);

  if (lse.numel() > 0 && k.size(1) > 0) {
    // row = sum(grad_out * out) - grad_lse; see the reference. What saw no key has a grad_lse of NaN after a logaddexp.
    const Tensor grad = contiguous_as(grad_out, wide), wide_out = contiguous_as(out, wide);
    const Tensor wide_lse = contiguous_as(lse, wide);
    Tensor row = empty_like(q, {batch, heads, queries}, wide);
    std::optional<Tensor> lse_grad;
    if (grad_lse) lse_grad = contiguous_as(*grad_lse, wide);
    const auto fill = [&](auto zero) {
      using W = decltype(zero);
      const auto* g = static_cast<const W*>(grad.const_data_ptr());
      const auto* o = static_cast<const W*>(wide_out.const_data_ptr());
      const auto* l = lse_grad ? static_cast<const W*>(lse_grad->const_data_ptr()) : nullptr;
      const auto* total = static_cast<const W*>(wide_lse.const_data_ptr());
      auto* r = static_cast<W*>(row.mutable_data_ptr());
      torch::stable::parallel_for(0, batch * queries, 64, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i)
          for (std::int64_t h = 0; h < heads; ++h) {
            W sum = 0;
            for (std::int64_t c = (i * heads + h) * channels; c < (i * heads + h + 1) * channels; ++c)
              sum += g[c] * o[c];
            const std::int64_t at = (i / queries * heads + h) * queries + i % queries;
            r[at] = l == nullptr || total[at] == -std::numeric_limits<W>::infinity() ? sum : sum - l[at];
          }
      });
    };
    wide == ScalarType::Double ? fill(0.0) : fill(0.0f);

    Call call(q, k, v, key_bias, scale);
    call.args.lse = wide_lse.mutable_data_ptr();
    call.args.grad_out = head_tokens(grad);
    call.args.row = row.const_data_ptr();
    call.args.dq = mask[0] ? dq.mutable_data_ptr() : nullptr;
    call.args.dk = mask[1] ? dk.mutable_data_ptr() : nullptr;
    call.args.dv = mask[2] ? dv.mutable_data_ptr() : nullptr;
    call.args.dbias = mask[3] ? dbias.mutable_data_ptr() : nullptr;
    const auto lists = components(groups);
    const std::size_t bytes = scratch_bytes(call.args, groups, true);
    const Order order(batch * heads, static_cast<std::int64_t>(lists.size()));
    torch::stable::parallel_for(0, order.count(), 1, [&](std::int64_t first, std::int64_t last) {
      const Scratch scratch(bytes);
      for (std::int64_t i = first; i < last; ++i) {
        const auto [head, list] = order[i];
        for (const RangeGroup& group : lists[list])
          if (group.q_first < group.q_last && group.seen > 0)
            kernels().range_attn_backward(call.args, head / heads, head % heads, group, scratch.get());
      }
    });
  }
  const std::int64_t by_head = 1;
  Tensor bias_grad = mask[3] ? torch::stable::sum(dbias, {{&by_head, 1}}) : dbias;
  return {contiguous_as(dq, q.scalar_type()), contiguous_as(dk, q.scalar_type()), contiguous_as(dv, q.scalar_type()),
          bias_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(avis, CPU, m) {
  m.impl("range_attn", TORCH_BOX(&forward));
  m.impl("range_attn_backward", TORCH_BOX(&backward));
}

}  // namespace avis
