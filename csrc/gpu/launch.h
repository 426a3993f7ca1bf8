// One way to launch a kernel for all who compile these sources, and a door for who compiles them at run time.
#pragma once

#include <cstddef>
#include <string>

#include "storage.cuh"

namespace avis::gpu {

constexpr int kNoKernel = -1;

inline AvLauncher launcher = nullptr;

// "int f() [with auto kernel = &NAME]", as g++ tells it, without all but NAME.
inline std::string name_in(const std::string& text) {
  const std::string mark = "kernel = ";
  const std::size_t from = text.find_first_not_of("& (", text.find(mark) + mark.size());
  return text.substr(from, text.find_last_of('>') == std::string::npos ? text.find_first_of("];)", from) - from
                                                                       : text.find_last_of('>') + 1 - from);
}

// The kernel as NVRTC wants to hear it: "avis::gpu::msda_forward<float, 32, 12>".
template <auto kernel>
const char* kernel_name() {
  static const std::string name = name_in(__PRETTY_FUNCTION__);
  return name.c_str();
}

template <auto kernel, class Args>
int launch(dim3 grid, unsigned threads, std::size_t shared, void* stream, const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (grid.y > 65535 || grid.z > 65535) return kNoKernel;
  if (launcher != nullptr) {
    const unsigned dims[6] = {grid.x, grid.y, grid.z, threads, 1, 1};
    return launcher(kernel_name<kernel>(), dims, shared, &args, sizeof(Args), stream);
  }
#if defined(__CUDACC__)
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
#else
  return emu::launch(kernel_name<kernel>(), grid, threads, shared, kernel, args);
#endif
}

// The first of two launches that failed, if any.
inline int either(int first, int second) { return first != 0 ? first : second; }

inline unsigned blocks(long long n, long long per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

template <class T>
struct Type {
  using type = T;
};
template <int n>
struct Number {
  static constexpr int value = n;
};

// Calls what(Type<T>{}) with the type that the numbers are stored in.
template <class What>
int by_storage(int storage, const What& what) {
  switch (storage) {
    case AV_FLOAT32:
      return what(Type<float>{});
#if !defined(AVIS_FEW_KERNELS)  // set where a sanitizer compiles them, which is slow
    case AV_BFLOAT16:
      return what(Type<BFloat16>{});
    case AV_FLOAT16:
      return what(Type<Float16>{});
#endif
    default:
      return kNoKernel;
  }
}

}  // namespace avis::gpu
