// Any number of channels, levels, points and heads, any storage, float64 too: written to be right, left to the compiler
// to be quick. One channel loop is inside everything, so it vectorises where channels are many.
//
// `W` is the type of coordinates and sums: double for double storage, else float.
#pragma once

#include "avis/msda.h"
#include "storage.h"
#include "tile.h"

namespace avis::AVIS_ISA {

template <class W>
struct Point {
  bool inside = false;
  W fx = 0, fy = 0, attention = 0;
  bool exists[4] = {};         // corners: top left, top right, bottom left, bottom right
  std::int64_t pixel[4] = {};  // token of each corner that exists
  W weight[4] = {};            // bilinear factor, without the attention weight
};

template <class W>
AVIS_INLINE W floor_of(W x) {
  if constexpr (sizeof(W) == 8)
    return __builtin_floor(x);
  else
    return __builtin_floorf(x);
}

// The point at pixel (x, y) of a level of the given size that begins at token `first`.
template <class W>
AVIS_INLINE Point<W> point_at(W x, W y, W attention, std::int64_t height, std::int64_t width, std::int64_t first) {
  Point<W> p;
  p.inside = x > W(-1) && y > W(-1) && x < static_cast<W>(width) && y < static_cast<W>(height);
  if (!p.inside) return p;
  p.attention = attention;
  const auto x0 = static_cast<std::int64_t>(floor_of(x)), y0 = static_cast<std::int64_t>(floor_of(y));
  p.fx = x - static_cast<W>(x0);
  p.fy = y - static_cast<W>(y0);
  for (int corner = 0; corner < 4; ++corner) {
    const std::int64_t cx = x0 + corner % 2, cy = y0 + corner / 2;
    p.exists[corner] = cx >= 0 && cx < width && cy >= 0 && cy < height;
    p.pixel[corner] = first + cy * width + cx;
    p.weight[corner] = (corner % 2 ? p.fx : 1 - p.fx) * (corner / 2 ? p.fy : 1 - p.fy);
  }
  return p;
}

// Softmax over the logits of one row and head: weight of logit x is exp(x - max) / total.
template <class W>
struct Softmax {
  W max, total = 0;

  Softmax(const W* logits, std::int64_t count) : max(logits[0]) {
    for (std::int64_t i = 1; i < count; ++i) max = logits[i] > max ? logits[i] : max;
    for (std::int64_t i = 0; i < count; ++i) total += exp_of(logits[i] - max);
  }
  W operator()(W x) const { return exp_of(x - max) / total; }
};

// Calls visit(point, index of the point among all, height, width) for the points of one row and head.
template <class W, class Visit>
AVIS_INLINE void each_point(const MsdaArgs& args, std::int64_t row, std::int64_t head, std::int64_t first_level,
                            std::int64_t last_level, const Visit& visit) {
  const auto* loc = static_cast<const W*>(args.source.loc);
  const auto* weight = static_cast<const W*>(args.source.weight);
  const auto* ref = static_cast<const W*>(args.source.ref);
  const std::int64_t per_head = args.levels * args.points, first_point = (row * args.heads + head) * per_head;
  const Softmax<W> softmax(weight + first_point, ref == nullptr ? 1 : per_head);
  std::int64_t first = 0;
  for (std::int64_t level = 0; level < last_level; ++level) {
    const std::int64_t height = args.sizes[2 * level], width = args.sizes[2 * level + 1];
    if (level >= first_level)
      for (std::int64_t p = 0; p < args.points; ++p) {
        const std::int64_t i = first_point + level * args.points + p;
        W x = loc[2 * i], y = loc[2 * i + 1], attention = weight[i];
        if (ref != nullptr) {
          const W* centre = ref + 2 * (row * args.levels + level);
          x = centre[0] + x / static_cast<W>(width);
          y = centre[1] + y / static_cast<W>(height);
          attention = softmax(attention);
        }
        x = x * static_cast<W>(width) - W(0.5);
        y = y * static_cast<W>(height) - W(0.5);
        visit(point_at<W>(x, y, attention, height, width, first), i, height, width);
      }
    first += height * width;
  }
}

// Channels at a time, so that sums stay in registers or at least in the nearest cache.
constexpr int kChannels = 64;

template <class T, class W>
void msda_forward_general(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row)
    for (std::int64_t head = 0; head < args.heads; ++head)
      for (std::int64_t c0 = 0; c0 < args.channels; c0 += kChannels) {
        const std::int64_t n = args.channels - c0 < kChannels ? args.channels - c0 : kChannels;
        const T* value =
            static_cast<const T*>(args.value) + row / args.queries * args.image_stride + head * args.head_stride + c0;
        W sum[kChannels] = {};
        each_point<W>(args, row, head, 0, args.levels, [&](const Point<W>& p, auto...) {
          for (int corner = 0; p.inside && corner < 4; ++corner) {
            if (!p.exists[corner]) continue;
            const T* from = value + p.pixel[corner] * args.token_stride;
            const W weight = p.attention * p.weight[corner];
            for (std::int64_t c = 0; c < n; ++c) sum[c] += weight * static_cast<W>(widen(from[c]));
          }
        });
        T* out = static_cast<T*>(args.out) + (row * args.heads + head) * args.channels + c0;
        for (std::int64_t c = 0; c < n; ++c) narrow(sum[c], out + c);
      }
}

