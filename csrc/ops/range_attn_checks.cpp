#include "range_attn_checks.h"

#include <algorithm>

namespace avis {

void check_tensors(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& key_bias) {
  STD_TORCH_CHECK(q.dim() == 4, "q must be a tensor [B, Nq, H, D], got ", describe(q));
  const bool k_fits = k.dim() == 4 && k.size(0) == q.size(0) && k.size(2) == q.size(2) && k.size(3) == q.size(3);
  STD_TORCH_CHECK(k_fits, "k must be [B=", q.size(0), ", Nk, H=", q.size(2), ", D=", q.size(3), "] to fit q, got ",
                  describe(k));
  STD_TORCH_CHECK(sizes_of(v) == sizes_of(k), "v must have the shape of k ", describe(k), ", got ", describe(v));
  check_storage(q, "q");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "k and v must have the dtype of q ", describe(q), ", got ", describe(k), " and ", describe(v));
  check_device(q, {&k, &v});
  if (key_bias) {
    const bool fits = key_bias->dim() == 2 && key_bias->size(0) == k.size(0) && key_bias->size(1) == k.size(1) &&
                      key_bias->scalar_type() == wide_type(q);
    check_device(q, {&*key_bias});
    STD_TORCH_CHECK(fits, "key_bias must be float32 (float64 beside float64) [B=", k.size(0), ", Nk=", k.size(1),
                    "], got ", describe(*key_bias));
  }
}

std::vector<RangeGroup> check_groups(std::int64_t queries, std::int64_t keys, const Ints& starts, const Ints& ranges) {
  STD_TORCH_CHECK(!starts.empty() && starts.front() == 0 && starts.back() == queries,
                  "q_starts must begin with 0 and end with Nq=", queries);
  const auto groups = static_cast<std::int64_t>(starts.size()) - 1;
  const auto numbers = static_cast<std::int64_t>(ranges.size());
  STD_TORCH_CHECK(groups ? numbers % (2 * groups) == 0 : numbers == 0, "k_ranges must be [G=", groups,
                  ", R, 2] to fit q_starts, got ", numbers, " numbers");
  const std::int64_t per_group = groups ? numbers / groups / 2 : 0;
  std::vector<RangeGroup> result;
  std::vector<std::pair<std::int64_t, std::int64_t>> sorted;
  for (std::int64_t g = 0; g < groups; ++g) {
    STD_TORCH_CHECK(starts[g] <= starts[g + 1], "q_starts must not descend, got ", starts[g], " before ",
                    starts[g + 1]);
    const std::int64_t* own = ranges.data() + g * per_group * 2;
    RangeGroup group{starts[g], starts[g + 1], own, per_group, 0};
    sorted.clear();
    for (std::int64_t r = 0; r < per_group; ++r) {
      const std::int64_t start = own[2 * r], stop = own[2 * r + 1];
      if (start == stop) continue;
      STD_TORCH_CHECK(0 <= start && start < stop && stop <= keys, "k_ranges must lie within [0, Nk=", keys, "], group ",
                      g, " has (", start, ", ", stop, ")");
      sorted.emplace_back(start, stop);
      group.seen += stop - start;
    }
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 1; i < sorted.size(); ++i)
      STD_TORCH_CHECK(sorted[i - 1].second <= sorted[i].first, "k_ranges of a group must be disjoint, group ", g,
                      " has overlapping ones");
    result.push_back(group);
  }
  return result;
}

void check_saved(const Tensor& grad_out, const Tensor& q, const Tensor& out, const Tensor& lse) {
  STD_TORCH_CHECK(sizes_of(grad_out) == sizes_of(q) && sizes_of(out) == sizes_of(q),
                  "grad_out and out must have the shape of q ", describe(q), ", got ", describe(grad_out), " and ",
                  describe(out));
  STD_TORCH_CHECK(sizes_of(lse) == (Ints{q.size(0), q.size(2), q.size(1)}) && lse.scalar_type() == wide_type(q),
                  "lse must be as the forward returned it, got ", describe(lse));
  check_device(q, {&grad_out, &out, &lse});
}

void check_pages(const Tensor& q, const Tensor& page_ranges) {
  STD_TORCH_CHECK(page_ranges.dim() == 2 && page_ranges.size(1) == 2 && page_ranges.scalar_type() == ScalarType::Int,
                  "page_ranges must be int32 [P, 2] on the device of q, got ", describe(page_ranges));
  check_device(q, {&page_ranges});
}

void check_initial(const Tensor& q, const std::optional<Tensor>& out, const std::optional<Tensor>& lse) {
  STD_TORCH_CHECK(out.has_value() == lse.has_value(),
                  "initial must be a value and an lse, or None; got only one of them");
  if (!out) return;
  const ScalarType wide = wide_type(q);
  check_device(q, {&*out, &*lse});
  STD_TORCH_CHECK(sizes_of(*out) == sizes_of(q) && out->scalar_type() == wide,
                  "initial value must be float32 (float64 beside float64) as q ", describe(q), ", got ",
                  describe(*out));
  STD_TORCH_CHECK(sizes_of(*lse) == (Ints{q.size(0), q.size(2), q.size(1)}) && lse->scalar_type() == wide,
                  "initial lse must be float32 (float64 beside float64) [B, H, Nq] to fit q ", describe(q), ", got ",
                  describe(*lse));
}

void check_write(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v, const Tensor& slot) {
  STD_TORCH_CHECK(k_cache.dim() == 4 && sizes_of(v_cache) == sizes_of(k_cache),
                  "caches must both be [B, Nk, H, D], got ", describe(k_cache), " and ", describe(v_cache));
  for (const Tensor* x : {&k, &v}) {
    const bool fits = x->dim() == 4 && x->size(0) == k_cache.size(0) && x->size(2) == k_cache.size(2) &&
                      x->size(3) == k_cache.size(3) && x->scalar_type() == k_cache.scalar_type();
    STD_TORCH_CHECK(fits, "k and v must be [B, n, H, D] as the cache ", describe(k_cache), ", got ", describe(*x));
  }
  STD_TORCH_CHECK(v_cache.scalar_type() == k_cache.scalar_type() && k_cache.stride(3) == 1 && v_cache.stride(3) == 1,
                  "caches must have one dtype and contiguous channels");
  STD_TORCH_CHECK(slot.numel() == 1 && slot.scalar_type() == ScalarType::Int,
                  "slot must be one int32 on the device of the caches, got ", describe(slot));
  check_device(k_cache, {&v_cache, &k, &v, &slot});
}

}  // namespace avis
