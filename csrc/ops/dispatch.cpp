// Chooses the instruction set, once: the best that the machine runs, unless AVIS_STREAM_ISA asks for less.

#include <cstdlib>
#include <cstring>

#include "avis/cpu_features.h"
#include "avis/kernels.h"

namespace avis {
namespace {

struct Candidate {
  const Kernels* kernels;
  bool runs_here;
};

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#if defined(AVIS_EMULATE_AVX512)
  const bool avx512 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const Candidate candidates[] = {{&kernels_avx512, avx512}, {&kernels_avx2, avx2}, {&kernels_base, true}};
#else
  const Candidate candidates[] = {{&kernels_base, true}};
#endif
  // "At most this": a name that this build does not know, or a set that the machine does not have, asks for nothing.
  const char* cap = std::getenv("AVIS_STREAM_ISA");
  bool known = false;
  for (const Candidate& c : candidates) known |= cap != nullptr && std::strcmp(cap, c.kernels->name) == 0;
  bool allowed = !known;
  for (const Candidate& c : candidates) {
    allowed |= known && std::strcmp(cap, c.kernels->name) == 0;
    if (allowed && c.runs_here) return *c.kernels;
  }
  return kernels_base;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace avis

// For avis_stream.ops.info(), by ctypes.
extern "C" __attribute__((visibility("default"))) const char* avis_isa() { return avis::kernels().name; }
