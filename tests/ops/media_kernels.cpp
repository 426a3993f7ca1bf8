// The kernels of avis_stream.gpu.media on the emulator, each behind a C function that takes its struct.

#include "frames.cuh"
#include "launch.h"
#include "logmel.cuh"
#include "mask_bits.cuh"

using namespace avis::gpu;

extern "C" int network_input_(const FrameArgs* args) {
  return launch<network_input>(blocks(args->padded_height * args->padded_width, kFrameThreads), kFrameThreads, 0,
                               nullptr, *args);
}
extern "C" int log_mel_(const LogMelArgs* args, unsigned seconds) {
  return launch<log_mel>(dim3(kPatch, seconds), kMelThreads, 0, nullptr, *args);
}
extern "C" int pack_masks_(const MaskArgs* args) {
  return launch<pack_masks>(dim3(blocks((args->pixels + 7) / 8, kMaskThreads), static_cast<unsigned>(args->masks)),
                            kMaskThreads, 0, nullptr, *args);
}
extern "C" void emu_seed(unsigned seed) { emu::settings().seed = seed; }
