// Multi-scale deformable attention, forward and backward.
//
// A few neighbouring lanes, a "group", share one (image, query, head): each lane owns 16 bytes of the channels, 8 lanes
// for 32 floats, 4 for 32 halves, so that one row of the value is one wide load a lane. First the lanes split the
// points between them and leave what is common to all channels, four offsets and four factors, in shared memory; then
// all walk over all points together. A group never spans two warps, so __syncwarp is all the order that is needed.
//
// Anything that is not 16, 32 or 64 channels runs the same code with a warp as the group and one channel a lane.
#pragma once

#include "storage.cuh"

namespace avis::gpu {

constexpr int kMsdaThreads = 128;
constexpr unsigned kWarp = 0xffffffffu;

// How one (T, channels) is cut up; kChannels 0 stands for "any".
template <class T, int kChannels>
struct MsdaShape {
  static constexpr int kWide = kChannels == 0 ? 1 : kVector<T>;                // channels a lane and step
  static constexpr int kGroup = kChannels == 0 ? 32 : kChannels / kVector<T>;  // lanes
  static constexpr int kGroups = kMsdaThreads / kGroup;                        // in a block
};

// What one point reads: offsets of its four rows within the image, in the order top left, top right, bottom left,
// bottom right. A corner outside is replaced by its neighbour of the same point, with factor 0; a point outside reads
// nothing at all, so that no distant NaN can leak in.
struct MsdaPoint {
  int offset[4];
  float factor[4];  // bilinear, without the attention weight
  float fx, fy, attention;
  int exists;  // a bit for each corner; 0: the point is skipped
  int height, width;
};

// Height, width and first token of a level. The loop is unrolled, so that all indices into the arguments are constants:
// a computed index would make some compilers copy them to the stack.
AV_DEVICE void find_level(const AvMsda& args, int level, int* height, int* width, int* first) {
  int token = 0;
  *height = *width = *first = 0;
  AV_UNROLL
  for (int i = 0; i < AV_MAX_LEVELS; ++i) {
    if (i == level) {
      *height = args.sizes[2 * i];
      *width = args.sizes[2 * i + 1];
      *first = token;
    }
    token += i < args.levels ? args.sizes[2 * i] * args.sizes[2 * i + 1] : 0;
  }
}

// Point `i` of the L * P of one (row = image and query, head); `attention` is its final weight.
AV_DEVICE MsdaPoint locate(const AvMsda& args, long long row, int head, int i, float attention) {
  MsdaPoint p;
  const int per_head = args.levels * args.points, level = i / args.points;
  int first;
  find_level(args, level, &p.height, &p.width, &first);
  const float* loc = args.loc + 2 * ((row * args.heads + head) * per_head + i);
  const float width = static_cast<float>(p.width), height = static_cast<float>(p.height);
  float x, y;
  if (args.ref == nullptr) {
    x = loc[0] * width - 0.5f;
    y = loc[1] * height - 0.5f;
  } else {
    const float* ref = args.ref + 2 * (row * args.levels + level);
    x = (ref[0] + loc[0] / width) * width - 0.5f;
    y = (ref[1] + loc[1] / height) * height - 0.5f;
  }
  p.attention = attention;
  const bool inside = x > -1.0f && y > -1.0f && x < width && y < height;  // false for NaN
  if (!inside) x = y = 0.0f;
  const float left = floorf(x), top = floorf(y);
  const int x0 = static_cast<int>(left), y0 = static_cast<int>(top);
  p.fx = x - left;
  p.fy = y - top;
  const bool has_left = x0 >= 0, has_right = x0 + 1 < p.width, has_top = y0 >= 0, has_bottom = y0 + 1 < p.height;
  const int col0 = has_left ? x0 : 0, col1 = has_right ? x0 + 1 : x0;
  const int row0 = first + (has_top ? y0 : 0) * p.width, row1 = first + (has_bottom ? y0 + 1 : y0) * p.width;
  p.exists = !inside ? 0
                     : (has_top && has_left) | (has_top && has_right) << 1 | (has_bottom && has_left) << 2 |
                           (has_bottom && has_right) << 3;
  const int pixel[4] = {row0 + col0, row0 + col1, row1 + col0, row1 + col1};
  const float factor[4] = {(1 - p.fx) * (1 - p.fy), p.fx * (1 - p.fy), (1 - p.fx) * p.fy, p.fx * p.fy};
  AV_UNROLL
  for (int corner = 0; corner < 4; ++corner) {
    p.offset[corner] = (pixel[corner] * args.heads + head) * args.channels;
    p.factor[corner] = (p.exists >> corner & 1) ? factor[corner] : 0.0f;
  }
  return p;
}

template <int kGroup>
AV_DEVICE float group_sum(float x) {
  AV_UNROLL
  for (int step = 1; step < kGroup; step *= 2) x += __shfl_xor_sync(kWarp, x, step);
  return x;
}
template <int kGroup>
AV_DEVICE float group_max(float x) {
  AV_UNROLL
  for (int step = 1; step < kGroup; step *= 2) x = fmaxf(x, __shfl_xor_sync(kWarp, x, step));
  return x;
}

// Largest logit and sum of exponentials of a group's points, for the fused operator; 0 and 1 otherwise.
template <int kGroup>
AV_DEVICE void softmax_of(const AvMsda& args, const float* logits, int count, int lane, float* max, float* total) {
  *max = 0.0f;
  *total = 1.0f;
  if (args.ref == nullptr) return;
  float own = -AV_INFINITY;
  for (int i = lane; i < count; i += kGroup) own = fmaxf(own, logits[i]);
  *max = group_max<kGroup>(own);
  own = 0.0f;
  for (int i = lane; i < count; i += kGroup) own += expf(logits[i] - *max);
  *total = group_sum<kGroup>(own);
}

// Which (row, head) a thread works on. Threads behind the last take part in shuffles with the last one's data.
struct MsdaPlace {
  long long row;
  int head, lane, group;
  bool active;
  template <int kGroup>
  AV_DEVICE static MsdaPlace of(const AvMsda& args) {
    const int thread = static_cast<int>(threadIdx.x);
    const long long total = args.images * args.queries * args.heads;
    long long at = static_cast<long long>(blockIdx.x) * (kMsdaThreads / kGroup) + thread / kGroup;
    const bool active = at < total;
    if (!active) at = total - 1;
    return {at / args.heads, static_cast<int>(at % args.heads), thread % kGroup, thread / kGroup, active};
  }
};

// Sixteen bytes of room between the points of two groups, or all groups would read from the same banks.
AV_CONSTANT int msda_stride(int count) { return count + 1; }

// kPoints: L * P as a constant, which unrolls the walk over the points; 0: read from the arguments.
template <class T, int kChannels, int kPoints>
AV_KERNEL(kMsdaThreads, 8)
msda_forward(AV_ARGUMENT(AvMsda) args) {
  using Shape = MsdaShape<T, kChannels>;
  const int count = kPoints ? kPoints : args.levels * args.points, stride = msda_stride(count);
  AV_DYNAMIC_SHARED(int4, offsets);  // offset -1: skipped
  float4* factors = reinterpret_cast<float4*>(offsets + Shape::kGroups * stride);
  const MsdaPlace at = MsdaPlace::of<Shape::kGroup>(args);
  const float* weight = args.weight + (at.row * args.heads + at.head) * count;
  float max, total;
  softmax_of<Shape::kGroup>(args, weight, count, at.lane, &max, &total);
  for (int i = at.lane; i < count; i += Shape::kGroup) {
    const float attention = args.ref == nullptr ? weight[i] : expf(weight[i] - max) / total;
    const MsdaPoint p = locate(args, at.row, at.head, i, attention);
    const int slot = at.group * stride + i;
    offsets[slot] = p.exists ? make_int4(p.offset[0], p.offset[1], p.offset[2], p.offset[3]) : make_int4(-1, 0, 0, 0);
    factors[slot] =
        make_float4(p.factor[0] * attention, p.factor[1] * attention, p.factor[2] * attention, p.factor[3] * attention);
  }
  __syncwarp();
  if (!at.active) return;
  const long long image = at.row / args.queries * args.tokens * args.heads * args.channels;
  const int channels = kChannels ? kChannels : args.channels;
  for (int c = at.lane * Shape::kWide; c < channels; c += Shape::kGroup * Shape::kWide) {
    const T* value = static_cast<const T*>(args.value) + image + c;
    float sum[Shape::kWide] = {};
    AV_UNROLL
    for (int i = 0; i < count; ++i) {
      const int4 o = offsets[at.group * stride + i];
      const float4 f = factors[at.group * stride + i];
      if (o.x < 0) continue;
      float a[Shape::kWide], b[Shape::kWide], d[Shape::kWide], e[Shape::kWide];
      load(value + o.x, a);
      load(value + o.y, b);
      load(value + o.z, d);
      load(value + o.w, e);
      AV_UNROLL
      for (int n = 0; n < Shape::kWide; ++n) sum[n] += f.x * a[n] + f.y * b[n] + f.z * d[n] + f.w * e[n];
    }
    store(sum, static_cast<T*>(args.out) + (at.row * args.heads + at.head) * channels + c);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kWideAtomics = false;
#else
inline constexpr bool kWideAtomics = true;
#endif

// Adds to neighbouring floats of global memory: four at a time where the hardware can.
template <int n>
AV_DEVICE void add_to(float* to, const float (&x)[n], float factor) {
  if constexpr (kWideAtomics && n % 4 == 0) {
    AV_UNROLL
    for (int i = 0; i < n; i += 4)
      atomicAdd(reinterpret_cast<float4*>(to + i),
                make_float4(factor * x[i], factor * x[i + 1], factor * x[i + 2], factor * x[i + 3]));
  } else {
    AV_UNROLL
    for (int i = 0; i < n; ++i) atomicAdd(to + i, factor * x[i]);
  }
}

// Gradients of a point follow from four dot products of the output's gradient with the rows that it read, summed over
// the group by shuffles. Gradients of the value meet in global memory: sums of floats whose order nobody fixes.
template <class T, int kChannels>
AV_KERNEL(kMsdaThreads, 5)
msda_backward(AV_ARGUMENT(AvMsda) args) {
  using Shape = MsdaShape<T, kChannels>;
  const int count = args.levels * args.points;
  const MsdaPlace at = MsdaPlace::of<Shape::kGroup>(args);
  const int channels = kChannels ? kChannels : args.channels;
  const long long head = at.row * args.heads + at.head;
  const float* weight = args.weight + head * count;
  const T* grad_out = static_cast<const T*>(args.grad_out) + head * channels;
  const long long image = at.row / args.queries * args.tokens * args.heads * channels;
  const T* value = static_cast<const T*>(args.value) + image;
  float max, total, weighted = 0.0f;
  softmax_of<Shape::kGroup>(args, weight, count, at.lane, &max, &total);
  for (int i = 0; i < count; ++i) {
    const float attention = args.ref == nullptr ? weight[i] : expf(weight[i] - max) / total;
    const MsdaPoint p = locate(args, at.row, at.head, i, attention);
    float dot[4] = {};
    for (int c = at.lane * Shape::kWide; p.exists != 0 && c < channels; c += Shape::kGroup * Shape::kWide) {
      float grad[Shape::kWide];
      load(grad_out + c, grad);
      AV_UNROLL
      for (int corner = 0; corner < 4; ++corner) {
        if ((p.exists >> corner & 1) == 0) continue;
        float row[Shape::kWide];
        load(value + p.offset[corner] + c, row);
        AV_UNROLL
        for (int n = 0; n < Shape::kWide; ++n) dot[corner] += grad[n] * row[n];
        if (args.grad_value != nullptr && at.active)
          add_to(args.grad_value + image + p.offset[corner] + c, grad, p.factor[corner] * attention);
      }
    }
    AV_UNROLL
    for (int corner = 0; corner < 4; ++corner) dot[corner] = group_sum<Shape::kGroup>(dot[corner]);
    const float along_top = dot[1] - dot[0], along_bottom = dot[3] - dot[2];
    const float at_top = dot[0] + p.fx * along_top, down = dot[2] + p.fx * along_bottom - at_top;
    const float sampled = at_top + p.fy * down;
    weighted += attention * sampled;
    if (i % Shape::kGroup != at.lane || !at.active) continue;
    if (args.grad_weight != nullptr) args.grad_weight[head * count + i] = sampled;
    if (args.grad_loc != nullptr) {
      // Offsets are in pixels already.
      const float across = args.ref == nullptr ? static_cast<float>(p.width) : 1.0f;
      const float along = args.ref == nullptr ? static_cast<float>(p.height) : 1.0f;
      args.grad_loc[2 * (head * count + i)] = attention * (along_top + p.fy * (along_bottom - along_top)) * across;
      args.grad_loc[2 * (head * count + i) + 1] = attention * down * along;
    }
  }
  if (args.ref == nullptr || args.grad_weight == nullptr || !at.active) return;
  // Through the softmax; each lane comes back to the points that it wrote itself.
  for (int i = at.lane; i < count; i += Shape::kGroup) {
    float* grad = args.grad_weight + head * count + i;
    *grad = expf(weight[i] - max) / total * (*grad - weighted);
  }
}

// Reference points gather what their offsets got, in the order of heads and points: one thread a coordinate.
AV_KERNEL(kMsdaThreads, 8) msda_backward_ref(AV_ARGUMENT(AvMsda) args) {
  const long long i = static_cast<long long>(blockIdx.x) * kMsdaThreads + threadIdx.x;
  if (i >= args.images * args.queries * args.levels * 2) return;
  const int axis = static_cast<int>(i % 2), level = static_cast<int>(i / 2 % args.levels);
  const long long row = i / 2 / args.levels;
  int height, width, first;
  find_level(args, level, &height, &width, &first);
  float sum = 0.0f;
  for (int head = 0; head < args.heads; ++head)
    for (int p = 0; p < args.points; ++p)
      sum += args.grad_loc[2 * (((row * args.heads + head) * args.levels + level) * args.points + p) + axis];
  args.grad_ref[i] = sum * static_cast<float>(axis ? height : width);
}

}  // namespace avis::gpu
