// Small tables of numbers from the host to the device inside the arguments of a launch: no copy, no pinned memory,
// nothing that must outlive the call, and a captured graph keeps them with its nodes.
#pragma once

#include "compat.h"

namespace avis::gpu {

constexpr int kUploadThreads = 128;
constexpr int kChunk = 1000;  // numbers a launch: all arguments together have 4 KB

struct Chunk {
  int32_t* to;
  int32_t count;
  int32_t numbers[kChunk];
};

AV_KERNEL(kUploadThreads, 8) upload(AV_ARGUMENT(Chunk) args) {
  const int i = static_cast<int>(blockIdx.x) * kUploadThreads + static_cast<int>(threadIdx.x);
  if (i < args.count) args.to[i] = args.numbers[i];
}

}  // namespace avis::gpu
