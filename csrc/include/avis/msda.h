// Multi-scale deformable attention: what the kernels are told. Plain C++, no torch.
//
// Letters as in avis_stream/ops/ms_deform_attn.py: N images, S tokens, M heads, D channels a head, Q queries,
// L levels, P points a level. A "row" is one (image, query), row = n * Q + q, with K = M * L * P points.
#pragma once

#include <cstdint>

namespace avis {

// How numbers are stored; sums always run in float (in double for kFloat64).
enum class Storage : std::uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

// What a point needs to know about its place in a list of points, one entry a point. Padded to a whole number of
// vectors with entries that no location can fall into, so that kernels need not care where a list ends.
struct PointTable {
  const float* width;            // of the point's level, in pixels; padding: -1
  const float* height;           //
  const std::int32_t* base;      // element offset of pixel (0, 0) of its level and head
  const std::int32_t* row_step;  // elements from one pixel row to the next
  std::int32_t col_step;         // elements from one pixel to the next
  std::int32_t count;            // points, without padding
};

// Where locations and weights come from: as they are, or as the network gives them (the fused operator). All of them
// and all gradients but grad_value are float, or double where value is.
struct PointSource {
  const void* loc;     // [rows, K, 2] in [0, 1]; fused: offsets in pixels
  const void* weight;  // [rows, K]; fused: logits, softmax over each head's L * P
  const void* ref;     // [rows, L, 2] in [0, 1]; null unless fused
  const float* pixel;  // fused: [L * P, 2], size of a pixel of each point's level, in the units of loc
};

struct MsdaArgs {
  std::int64_t images, tokens, heads, channels, queries, levels, points;
  const std::int64_t* sizes;  // [L][2] height, width

  Storage storage;            // of value, out and grad_value
  const void* value;          // [N, S, M, D], channels contiguous
  std::int64_t image_stride;  // elements
  std::int64_t token_stride;  //
  std::int64_t head_stride;   //
  PointSource source;
  PointTable row_points;   // the K points of a row, offsets into one image of value
  PointTable slab_points;  // the L * P points of one head, offsets into a slab [S, D]

  void* out;             // forward: [rows, M * D]
  const void* grad_out;  // backward: [rows, M * D]
  void* grad_value;      // [N, S, M, D] contiguous, or null
  void* grad_loc;        // [rows, K, 2], or null; fused: of the offsets
  void* grad_weight;     // [rows, K], or null; fused: of the logits
  void* grad_ref;        // [rows, L, 2], or null
};

}  // namespace avis
