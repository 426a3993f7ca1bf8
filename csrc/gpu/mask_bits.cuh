// Masks as bits, an eighth of what bytes take on their way to the host: mask logits > 0, eight to a byte, first pixel
// in the highest bit, rows one after the other without padding, as numpy.unpackbits reads them.
#pragma once

#include "storage.cuh"

namespace avis::gpu {

struct MaskArgs {
  const float* logits;  // [I, pixels]
  long long masks, pixels;
  unsigned char* bits;  // [I, (pixels + 7) / 8]
  int* area;            // [I], zero before
};

constexpr int kMaskThreads = 128;

// One thread a byte; a warp adds its pixels to the area at once.
AV_KERNEL(kMaskThreads, 8) pack_masks(AV_ARGUMENT(MaskArgs) args) {
  const long long bytes = (args.pixels + 7) / 8;
  const long long byte = static_cast<long long>(blockIdx.x) * kMaskThreads + threadIdx.x, mask = blockIdx.y;
  int bits = 0, count = 0;
  for (int i = 0; i < 8 && byte < bytes; ++i) {
    const long long pixel = byte * 8 + i;
    const bool set = pixel < args.pixels && args.logits[mask * args.pixels + pixel] > 0.0f;
    bits |= set ? 0x80 >> i : 0;
    count += set;
  }
  if (byte < bytes) args.bits[mask * bytes + byte] = static_cast<unsigned char>(bits);
  for (int step = 1; step < 32; step *= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
  if (threadIdx.x % 32 == 0 && count > 0) atomicAdd(args.area + mask, count);
}

}  // namespace avis::gpu
