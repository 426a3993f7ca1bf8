// avis::range_attn, range_attn_paged and kv_write_ on CUDA: checks, layouts, and one call of libavis_cuda.so each.

#include <memory>

#include "cuda_library.h"
#include "range_attn_checks.h"

namespace avis {
namespace {

AvTokens tokens(const Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

std::optional<Tensor> contiguous(const std::optional<Tensor>& x) {
  return x ? std::optional(contiguous_as(*x, x->scalar_type())) : std::nullopt;
}

Tensor zeros(const Tensor& like, const Sizes& sizes, ScalarType type) {
  Tensor result = empty_like(like, sizes, type);
  return torch::stable::zero_(result);
}

// The tensors of a call in usable layouts, and the arguments that point into them.
struct Call {
  Tensor q, k, v;
  std::optional<Tensor> key_bias;
  AvRange args{};

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const std::optional<Tensor>& bias, double scale)
      : q(channels_contiguous(q_)), k(channels_contiguous(k_)), v(channels_contiguous(v_)), key_bias(contiguous(bias)) {
    STD_TORCH_CHECK(q.size(3) <= 128, "the CUDA kernels take up to 128 channels a head, q is ", describe(q));
    args.q = tokens(q);
    args.k = tokens(k);
    args.v = tokens(v);
    args.key_bias = floats(key_bias);
    args.batch = static_cast<std::int32_t>(q.size(0));
    args.queries = static_cast<std::int32_t>(q.size(1));
    args.keys = static_cast<std::int32_t>(k.size(1));
    args.heads = static_cast<std::int32_t>(q.size(2));
    args.channels = static_cast<std::int32_t>(q.size(3));
    args.storage = cuda_storage(q, "q");
    args.scale = static_cast<float>(scale);
  }
};

// Gradients of q, k, v and the key bias, the last with heads apart; as far as `mask` asks for them.
struct Gradients {
  Tensor dq, dk, dv, dbias;

  Gradients(const Tensor& q, const Tensor& k, const std::vector<bool>& mask)
      : dq(zeros(q, mask[0] ? sizes_of(q) : Sizes{0}, q.scalar_type())),
        dk(zeros(q, mask[1] ? sizes_of(k) : Sizes{0}, q.scalar_type())),
        dv(zeros(q, mask[2] ? sizes_of(k) : Sizes{0}, q.scalar_type())),
        dbias(zeros(q, mask[3] ? Sizes{k.size(0), k.size(2), k.size(1)} : Sizes{0}, ScalarType::Float)) {}

