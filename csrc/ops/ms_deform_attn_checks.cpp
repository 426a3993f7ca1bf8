#include "ms_deform_attn_checks.h"

namespace avis {
namespace {

void check_shapes(const Tensor& value, const Sizes& shapes) {
  STD_TORCH_CHECK(!shapes.empty() && shapes.size() % 2 == 0,
                  "spatial_shapes must be [H0, W0, H1, W1, ...], two numbers a level, got ", shapes.size(), " numbers");
  STD_TORCH_CHECK(value.dim() == 4, "value must be [N, S, M, D], got ", describe(value));
  std::int64_t tokens = 0;
  bool fits = true;
  for (std::size_t i = 0; i < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] >= 1 && shapes[i + 1] >= 1,
                    "spatial_shapes must be at least 1 everywhere; drop empty levels");
    // Not multiplied before: a product that is too large for 64 bits might come out as the right number.
    fits = fits && shapes[i] <= value.size(1) / shapes[i + 1];
    tokens += fits ? shapes[i] * shapes[i + 1] : 0;
  }
  STD_TORCH_CHECK(fits && value.size(1) == tokens, "value must be [N, S, M, D], S the pixels of spatial_shapes",
                  fits ? " (" + std::to_string(tokens) + ")" : "", ", got ", describe(value));
}

}  // namespace

void check_arguments(const Tensor& value, const Sizes& shapes, const Tensor& loc, const Tensor& weight) {
  check_shapes(value, shapes);
  const auto levels = static_cast<std::int64_t>(shapes.size() / 2);
  const bool fits = loc.dim() == 6 && loc.size(0) == value.size(0) && loc.size(2) == value.size(2) &&
                    loc.size(3) == levels && loc.size(5) == 2;
  STD_TORCH_CHECK(fits, "sampling_locations must be [N=", value.size(0), ", Q, M=", value.size(2), ", L=", levels,
                  ", P, 2] to fit value and spatial_shapes, got ", describe(loc));
  bool same = weight.dim() == 5;
  for (int i = 0; same && i < 5; ++i) same = weight.size(i) == loc.size(i);
  STD_TORCH_CHECK(same, "attention_weights must be [N, Q, M, L, P] to fit sampling_locations ", describe(loc), ", got ",
                  describe(weight));
  const ScalarType wide = wide_type(value);
  STD_TORCH_CHECK(loc.scalar_type() == wide, "sampling_locations must be ",
                  wide == ScalarType::Double ? "float64" : "float32", " beside value ", describe(value), ", got ",
                  describe(loc));
  STD_TORCH_CHECK(weight.scalar_type() == wide || weight.scalar_type() == value.scalar_type(),
                  "attention_weights must be float32 or the dtype of value ", describe(value), ", got ",
                  describe(weight));
  check_device(value, {&loc, &weight});
}

void check_fused(const Tensor& value, const Sizes& shapes, const Tensor& ref, const Tensor& offsets,
                 const Tensor& logits) {
  check_shapes(value, shapes);
  const auto levels = static_cast<std::int64_t>(shapes.size() / 2), n = value.size(0), m = value.size(2);
  STD_TORCH_CHECK(ref.dim() == 4 && ref.size(0) == n && ref.size(2) == levels && ref.size(3) == 2,
                  "reference_points must be [N=", n, ", Q, L=", levels, ", 2], got ", describe(ref),
                  "; boxes are not taken");
  const std::int64_t q = ref.size(1);
  const bool fits = offsets.dim() == 6 && offsets.size(0) == n && offsets.size(1) == q && offsets.size(2) == m &&
                    offsets.size(3) == levels && offsets.size(5) == 2;
  STD_TORCH_CHECK(fits, "offsets must be [N=", n, ", Q=", q, ", M=", m, ", L=", levels, ", P, 2], got ",
                  describe(offsets));
  STD_TORCH_CHECK(sizes_of(logits) == (Sizes{n, q, m, levels * offsets.size(4)}), "logits must be [N=", n, ", Q=", q,
                  ", M=", m, ", L*P=", levels * offsets.size(4), "], got ", describe(logits));
  const ScalarType wide = wide_type(value);
  STD_TORCH_CHECK(ref.scalar_type() == wide && offsets.scalar_type() == wide,
                  "reference_points and offsets must be float32 (float64 beside float64), got ", describe(ref), " and ",
                  describe(offsets));
  STD_TORCH_CHECK(logits.scalar_type() == wide || logits.scalar_type() == value.scalar_type(),
                  "logits must be float32 or the dtype of value ", describe(value), ", got ", describe(logits));
  check_device(value, {&ref, &offsets, &logits});
}

void check_grad(const Tensor& grad_out, const Tensor& value, const Tensor& loc) {
  const bool fits = grad_out.dim() == 3 && grad_out.size(0) == value.size(0) && grad_out.size(1) == loc.size(1) &&
                    grad_out.size(2) == value.size(2) * value.size(3);
  STD_TORCH_CHECK(fits, "grad_out must be [N, Q, M * D] as the output, got ", describe(grad_out));
  check_device(value, {&grad_out});
}

}  // namespace avis
