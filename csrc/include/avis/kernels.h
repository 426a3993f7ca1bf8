// The kernels of one instruction set, as a table of functions.
#pragma once

#include "avis/msda.h"
#include "avis/range_attn.h"

namespace avis {

struct Kernels {
  const char* name;

  // Rows [first, last) of the output.
  void (*msda_forward)(const MsdaArgs& args, std::int64_t first, std::int64_t last);
  // Rows [first, last) of grad_loc, grad_weight and grad_ref.
  void (*msda_backward_points)(const MsdaArgs& args, std::int64_t first, std::int64_t last);
  // grad_value of one image and head, for the levels [first_level, last_level). `slab` is scratch: [S, D] floats
  // (doubles).
  void (*msda_backward_value)(const MsdaArgs& args, std::int64_t image, std::int64_t head, std::int64_t first_level,
                              std::int64_t last_level, void* slab);

  // Bytes of scratch that one group needs, forward and backward.
  std::size_t (*range_attn_scratch)(const RangeAttnArgs& args, const RangeGroup& group, bool backward);
  // One group of one head: its rows of out and lse.
  void (*range_attn_forward)(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                             void* scratch);
  // One group of one head: its rows of dq, and what it adds to dk, dv and dbias.
  void (*range_attn_backward)(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                              void* scratch);
  // All queries of one head: merges the parts into out and lse.
  void (*range_attn_merge)(const RangeMergeArgs& args, std::int64_t batch, std::int64_t head);
};

extern const Kernels kernels_base;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

// The best set that this machine can run and AVIS_STREAM_ISA allows; decided once.
const Kernels& kernels();

}  // namespace avis