  void give_to(AvRange* args) {
    args->dq = out_data(dq);
    args->dk = out_data(dk);
    args->dv = out_data(dv);
    args->dbias = out_floats(dbias);
  }
  Tensor bias(const std::vector<bool>& mask) const {
    const std::int64_t by_head = 1;
    return mask[3] ? torch::stable::sum(dbias, {{&by_head, 1}}) : dbias;
  }
};

// Calls `run` with the plan, and room for it on the device.
template <class Run>
void with_plan(const Call& call, const Ints& starts, const Ints& ranges, bool backward, const char* what, Run run) {
  check_groups(call.args.queries, call.args.keys, starts, ranges);
  const auto groups = static_cast<std::int64_t>(starts.size()) - 1;
  const AvGroups given{starts.data(), ranges.data(), groups,
                       groups > 0 ? static_cast<std::int64_t>(ranges.size()) / groups / 2 : 0};
  const std::unique_ptr<AvPlan, decltype(&::av_plan_delete)> plan(cuda_library().plan_new(&given, &call.args, backward),
                                                                  cuda_library().plan_delete);
  STD_TORCH_CHECK(plan != nullptr, "q_starts and k_ranges do not fit ", describe(call.q), " and ", describe(call.k));
  Tensor room = empty_like(call.q, {cuda_library().plan_ints(plan.get())}, ScalarType::Int);
  on_device_of(call.q, what, [&](void* stream) {
    return run(&call.args, plan.get(), static_cast<std::int32_t*>(room.mutable_data_ptr()), stream);
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Ints q_starts,
                                   const Ints k_ranges, const std::optional<Tensor> key_bias, double scale) {
  check_tensors(q, k, v, key_bias);
  cuda_storage(q, "q");
  Tensor out = empty_like(q, sizes_of(q), q.scalar_type());
  Tensor lse = empty_like(q, {q.size(0), q.size(2), q.size(1)}, ScalarType::Float);
  if (lse.numel() == 0) return {out, lse};
  Call call(q, k, v, key_bias, scale);
  call.args.out = out_data(out);
  call.args.lse = out_floats(lse);
  with_plan(call, q_starts, k_ranges, false, "range_attn", cuda_library().range_forward);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const std::optional<Tensor> grad_lse,
                                                    const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const Tensor& out, const Tensor& lse, const Ints q_starts,
                                                    const Ints k_ranges, const std::optional<Tensor> key_bias,
                                                    double scale, const std::vector<bool> mask) {
  check_tensors(q, k, v, key_bias);
  check_saved(grad_out, q, out, lse);
  Gradients grads(q, k, mask);
  if (lse.numel() > 0 && k.numel() > 0) {
    Call call(q, k, v, key_bias, scale);
    const Tensor grad = channels_contiguous(contiguous_as(grad_out, q.scalar_type()));
    Tensor saved_out = contiguous_as(out, q.scalar_type()), saved_lse = contiguous_as(lse, ScalarType::Float);
    Tensor row = empty_like(q, sizes_of(lse), ScalarType::Float);
    const auto direct = contiguous(grad_lse);
    call.args.out = out_data(saved_out);
    call.args.lse = out_floats(saved_lse);
    call.args.grad_out = tokens(grad);
    call.args.grad_lse = floats(direct);
    call.args.row = out_floats(row);
    grads.give_to(&call.args);
    with_plan(call, q_starts, k_ranges, true, "range_attn_backward", cuda_library().range_backward);
  }
  return {grads.dq, grads.dk, grads.dv, grads.bias(mask)};
}

// The parts of a paged call: the initial one and the pages.
struct Parts {
  Tensor ranges, page_out, page_lse;
  std::optional<Tensor> init_out, init_lse;
  AvPages args{};

  Parts(const Tensor& page_ranges, const std::optional<Tensor>& out, const std::optional<Tensor>& lse,
        const Tensor& page_out_, const Tensor& page_lse_)
      : ranges(contiguous_as(page_ranges, ScalarType::Int)),
        page_out(page_out_),
        page_lse(page_lse_),
        init_out(contiguous(out)),
        init_lse(contiguous(lse)) {
    args.ranges = static_cast<const std::int32_t*>(ranges.const_data_ptr());
    args.init_out = floats(init_out);
    args.init_lse = floats(init_lse);
    args.page_out = out_floats(page_out);
    args.page_lse = out_floats(page_lse);
    args.pages = static_cast<std::int32_t>(ranges.size(0));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> paged_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                         const Tensor& page_ranges,
                                                         const std::optional<Tensor> key_bias,
                                                         const std::optional<Tensor> init_out,
                                                         const std::optional<Tensor> init_lse, double scale) {
  check_tensors(q, k, v, key_bias);
  check_pages(q, page_ranges);
  check_initial(q, init_out, init_lse);
  cuda_storage(q, "q");
  const std::int64_t pages = page_ranges.size(0), batch = q.size(0), queries = q.size(1), heads = q.size(2);
  Tensor out = empty_like(q, sizes_of(q), q.scalar_type());
  Tensor lse = empty_like(q, {batch, heads, queries}, ScalarType::Float);
  const Tensor page_out = empty_like(q, {pages, batch, queries, heads, q.size(3)}, ScalarType::Float);
  const Tensor page_lse = empty_like(q, {pages, batch, heads, queries}, ScalarType::Float);
  if (lse.numel() > 0) {
    Call call(q, k, v, key_bias, scale);
    call.args.out = out_data(out);
    call.args.lse = out_floats(lse);
    const Parts parts(page_ranges, init_out, init_lse, page_out, page_lse);
    on_device_of(q, "range_attn_paged",
                 [&](void* stream) { return cuda_library().paged_forward(&call.args, &parts.args, stream); });
  }
  return {out, lse, page_out, page_lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> paged_backward(
    const Tensor& grad_out, const std::optional<Tensor> grad_lse, const std::optional<Tensor> grad_page_out,
    const std::optional<Tensor> grad_page_lse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& page_ranges, const std::optional<Tensor> key_bias, const std::optional<Tensor> init_out,
    const std::optional<Tensor> init_lse, const Tensor& out, const Tensor& lse, const Tensor& page_out,
    const Tensor& page_lse, double scale, const std::vector<bool> mask) {
  check_tensors(q, k, v, key_bias);
  check_pages(q, page_ranges);
  check_initial(q, init_out, init_lse);
  check_saved(grad_out, q, out, lse);
  Gradients grads(q, k, mask);
  const auto room = [&](const std::optional<Tensor>& like, bool wanted) {
    return zeros(q, wanted && like ? sizes_of(*like) : Sizes{0}, ScalarType::Float);
  };
  Tensor grad_init_out = room(init_out, mask[4]), grad_init_lse = room(init_lse, mask[5]);
  if (lse.numel() > 0) {
    Call call(q, k, v, key_bias, scale);
    Parts parts(page_ranges, init_out, init_lse, contiguous_as(page_out, ScalarType::Float),
                contiguous_as(page_lse, ScalarType::Float));
    const Tensor grad = contiguous_as(grad_out, q.scalar_type());
    Tensor saved_out = contiguous_as(out, q.scalar_type()), saved_lse = contiguous_as(lse, ScalarType::Float);
    Tensor row = empty_like(q, sizes_of(page_lse), ScalarType::Float);
    Tensor part_grad = empty_like(q, sizes_of(page_out), ScalarType::Float);
    const auto direct_lse = contiguous(grad_lse), direct_page = contiguous(grad_page_out);
    const auto direct_page_lse = contiguous(grad_page_lse);
    call.args.out = out_data(saved_out);
    call.args.lse = out_floats(saved_lse);
    call.args.grad_out = tokens(grad);
    call.args.grad_lse = floats(direct_lse);
    call.args.row = out_floats(row);
    grads.give_to(&call.args);
    parts.args.grad_page_out = floats(direct_page);
    parts.args.grad_page_lse = floats(direct_page_lse);
    parts.args.part_grad = out_floats(part_grad);
    parts.args.grad_init_out = out_floats(grad_init_out);
    parts.args.grad_init_lse = out_floats(grad_init_lse);
    on_device_of(q, "range_attn_paged_backward",
                 [&](void* stream) { return cuda_library().paged_backward(&call.args, &parts.args, stream); });
  }
  return {grads.dq, grads.dk, grads.dv, grads.bias(mask), grad_init_out, grad_init_lse};
}

void kv_write(Tensor k_cache, Tensor v_cache, const Tensor& k, const Tensor& v, const Tensor& slot) {
  check_write(k_cache, v_cache, k, v, slot);
  STD_TORCH_CHECK(k.size(1) == v.size(1), "k and v must be of one length, got ", describe(k), " and ", describe(v));
  const std::int32_t bytes = k.scalar_type() == ScalarType::Double ? 8 : k.scalar_type() == ScalarType::Float ? 4 : 2;
  for (const auto& [cache, given] : {std::pair(&k_cache, &k), std::pair(&v_cache, &v)}) {
    if (given->numel() == 0) continue;
    const Tensor from = channels_contiguous(*given);
    const AvCacheWrite args{tokens(*cache),
                            tokens(from),
                            static_cast<const std::int32_t*>(slot.const_data_ptr()),
                            static_cast<std::int32_t>(from.size(0)),
                            static_cast<std::int32_t>(from.size(2)),
                            static_cast<std::int32_t>(cache->size(1)),
                            static_cast<std::int32_t>(from.size(1)),
                            static_cast<std::int32_t>(from.size(3)),
                            bytes};
    on_device_of(*cache, "kv_write_", [&](void* stream) { return cuda_library().cache_write(&args, stream); });
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(avis, AVIS_GPU, m) {
  if (!has_cuda_library()) return;
  m.impl("range_attn", TORCH_BOX(&forward));
  m.impl("range_attn_backward", TORCH_BOX(&backward));
  m.impl("range_attn_paged", TORCH_BOX(&paged_forward));
  m.impl("range_attn_paged_backward", TORCH_BOX(&paged_backward));
  m.impl("kv_write_", TORCH_BOX(&kv_write));
}

}  // namespace avis
