// What __builtin_cpu_supports cannot be asked by every compiler.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace avis {

// Half precision to float and back; clang knows its name from 18 on only.
inline bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx >> 29 & 1) != 0;
}

}  // namespace avis
#endif
