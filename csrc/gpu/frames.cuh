// A frame as a camera or decoder gives it to the network's input: colours, Pillow's resize, normalising, padding.
//
// Pillow resizes in integers: weights of 22 bits, first across, rounded to bytes, then down, rounded again. Doing the
// same here gives the same bytes as the CPU path, so a model sees the same picture wherever it was resized. One thread
// a pixel of the result; the two passes are fused, as rows of a thread's window are read from the cache by its
// neighbours.
#pragma once

#include "storage.cuh"

namespace avis::gpu {

enum FrameFormat { kRGB = 0, kBGR = 1, kNV12 = 2 };

struct FrameArgs {
  const unsigned char* data;    // rows of pixels; NV12: of luma
  const unsigned char* chroma;  // NV12: rows of (Cb, Cr), for 2 x 2 pixels each
  long long row_bytes, chroma_row_bytes;
  int height, width, format;
  int out_height, out_width, padded_height, padded_width;
  // Weights of the resize: for each pixel of the result, the first source pixel and `taps` weights.
  const int *x_first, *x_weights, *y_first, *y_weights;
  int x_taps, y_taps;
  // NV12: RGB = luma_scale * (Y - 16) + what Cb and Cr add.
  float luma_scale, red_cr, green_cb, green_cr, blue_cb;
  float mean[3], deviation[3];
  float* out;  // [3, padded_height, padded_width]
};

constexpr int kFrameThreads = 128;
constexpr int kWeightBits = 22;

AV_DEVICE int to_byte(float x) { return static_cast<int>(fminf(fmaxf(floorf(x + 0.5f), 0.0f), 255.0f)); }
AV_DEVICE int round_weighted(long long sum) {
  const long long whole = (sum + (1ll << (kWeightBits - 1))) >> kWeightBits;
  return static_cast<int>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
}

struct Pixel {
  int channel[3];
};

AV_DEVICE Pixel read_pixel(const FrameArgs& args, int y, int x) {
  if (args.format == kNV12) {
    const float luma = args.luma_scale * (static_cast<float>(args.data[y * args.row_bytes + x]) - 16.0f);
    const unsigned char* pair = args.chroma + (y / 2) * args.chroma_row_bytes + (x / 2) * 2;
    const float cb = static_cast<float>(pair[0]) - 128.0f, cr = static_cast<float>(pair[1]) - 128.0f;
    return {{to_byte(luma + args.red_cr * cr), to_byte(luma + args.green_cb * cb + args.green_cr * cr),
             to_byte(luma + args.blue_cb * cb)}};
  }
  const unsigned char* pixel = args.data + y * args.row_bytes + 3 * x;
  const int first = args.format == kBGR ? 2 : 0;
  return {{pixel[first], pixel[1], pixel[2 - first]}};
}

AV_KERNEL(kFrameThreads, 8) network_input(AV_ARGUMENT(FrameArgs) args) {
  const int plane = args.padded_height * args.padded_width;
  const int i = static_cast<int>(blockIdx.x) * kFrameThreads + static_cast<int>(threadIdx.x);
  if (i >= plane) return;
  const int y = i / args.padded_width, x = i % args.padded_width;
  const bool inside = y < args.out_height && x < args.out_width;
  long long down[3] = {};
  for (int row = 0; inside && row < args.y_taps; ++row) {
    const long long y_weight = args.y_weights[y * args.y_taps + row];
    if (y_weight == 0) continue;  // behind the last pixel
    long long across[3] = {};
    for (int column = 0; column < args.x_taps; ++column) {
      const long long x_weight = args.x_weights[x * args.x_taps + column];
      if (x_weight == 0) continue;
      const Pixel pixel = read_pixel(args, args.y_first[y] + row, args.x_first[x] + column);
      AV_UNROLL
      for (int c = 0; c < 3; ++c) across[c] += x_weight * pixel.channel[c];
    }
    AV_UNROLL
    for (int c = 0; c < 3; ++c) down[c] += y_weight * round_weighted(across[c]);
  }
  AV_UNROLL
  for (int c = 0; c < 3; ++c) {
    const float byte = static_cast<float>(round_weighted(down[c]));
    args.out[c * plane + i] = inside ? (byte - args.mean[c]) / args.deviation[c] : 0.0f;
  }
}

}  // namespace avis::gpu
