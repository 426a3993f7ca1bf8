// `avis_stream._host`: what this build is and what this machine can do. No tensors: those go through torch.library.

#include <pybind11/pybind11.h>

#include "avis/cpu_features.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = AVIS_COMPILER;
  info["torch"] = AVIS_TORCH_VERSION;
  info["isas"] = py::str(AVIS_ISAS).attr("split")(" ");
  info["cuda"] = py::bool_(AVIS_WITH_CUDA);
  return info;
}

py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features["avx2"] = static_cast<bool>(__builtin_cpu_supports("avx2"));
  features["fma"] = static_cast<bool>(__builtin_cpu_supports("fma"));
  features["f16c"] = avis::has_f16c();
  features["avx512f"] = static_cast<bool>(__builtin_cpu_supports("avx512f"));
  features["avx512bw"] = static_cast<bool>(__builtin_cpu_supports("avx512bw"));
  features["avx512dq"] = static_cast<bool>(__builtin_cpu_supports("avx512dq"));
  features["avx512vl"] = static_cast<bool>(__builtin_cpu_supports("avx512vl"));
  features["avx512bf16"] = static_cast<bool>(__builtin_cpu_supports("avx512bf16"));
#elif defined(__aarch64__)
  features["neon"] = true;  // part of the architecture
#endif
  return features;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information and CPU features.";
  m.def("build_info", &build_info, "How this build was made: compiler, torch version, instruction sets, CUDA.");
  m.def("cpu_features", &cpu_features, "Instruction set extensions that this machine has, by name.");
}
