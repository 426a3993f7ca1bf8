// What every operator needs of torch's stable ABI: checks that name the argument, and tensors in the layout asked for.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "avis/msda.h"

namespace avis {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// "[2, 40, 2, 32] float32", as checks.py words it.
std::string describe(const Tensor& tensor);

using Sizes = std::vector<std::int64_t>;

// An error unless all others are where the first is.
void check_device(const Tensor& first, std::initializer_list<const Tensor*> others);

// How the numbers of a tensor lie in memory; an error that names the tensor if we have no kernel for them.
[[nodiscard]] Storage storage_of(const Tensor& tensor, const char* name);

// That error alone.
inline void check_storage(const Tensor& tensor, const char* name) { static_cast<void>(storage_of(tensor, name)); }

// Type of sums, coordinates and weights beside tensors of this type.
inline ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tensor itself if it is contiguous and of that type, else a copy.
Tensor contiguous_as(const Tensor& tensor, ScalarType type);

// Not by torch::stable::new_empty, whose way through the dispatcher takes a microsecond.
Tensor empty_like(const Tensor& like, const Sizes& sizes, ScalarType type);
inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// Memory for one thread's intermediate results, aligned to cache lines and not initialised.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : data_(::operator new(bytes, std::align_val_t{64})) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* get() const { return data_; }

 private:
  void* data_;
};

}  // namespace avis
