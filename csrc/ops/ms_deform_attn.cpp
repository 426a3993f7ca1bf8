// avis::ms_deform_attn on the CPU: checks, tables, and who computes which rows. The arithmetic is in csrc/cpu.

#include <limits>

#include "avis/kernels.h"
#include "ms_deform_attn_checks.h"
#include "point_columns.h"

namespace avis {
namespace {

// Rows a thread takes at least: 100 us of work at the model's size, against 5 us to start a thread.
constexpr std::int64_t kRowsAtLeast = 256;

// The arguments of a call in the layout that the kernels want, and everything that must live as long as they run.
struct Call {
  Tensor value, loc, weight;
  Sizes shapes;
  PointColumns row_table, slab_table;
  MsdaArgs args{};

  static Tensor channels_contiguous(const Tensor& value) {
    // Offsets within one image are 32-bit; a layout that needs more is copied into one that does not.
    std::int64_t reach = 0;
    for (int i = 1; i < 4; ++i) reach += (value.size(i) - 1) * value.stride(i);
    const bool usable = value.stride(3) == 1 && reach < std::numeric_limits<std::int32_t>::max();
    return usable ? value : torch::stable::contiguous(value);
  }

  Call(const Tensor& value_, const Sizes& shapes_, const Tensor& loc_, const Tensor& weight_)
      : value(channels_contiguous(value_)),
        loc(contiguous_as(loc_, wide_type(value_))),
        weight(contiguous_as(weight_, wide_type(value_))),
        shapes(shapes_),
        row_table(shapes, loc.size(4), value.size(2), value.stride(2), value.stride(1)),
        slab_table(shapes, loc.size(4), 1, 0, value.size(3)) {
    const std::int64_t image = value.size(1) * value.size(2) * value.size(3);
    STD_TORCH_CHECK(image < std::numeric_limits<std::int32_t>::max(),
                    "value must have less than 2^31 elements an image, got ", describe(value));
    args.images = value.size(0);
    args.tokens = value.size(1);
    args.heads = value.size(2);
    args.channels = value.size(3);
    args.queries = loc.size(1);
    args.levels = loc.size(3);
    args.points = loc.size(4);
    args.sizes = shapes.data();
    args.storage = storage_of(value, "value");
    args.value = value.const_data_ptr();
    args.image_stride = value.stride(0);
    args.token_stride = value.stride(1);
    args.head_stride = value.stride(2);
    args.source = {loc.const_data_ptr(), weight.const_data_ptr(), nullptr, nullptr};
    args.row_points = row_table.get();
    args.slab_points = slab_table.get();
  }
};

// Who computes which rows of the output.
void run_forward(const MsdaArgs& args) {
  torch::stable::parallel_for(0, args.images * args.queries, kRowsAtLeast, [&](std::int64_t first, std::int64_t last) {
    kernels().msda_forward(args, first, last);
  });
}

Tensor forward(const Tensor& value, const Sizes shapes, const Tensor& loc, const Tensor& weight) {
  check_arguments(value, shapes, loc, weight);
  check_storage(value, "value");
  Tensor out = empty_like(value, {value.size(0), loc.size(1), value.size(2) * value.size(3)}, value.scalar_type());
  if (out.numel() == 0) return out;
  if (weight.numel() == 0) return torch::stable::zero_(out);
  Call call(value, shapes, loc, weight);
  call.args.out = out.mutable_data_ptr();
  run_forward(call.args);
  return out;
}

Tensor fused_forward(const Tensor& value, const Sizes shapes, const Tensor& ref, const Tensor& offsets,
                     const Tensor& logits) {
  check_fused(value, shapes, ref, offsets, logits);
  check_storage(value, "value");
  Tensor out = empty_like(value, {value.size(0), ref.size(1), value.size(2) * value.size(3)}, value.scalar_type());
  if (out.numel() == 0) return out;
  if (logits.numel() == 0) return torch::stable::zero_(out);
  Call call(value, shapes, offsets, logits);
  const Tensor centres = contiguous_as(ref, wide_type(value));
  std::vector<float> pixel;
  for (std::int64_t i = 0; i < call.args.levels * call.args.points; ++i) {
    const std::size_t level = i / call.args.points;
    pixel.push_back(1.0f / static_cast<float>(shapes[2 * level + 1]));
    pixel.push_back(1.0f / static_cast<float>(shapes[2 * level]));
  }
  call.args.source.ref = centres.const_data_ptr();
  call.args.source.pixel = pixel.data();
  call.args.out = out.mutable_data_ptr();
  run_forward(call.args);
  return out;
}

// One task is a head of an image; where those are fewer than threads, one level of it. Both add in the same order.
void backward_value(const MsdaArgs& args, ScalarType wide) {
  const bool split = args.images * args.heads < torch::stable::get_num_threads();
  const std::int64_t per_head = split ? args.levels : 1;
  const std::size_t slab_bytes = args.tokens * args.channels * (wide == ScalarType::Double ? 8 : 4);
  torch::stable::parallel_for(0, args.images * args.heads * per_head, 1, [&](std::int64_t first, std::int64_t last) {
    const Scratch slab(slab_bytes);
    for (std::int64_t task = first; task < last; ++task) {
      const std::int64_t head = task / per_head, level = task % per_head;
      kernels().msda_backward_value(args, head / args.heads, head % args.heads, level, split ? level + 1 : args.levels,
                                    slab.get());
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Sizes shapes,
                                            const Tensor& loc, const Tensor& weight, const std::vector<bool> mask) {
  check_arguments(value, shapes, loc, weight);
  check_storage(value, "value");
  const ScalarType wide = wide_type(value);
  check_grad(grad_out, value, loc);
  Tensor grad_value = empty_like(value, mask[0] ? sizes_of(value) : Sizes{0}, value.scalar_type());
  Tensor grad_loc = empty_like(loc, mask[1] ? sizes_of(loc) : Sizes{0}, wide);
  Tensor grad_weight = empty_like(weight, mask[2] ? sizes_of(weight) : Sizes{0}, wide);
  if (value.numel() == 0 || weight.numel() == 0) {
    for (Tensor* grad : {&grad_value, &grad_loc, &grad_weight}) torch::stable::zero_(*grad);
  } else {
    Call call(value, shapes, loc, weight);
    const Tensor grad = contiguous_as(grad_out, wide);
    call.args.grad_out = grad.const_data_ptr();
    call.args.grad_value = mask[0] ? grad_value.mutable_data_ptr() : nullptr;
    call.args.grad_loc = mask[1] ? grad_loc.mutable_data_ptr() : nullptr;
    call.args.grad_weight = mask[2] ? grad_weight.mutable_data_ptr() : nullptr;
    if (mask[0]) backward_value(call.args, wide);
    if (mask[1] || mask[2])
      torch::stable::parallel_for(
          0, call.args.images * call.args.queries, kRowsAtLeast,
          [&](std::int64_t first, std::int64_t last) { kernels().msda_backward_points(call.args, first, last); });
  }
  return {grad_value, grad_loc, contiguous_as(grad_weight, weight.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(avis, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&fused_forward));
}

}  // namespace avis
