// avis::ms_deform_attn and its fused form on CUDA: checks, layouts, and one call of libavis_cuda.so each.

#include "cuda_library.h"
#include "ms_deform_attn_checks.h"

namespace avis {
namespace {

// The arguments of a call, and the tensors that they point to. `loc` and `weight` are offsets and logits if there is a
// ref.
struct Call {
  Tensor value, loc, weight;
  std::optional<Tensor> ref;
  AvMsda args{};

  Call(const Tensor& value_, const Sizes& shapes, const Tensor& loc_, const Tensor& weight_,
       const std::optional<Tensor>& ref_)
      : value(contiguous_as(value_, value_.scalar_type())),
        loc(contiguous_as(loc_, ScalarType::Float)),
        weight(contiguous_as(weight_, ScalarType::Float)) {
    STD_TORCH_CHECK(shapes.size() <= 2 * AV_MAX_LEVELS, "the CUDA kernels take up to ", AV_MAX_LEVELS, " levels, got ",
                    shapes.size() / 2);
    if (ref_) ref = contiguous_as(*ref_, ScalarType::Float);
    args.value = value.const_data_ptr();
    args.loc = floats(loc);
    args.weight = floats(weight);
    args.ref = floats(ref);
    args.images = value.size(0);
    args.tokens = value.size(1);
    args.queries = loc.size(1);
    args.heads = static_cast<std::int32_t>(value.size(2));
    args.channels = static_cast<std::int32_t>(value.size(3));
    args.levels = static_cast<std::int32_t>(loc.size(3));
    args.points = static_cast<std::int32_t>(loc.size(4));
    for (std::size_t i = 0; i < shapes.size(); ++i) args.sizes[i] = static_cast<std::int32_t>(shapes[i]);
    args.storage = cuda_storage(value, "value");
    STD_TORCH_CHECK(args.tokens * args.heads * args.channels < (std::int64_t{1} << 31),
                    "value must have less than 2^31 elements an image, got ", describe(value));
  }
};

Tensor compute(const Tensor& value, const Sizes& shapes, const Tensor& loc, const Tensor& weight,
               const std::optional<Tensor>& ref) {
  cuda_storage(value, "value");
  Tensor out = empty_like(value, {value.size(0), loc.size(1), value.size(2) * value.size(3)}, value.scalar_type());
  if (out.numel() == 0) return out;
  if (weight.numel() == 0) return torch::stable::zero_(out);
  Call call(value, shapes, loc, weight, ref);
  call.args.out = out.mutable_data_ptr();
  on_device_of(value, "ms_deform_attn", [&](void* stream) { return cuda_library().msda_forward(&call.args, stream); });
  return out;
}

struct Gradients {
  Tensor value, ref, loc, weight;
};

// Gradients of value, ref, loc and weight, as far as `mask` asks for them.
Gradients differentiate(const Tensor& grad_out, const Tensor& value, const Sizes& shapes, const Tensor& loc,
                        const Tensor& weight, const std::optional<Tensor>& ref, const std::vector<bool>& mask) {
  check_grad(grad_out, value, loc);
  cuda_storage(value, "value");
  const auto zeros = [&](const Tensor& like, bool wanted) {
    Tensor grad = empty_like(like, wanted ? sizes_of(like) : Sizes{0}, ScalarType::Float);
    return torch::stable::zero_(grad);
  };
  Gradients grads{zeros(value, mask[0]), zeros(ref ? *ref : loc, ref.has_value() && mask[1]),
                  zeros(loc, mask[1] || mask[2]),  // the kernel sums the gradient of ref from this
                  zeros(weight, mask[3])};
  if (value.numel() > 0 && weight.numel() > 0) {
    Call call(value, shapes, loc, weight, ref);
    const Tensor grad = contiguous_as(grad_out, value.scalar_type());
    call.args.grad_out = grad.const_data_ptr();
    call.args.grad_value = out_floats(grads.value);
    call.args.grad_ref = out_floats(grads.ref);
    call.args.grad_loc = out_floats(grads.loc);
    call.args.grad_weight = out_floats(grads.weight);
    on_device_of(value, "ms_deform_attn_backward",
                 [&](void* stream) { return cuda_library().msda_backward(&call.args, stream); });
  }
  if (!mask[2]) grads.loc = zeros(loc, false);
  grads.value = contiguous_as(grads.value, value.scalar_type());
  grads.weight = contiguous_as(grads.weight, weight.scalar_type());
  return grads;
}

Tensor forward(const Tensor& value, const Sizes shapes, const Tensor& loc, const Tensor& weight) {
  check_arguments(value, shapes, loc, weight);
  return compute(value, shapes, loc, weight, std::nullopt);
}

Tensor fused_forward(const Tensor& value, const Sizes shapes, const Tensor& ref, const Tensor& offsets,
                     const Tensor& logits) {
  check_fused(value, shapes, ref, offsets, logits);
  return compute(value, shapes, offsets, logits, ref);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Sizes shapes,
                                            const Tensor& loc, const Tensor& weight, const std::vector<bool> mask) {
  check_arguments(value, shapes, loc, weight);
  const Gradients grads =
      differentiate(grad_out, value, shapes, loc, weight, std::nullopt, {mask[0], false, mask[1], mask[2]});
  return {grads.value, grads.loc, grads.weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_out, const Tensor& value,
                                                          const Sizes shapes, const Tensor& ref, const Tensor& offsets,
                                                          const Tensor& logits, const std::vector<bool> mask) {
  check_fused(value, shapes, ref, offsets, logits);
  const Gradients grads = differentiate(grad_out, value, shapes, offsets, logits, ref, mask);
  return {grads.value, grads.ref, grads.loc, grads.weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(avis, AVIS_GPU, m) {
  if (!has_cuda_library()) return;
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
}

}  // namespace avis
