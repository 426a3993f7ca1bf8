// Writing keys and values of a new frame into the cache of a stream, at a place that is read from device memory.
#pragma once

#include "storage.cuh"

namespace avis::gpu {

constexpr int kCacheThreads = 128;

// `Unit` is what is moved at a time: 16 bytes, or one number.
template <class Unit>
AV_KERNEL(kCacheThreads, 8)
write_cache(AV_ARGUMENT(AvCacheWrite) args) {
  const int per_unit = static_cast<int>(sizeof(Unit)) / args.bytes, units = args.channels / per_unit;
  const long long i = static_cast<long long>(blockIdx.x) * kCacheThreads + threadIdx.x;
  if (i >= static_cast<long long>(args.batch) * args.count * args.heads * units) return;
  const int c = static_cast<int>(i % units), head = static_cast<int>(i / units % args.heads);
  const int token = static_cast<int>(i / units / args.heads % args.count);
  const int batch = static_cast<int>(i / units / args.heads / args.count);
  const long long slot = static_cast<long long>(*args.slot) + token;
  if (slot < 0 || slot >= args.slots) return;
  const auto at = [&](const AvTokens& x, long long index) {
    return (batch * x.batch_stride + index * x.token_stride + head * x.head_stride) / per_unit + c;
  };
  static_cast<Unit*>(const_cast<void*>(args.cache.data))[at(args.cache, slot)] =
      static_cast<const Unit*>(args.tokens.data)[at(args.tokens, token)];
}

}  // namespace avis::gpu
