// What attention over ranges and pages asks of its arguments on any device; the words are those of avis_stream/ops.
#pragma once

#include <optional>

#include "avis/range_attn.h"
#include "tensors.h"

namespace avis {

using Ints = Sizes;

void check_tensors(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& key_bias);
// The groups of a plan; they point into `ranges`.
std::vector<RangeGroup> check_groups(std::int64_t queries, std::int64_t keys, const Ints& starts, const Ints& ranges);
void check_saved(const Tensor& grad_out, const Tensor& q, const Tensor& out, const Tensor& lse);
void check_pages(const Tensor& q, const Tensor& page_ranges);
void check_initial(const Tensor& q, const std::optional<Tensor>& out, const std::optional<Tensor>& lse);
void check_write(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v, const Tensor& slot);

inline Tensor channels_contiguous(const Tensor& x) {
  return x.size(3) <= 1 || x.stride(3) == 1 ? x : torch::stable::contiguous(x);
}

}  // namespace avis
