// libavis_cuda.so, loaded at run time: this library has no CUDA in it, and runs where there is none.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "avis/cuda_api.h"
#include "tensors.h"

// The operators below run on CUDA; for tests they are also built to run, emulated, on the CPU.
#if defined(AVIS_EMULATED)
#define AVIS_GPU CPU
#else
#define AVIS_GPU CUDA
#endif

namespace avis {

struct CudaLibrary {
  decltype(&::av_archs) archs;
  decltype(&::av_error) error;
  decltype(&::av_msda_forward) msda_forward;
  decltype(&::av_msda_backward) msda_backward;
  decltype(&::av_plan_new) plan_new;
  decltype(&::av_plan_ints) plan_ints;
  decltype(&::av_plan_delete) plan_delete;
  decltype(&::av_range_forward) range_forward;
  decltype(&::av_range_backward) range_backward;
  decltype(&::av_paged_forward) paged_forward;
  decltype(&::av_paged_backward) paged_backward;
  decltype(&::av_cache_write) cache_write;
};

// Whether it is there; decided once, without asking for a GPU. Operators are registered only if so: without it CUDA
// tensors go to the references.
bool has_cuda_library();
const CudaLibrary& cuda_library();

// The name of a storage in the C interface; an error for float64, which it has no kernels for.
int cuda_storage(const Tensor& tensor, const char* name);

// A non-zero code as an exception.
void check_code(int code, const char* what);

// Calls run(stream) with the device of `tensor` made current, and its current stream.
template <class Run>
void on_device_of([[maybe_unused]] const Tensor& tensor, const char* what, const Run& run) {
#if defined(AVIS_EMULATED)
  check_code(run(nullptr), what);
#else
  const auto device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_code(run(torch::stable::accelerator::getCurrentStream(device).nativeHandle()), what);
#endif
}

// Null for what is not there, or empty.
inline const float* floats(const std::optional<Tensor>& tensor) {
  return tensor && tensor->numel() > 0 ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}
inline float* out_floats(Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr;
}
inline void* out_data(Tensor& tensor) { return tensor.numel() > 0 ? tensor.mutable_data_ptr() : nullptr; }

}  // namespace avis
