// Attention over ranges of keys: what the kernels are told. Plain C++, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "avis/msda.h"

namespace avis {

// A [batch, tokens, heads, channels] tensor; channels are contiguous.
struct HeadTokens {
  const void* data;
  std::int64_t batch_stride, token_stride, head_stride;  // elements
};

struct RangeAttnArgs {
  std::int64_t batch, queries, keys, heads, channels;
  Storage storage;  // of q, k, v and out
  HeadTokens q, k, v;
  // From here on all numbers are float, or double where q is.
  const void* key_bias;  // [batch, keys], or null
  double scale;
  void* out;      // forward: [batch, queries, heads, channels] contiguous, in the storage of q, or wide
  void* lse;      // [batch, heads, queries]; the backward reads it
  bool wide_out;  // whether out is float (double) whatever q is

  // Backward. Gradients have the layout of a contiguous q, k, v; all of them are added to.
  HeadTokens grad_out;  // float (double)
  const void* row;      // [batch, heads, queries]: sum of grad_out * out, less the gradient of lse
  void* dq;             // any of the four may be null
  void* dk;
  void* dv;
  void* dbias;  // [batch, heads, keys]: heads apart, so that no two tasks add to the same place
};

// Queries [q_first, q_last) see the keys of the ranges, in this order.
struct RangeGroup {
  std::int64_t q_first, q_last;
  const std::int64_t* ranges;  // [range_count][2]
  std::int64_t range_count;
  std::int64_t seen;  // keys in all ranges together
};

// Parts of an attention over different keys, to be put together: an initial one, then the pages in order.
struct RangeMergeArgs {
  std::int64_t batch, queries, heads, channels, pages;
  Storage storage;       // of out; all else is float, or double where out is
  const void* init_out;  // [batch, queries, heads, channels], or null
  const void* init_lse;  // [batch, heads, queries], or null
  const void* page_out;  // [pages, batch, queries, heads, channels]
  const void* page_lse;  // [pages, batch, heads, queries]
  void* out;             // [batch, queries, heads, channels]
  void* lse;             // [batch, heads, queries]
};

}  // namespace avis
