#include "cuda_library.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <string>
#include <type_traits>

namespace avis {
namespace {

struct Loaded {
  CudaLibrary functions{};
  bool usable = false;
  std::string status;  // its path, or why it is not used
};

// Beside the library that this code is in; tests put another build in its place by the environment.
std::string library_path() {
  if (const char* path = std::getenv("AVIS_STREAM_CUDA_LIBRARY")) return path;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&has_cuda_library), &info) == 0 || info.dli_fname == nullptr) return "";
  const std::string own = info.dli_fname;
  return own.substr(0, own.rfind('/') + 1) + "libavis_cuda.so";
}

Loaded load() {
  Loaded loaded;
  const std::string path = library_path();
  struct stat file;
  if (stat(path.c_str(), &file) != 0) {
    loaded.status = "not built; install with AVIS_STREAM_BUILD=cuda where nvcc is (no " + path + ")";
    return loaded;
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    loaded.status = "there, but does not load: " + std::string(dlerror());
    return loaded;
  }
  const auto abi = reinterpret_cast<decltype(&::av_abi)>(dlsym(library, "av_abi"));
  const int version = abi != nullptr ? abi() : 0;
  if (version != AV_ABI) {
    loaded.status = path + " has version " + std::to_string(version) +
                    " of the kernel interface, libavis_ops.so needs " + std::to_string(AV_ABI) + "; build both anew";
    return loaded;
  }
  loaded.usable = true;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) {
      loaded.usable = false;
      loaded.status = path + " lacks " + name + "; build it anew";
    }
  };
  CudaLibrary& f = loaded.functions;
  find("av_archs", f.archs);
  find("av_error", f.error);
  find("av_msda_forward", f.msda_forward);
  find("av_msda_backward", f.msda_backward);
  find("av_plan_new", f.plan_new);
  find("av_plan_ints", f.plan_ints);
  find("av_plan_delete", f.plan_delete);
  find("av_range_forward", f.range_forward);
  find("av_range_backward", f.range_backward);
  find("av_paged_forward", f.paged_forward);
  find("av_paged_backward", f.paged_backward);
  find("av_cache_write", f.cache_write);
  if (loaded.usable) loaded.status = path + ", for sm_" + f.archs();
  return loaded;
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

bool has_cuda_library() { return loaded().usable; }
const CudaLibrary& cuda_library() { return loaded().functions; }

int cuda_storage(const Tensor& tensor, const char* name) {
  switch (storage_of(tensor, name)) {
    case Storage::kFloat32:
      return AV_FLOAT32;
    case Storage::kBFloat16:
      return AV_BFLOAT16;
    case Storage::kFloat16:
      return AV_FLOAT16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16 on CUDA, got ", describe(tensor),
                      "; convert it, or compute on the CPU");
  }
}

void check_code(int code, const char* what) {
  STD_TORCH_CHECK(code == 0, what, " failed: ", cuda_library().error(code), " (the kernels are compiled for sm_",
                  cuda_library().archs(), ")");
}

}  // namespace avis

// For avis_stream.ops.info(), by ctypes: where the CUDA kernels are, or why they are not used.
extern "C" __attribute__((visibility("default"))) const char* avis_cuda_status() {
  return avis::loaded().status.c_str();
}
extern "C" __attribute__((visibility("default"))) int avis_cuda_usable() { return avis::has_cuda_library() ? 1 : 0; }
#if defined(AVIS_EMULATED)
extern "C" __attribute__((visibility("default"))) const char* avis_isa() { return "emulated"; }
#endif
