// Deformable attention: which kernel for which arguments.
#pragma once

#include "launch.h"
#include "msda.cuh"

namespace avis::gpu {

constexpr std::size_t kSharedLimit = 48 * 1024;  // that a block gets without asking

template <class T, int kChannels>
std::size_t msda_shared(const AvMsda& args) {
  return MsdaShape<T, kChannels>::kGroups * msda_stride(args.levels * args.points) * (sizeof(int4) + sizeof(float4));
}

inline bool msda_is_served(const AvMsda& args) {
  return args.levels >= 1 && args.levels <= AV_MAX_LEVELS && msda_shared<float, 0>(args) <= kSharedLimit;
}

// Whether what is moved 16 bytes at a time begins where that can be: a view into a larger tensor need not.
inline bool msda_is_aligned(const AvMsda& args) {
  for (const void* data :
       {args.value, args.grad_out, static_cast<const void*>(args.out), static_cast<const void*>(args.grad_value)})
    if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0) return false;
  return true;
}

// Calls what(Number<D>{}) with the channels that a kernel is compiled for, 0 for "any".
template <class T, class What>
int by_channels(const AvMsda& args, const What& what) {
  if (!msda_is_aligned(args)) return what(Number<0>{});
#if !defined(AVIS_FEW_KERNELS)
  if (args.channels == 16 && msda_shared<T, 16>(args) <= kSharedLimit) return what(Number<16>{});
  if (args.channels == 64 && msda_shared<T, 64>(args) <= kSharedLimit) return what(Number<64>{});
#endif
  if (args.channels == 32 && msda_shared<T, 32>(args) <= kSharedLimit) return what(Number<32>{});
  return what(Number<0>{});
}

template <class T, int kChannels, int kPoints>
int msda_forward_as(const AvMsda& args, void* stream) {
  const unsigned grid = blocks(args.images * args.queries * args.heads, MsdaShape<T, kChannels>::kGroups);
  return launch<msda_forward<T, kChannels, kPoints>>(grid, kMsdaThreads, msda_shared<T, kChannels>(args), stream, args);
}

inline int launch_msda_forward(const AvMsda& args, void* stream) {
  if (!msda_is_served(args)) return kNoKernel;
  return by_storage(args.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_channels<T>(args, [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      if constexpr (kChannels == 32)  // the published models
        if (args.levels * args.points == 12) return msda_forward_as<T, 32, 12>(args, stream);
      return msda_forward_as<T, kChannels, 0>(args, stream);
    });
  });
}

inline int launch_msda_backward(const AvMsda& args, void* stream) {
  if (!msda_is_served(args)) return kNoKernel;
  const int code = by_storage(args.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_channels<T>(args, [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      const unsigned grid = blocks(args.images * args.queries * args.heads, MsdaShape<T, kChannels>::kGroups);
      return launch<msda_backward<T, kChannels>>(grid, kMsdaThreads, 0, stream, args);
    });
  });
  if (code != 0 || args.grad_ref == nullptr) return code;
  const unsigned grid = blocks(args.images * args.queries * args.levels * 2, kMsdaThreads);
  return launch<msda_backward_ref>(grid, kMsdaThreads, 0, stream, args);
}

}  // namespace avis::gpu
