#include "tensors.h"

#include <algorithm>

namespace avis {
namespace {

const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "another dtype";
  }
}

// torch's own number of a type.
std::int32_t number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    default:
      STD_TORCH_CHECK(false, "no tensors of such a dtype are made here");
  }
}

}  // namespace

std::string describe(const Tensor& tensor) {
  std::string text = "[";
  for (std::int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "] " + type_name(tensor.scalar_type());
}

void check_device(const Tensor& first, std::initializer_list<const Tensor*> others) {
  for (const Tensor* other : others)
    STD_TORCH_CHECK(other->device() == first.device(), "all tensors must be on one device, got ", describe(first),
                    " and ", describe(*other), " on different ones; move one of them");
}

Storage storage_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat32;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    case ScalarType::Double:
      return Storage::kFloat64;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16, got ", describe(tensor));
  }
}

Tensor empty_like(const Tensor& like, const Sizes& sizes, ScalarType type) {
  Sizes strides(sizes.size());
  std::int64_t step = 1;
  for (std::size_t i = sizes.size(); i-- > 0; step *= std::max<std::int64_t>(sizes[i], 1)) strides[i] = step;
  std::int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), number_of(type), device_type, device_index,
                                                         &made));
  return Tensor(made);
}

Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  const Tensor typed = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

}  // namespace avis
