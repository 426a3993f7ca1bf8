// avis::range_attn_paged and avis::kv_write_ on the CPU: a page is a group of range_attn with its own output.

#include <cstring>

#include "range_attn_call.h"

namespace avis {
namespace {

// The page table as groups that all hold every query. `spans` keeps the numbers that the groups point to.
std::vector<RangeGroup> read_pages(const Tensor& page_ranges, std::int64_t queries, std::int64_t keys, Ints* spans) {
  const Tensor table = contiguous_as(page_ranges, ScalarType::Int);
  const auto* numbers = static_cast<const std::int32_t*>(table.const_data_ptr());
  spans->assign(numbers, numbers + table.numel());
  std::vector<RangeGroup> pages;
  for (std::size_t i = 0; i < spans->size(); i += 2) {
    const std::int64_t *span = spans->data() + i, start = span[0], stop = span[1];
    STD_TORCH_CHECK(start == stop || (0 <= start && start < stop && stop <= keys),
                    "page_ranges must lie within [0, Nk=", keys, "], page ", i / 2, " has (", start, ", ", stop, ")");
    pages.push_back({0, queries, span, 1, stop - start});
  }
  return pages;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& page_ranges, const std::optional<Tensor> key_bias,
                                                   const std::optional<Tensor> init_out,
                                                   const std::optional<Tensor> init_lse, double scale) {
  check_tensors(q, k, v, key_bias);
  check_pages(q, page_ranges);
  check_initial(q, init_out, init_lse);
  Ints spans;
  const auto pages = read_pages(page_ranges, q.size(1), k.size(1), &spans);
  const auto count = static_cast<std::int64_t>(pages.size());
  const std::int64_t batch = q.size(0), queries = q.size(1), heads = q.size(2), channels = q.size(3);
  const ScalarType wide = wide_type(q);
  Tensor out = empty_like(q, sizes_of(q), q.scalar_type()), lse = empty_like(q, {batch, heads, queries}, wide);
  Tensor page_out = empty_like(q, {count, batch, queries, heads, channels}, wide);
  Tensor page_lse = empty_like(q, {count, batch, heads, queries}, wide);
  if (lse.numel() == 0) return {out, lse, page_out, page_lse};

  Call call(q, k, v, key_bias, scale);
  call.args.wide_out = true;
  const auto pieces = cut(pages, batch * heads);
  const Order order(batch * heads, static_cast<std::int64_t>(pieces.size()));
  const std::size_t bytes = scratch_bytes(call.args, pages, false), width = wide == ScalarType::Double ? 8 : 4;
  torch::stable::parallel_for(0, order.count(), 1, [&](std::int64_t first, std::int64_t last) {
    const Scratch scratch(bytes);
    RangeAttnArgs args = call.args;
    for (std::int64_t i = first; i < last; ++i) {
      const auto [head, group] = order[i];
      const RangeGroup& piece = pieces[group];
      const std::int64_t page = (piece.ranges - spans.data()) / 2;
      args.out = static_cast<char*>(page_out.mutable_data_ptr()) + page * out.numel() * width;
      args.lse = static_cast<char*>(page_lse.mutable_data_ptr()) + page * lse.numel() * width;
      kernels().range_attn_forward(args, head / heads, head % heads, piece, scratch.get());
    }
  });

  std::optional<Tensor> first_out, first_lse;
  if (init_out) {
    first_out = contiguous_as(*init_out, wide);
    first_lse = contiguous_as(*init_lse, wide);
  }
  const RangeMergeArgs merge{batch,
                             queries,
                             heads,
                             channels,
                             count,
                             storage_of(q, "q"),
                             first_out ? first_out->const_data_ptr() : nullptr,
                             first_lse ? first_lse->const_data_ptr() : nullptr,
                             page_out.const_data_ptr(),
                             page_lse.const_data_ptr(),
                             out.mutable_data_ptr(),
                             lse.mutable_data_ptr()};
  torch::stable::parallel_for(0, batch * heads, 4, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t head = first; head < last; ++head) kernels().range_attn_merge(merge, head / heads, head % heads);
  });
  return {out, lse, page_out, page_lse};
}

// Tokens of one tensor into a cache, from `slot` on; channels are contiguous in both.
void write(Tensor& cache, const Tensor& from, std::int64_t slot) {
  const Tensor tokens = channels_contiguous(from);
  const std::size_t width = storage_of(cache, "cache") == Storage::kFloat64   ? 8
                            : storage_of(cache, "cache") == Storage::kFloat32 ? 4
                                                                              : 2;
  auto* to = static_cast<char*>(cache.mutable_data_ptr());
  const auto* source = static_cast<const char*>(tokens.const_data_ptr());
  for (std::int64_t b = 0; b < tokens.size(0); ++b)
    for (std::int64_t t = 0; t < tokens.size(1); ++t)
      for (std::int64_t h = 0; h < tokens.size(2); ++h)
        std::memcpy(to + (b * cache.stride(0) + (slot + t) * cache.stride(1) + h * cache.stride(2)) * width,
                    source + (b * tokens.stride(0) + t * tokens.stride(1) + h * tokens.stride(2)) * width,
                    tokens.size(3) * width);
}

void kv_write(Tensor k_cache, Tensor v_cache, const Tensor& k, const Tensor& v, const Tensor& slot) {
  check_write(k_cache, v_cache, k, v, slot);
  const std::int64_t first = *static_cast<const std::int32_t*>(slot.const_data_ptr());
  STD_TORCH_CHECK(k.size(1) == v.size(1) && first >= 0 && first + k.size(1) <= k_cache.size(1),
                  "k and v must lie within ", k_cache.size(1), " slots, got ", k.size(1), " and ", v.size(1), " from ",
                  first, " on");
  write(k_cache, k, first);
  write(v_cache, v, first);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(avis, CPU, m) {
  m.impl("range_attn_paged", TORCH_BOX(&forward));
  m.impl("kv_write_", TORCH_BOX(&kv_write));
}

}  // namespace avis
