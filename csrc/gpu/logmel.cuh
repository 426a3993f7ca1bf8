// Log-mel patches of seconds of sound: what audio/logmel.py computes, one block a window of 25 ms.
//
// In double precision, as the official features were made: beside a loud tone, quiet bands have no digits left in
// float. A Fourier transform of 512 points is 9 rounds of 256 butterflies, one a thread (Cooley and Tukey, 1965).
#pragma once

#include "storage.cuh"

namespace avis::gpu {

constexpr int kWindow = 400, kHop = 160, kPoints = 512, kBins = kPoints / 2 + 1, kBands = 64, kPatch = 96;
constexpr int kMelThreads = kPoints / 2, kParts = kMelThreads / kBands;

struct LogMelArgs {
  const float* seconds;      // [T, samples]
  const double* hann;        // [400]
  const double* twiddle;     // [256][2]: cos and sin of -2 pi i / 512
  const double* mel;         // [257, 64]
  const long long* valid;    // [T] samples that were there, or null: all
  long long samples, least;  // a second with fewer valid samples than `least` gives zeros
  double offset;
  float* out;  // [T, 96, 64]
};

// The place of point i when it is read with its 9 bits reversed.
AV_DEVICE int reversed_bits(int i) {
  int reversed = 0;
  for (int bit = 0; bit < 9; ++bit) reversed |= (i >> bit & 1) << (8 - bit);
  return reversed;
}

AV_KERNEL(kMelThreads, 2) log_mel(AV_ARGUMENT(LogMelArgs) args) {
  AV_SHARED(double, real, kPoints);
  AV_SHARED(double, imaginary, kPoints);
  AV_SHARED(double, magnitude, kBins);
  AV_SHARED(double, part, kMelThreads);
  const int t = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.x),
            second = static_cast<int>(blockIdx.y);
  const float* sound = args.seconds + second * args.samples + frame * kHop;
  for (int i = t; i < kPoints; i += kMelThreads) {
    const int to = reversed_bits(i);
    real[to] = i < kWindow ? args.hann[i] * static_cast<double>(sound[i]) : 0.0;
    imaginary[to] = 0.0;
  }
  for (int half = 1; half < kPoints; half *= 2) {
    __syncthreads();
    const int place = t % half, low = t / half * 2 * half + place, high = low + half,
              turn = place * (kPoints / 2 / half);
    const double c = args.twiddle[2 * turn], s = args.twiddle[2 * turn + 1];
    const double x = real[high] * c - imaginary[high] * s, y = real[high] * s + imaginary[high] * c;
    real[high] = real[low] - x;
    imaginary[high] = imaginary[low] - y;
    real[low] += x;
    imaginary[low] += y;
  }
  __syncthreads();
  for (int i = t; i < kBins; i += kMelThreads) magnitude[i] = sqrt(real[i] * real[i] + imaginary[i] * imaginary[i]);
  __syncthreads();
  // Four threads a band, each with every fourth bin.
  const int band = t % kBands;
  double sum = 0.0;
  for (int i = t / kBands; i < kBins; i += kParts) sum += magnitude[i] * args.mel[i * kBands + band];
  part[t] = sum;
  __syncthreads();
  if (t >= kBands) return;
  const bool enough = args.valid == nullptr || args.valid[second] >= args.least;
  const double energy = part[t] + part[t + kBands] + part[t + 2 * kBands] + part[t + 3 * kBands];
  args.out[(static_cast<long long>(second) * kPatch + frame) * kBands + t] =
      enough ? static_cast<float>(log(energy + args.offset)) : 0.0f;
}

}  // namespace avis::gpu