template <class T, class W>
void msda_backward_points_general(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row)
    for (std::int64_t head = 0; head < args.heads; ++head) {
      const T* value =
          static_cast<const T*>(args.value) + row / args.queries * args.image_stride + head * args.head_stride;
      const W* grad = static_cast<const W*>(args.grad_out) + (row * args.heads + head) * args.channels;
      each_point<W>(args, row, head, 0, args.levels,
                    [&](const Point<W>& p, std::int64_t i, std::int64_t height, std::int64_t width) {
                      W dot[4] = {};
                      for (int corner = 0; p.inside && corner < 4; ++corner) {
                        if (!p.exists[corner]) continue;
                        const T* from = value + p.pixel[corner] * args.token_stride;
                        for (std::int64_t c = 0; c < args.channels; ++c)
                          dot[corner] += grad[c] * static_cast<W>(widen(from[c]));
                      }
                      const W along_top = dot[1] - dot[0], along_bottom = dot[3] - dot[2];
                      const W at_top = dot[0] + p.fx * along_top, down = dot[2] + p.fx * along_bottom - at_top;
                      if (args.grad_weight != nullptr) static_cast<W*>(args.grad_weight)[i] = at_top + p.fy * down;
                      if (args.grad_loc == nullptr) return;
                      W* grad_loc = static_cast<W*>(args.grad_loc) + 2 * i;
                      grad_loc[0] =
                          p.attention * (along_top + p.fy * (along_bottom - along_top)) * static_cast<W>(width);
                      grad_loc[1] = p.attention * down * static_cast<W>(height);
                    });
    }
}

template <class T, class W>
void msda_backward_value_general(const MsdaArgs& args, std::int64_t image, std::int64_t head, std::int64_t first_level,
                                 std::int64_t last_level, void* scratch) {
  W* slab = static_cast<W*>(scratch);
  std::int64_t first_token = 0, last_token = 0;
  for (std::int64_t level = 0; level < last_level; ++level) {
    if (level == first_level) first_token = last_token;
    last_token += args.sizes[2 * level] * args.sizes[2 * level + 1];
  }
  const std::int64_t channels = args.channels;
  for (std::int64_t i = first_token * channels; i < last_token * channels; ++i) slab[i] = 0;
  for (std::int64_t row = image * args.queries; row < (image + 1) * args.queries; ++row) {
    const W* grad = static_cast<const W*>(args.grad_out) + (row * args.heads + head) * channels;
    each_point<W>(args, row, head, first_level, last_level, [&](const Point<W>& p, auto...) {
      for (int corner = 0; p.inside && corner < 4; ++corner) {
        if (!p.exists[corner]) continue;
        W* sum = slab + p.pixel[corner] * channels;
        const W weight = p.attention * p.weight[corner];
        for (std::int64_t c = 0; c < channels; ++c) sum[c] += weight * grad[c];
      }
    });
  }
  T* out = static_cast<T*>(args.grad_value) + (image * args.tokens * args.heads + head) * channels;
  for (std::int64_t token = first_token; token < last_token; ++token)
    for (std::int64_t c = 0; c < channels; ++c)
      narrow(slab[token * channels + c], out + token * args.heads * channels + c);
}

}  // namespace avis::AVIS_ISA
