// The plain C interface of libavis_cuda.so: raw pointers and a stream, no torch, no C++ types.
//
// Nothing here allocates device memory, synchronises or reads device memory on the host, so every call can be captured
// in a CUDA graph; what changes from step to step (page table, ring position) is read by the kernels from device
// memory. Tensors are on the device and contiguous unless strides are given, except where "host" is said. Functions
// return a cudaError_t, or -1 if no kernel serves the arguments. avis_stream/ops/_cuda_api.py mirrors the structs;
// av_abi() must match.
#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC has no headers
typedef int int32_t;
typedef long long int64_t;
typedef unsigned long size_t;
#else
#include <stddef.h>
#include <stdint.h>
#endif

#define AV_ABI 1
#define AV_MAX_LEVELS 8

enum { AV_FLOAT32 = 0, AV_BFLOAT16 = 1, AV_FLOAT16 = 2 };

// Letters as in msda.h. Rows of value, out and grad_out begin at multiples of 16 bytes if channels are 16, 32 or 64.
typedef struct {
  const void* value;     // [N, S, M, D]
  const float* loc;      // [N, Q, M, L, P, 2]; fused: offsets in pixels
  const float* weight;   // [N, Q, M, L, P]; fused: logits
  const float* ref;      // [N, Q, L, 2], or null unless fused
  void* out;             // [N, Q, M, D]
  const void* grad_out;  // as out
  float* grad_value;     // as value, float whatever value is; added to. This and the next three may be null
  float* grad_loc;       // as loc
  float* grad_weight;    // as weight
  float* grad_ref;       // as ref; needs grad_loc
  int64_t images, tokens, queries;
  int32_t heads, channels, levels, points;
  int32_t sizes[2 * AV_MAX_LEVELS];  // height, width of each level
  int32_t storage;                   // of value, out and grad_out
} AvMsda;

// A [B, tokens, H, D] tensor with contiguous channels.
typedef struct {
  const void* data;
  int64_t batch_stride, token_stride, head_stride;  // elements
} AvTokens;

// Host numbers: which queries see which keys, as in range_attn.py.
typedef struct {
  const int64_t* q_starts;  // [groups + 1]
  const int64_t* k_ranges;  // [groups][per_group][2]
  int64_t groups, per_group;
} AvGroups;

// Groups cut into tiles for the kernels, on the host.
typedef struct AvPlan AvPlan;

// Letters as in range_attn.h; at most 128 channels. All that is `float` is so whatever the storage of q.
typedef struct {
  AvTokens q, k, v;       // [B, Nq, H, D], [B, Nk, H, D]
  const float* key_bias;  // [B, Nk], or null
  void* out;              // [B, Nq, H, D]
  float* lse;             // [B, H, Nq]
  int32_t batch, heads, queries, keys, channels, storage;
  float scale;

  // Backward, in the storage of q. Keys that nobody sees get zeros. Any of the four may be null.
  AvTokens grad_out;
  const float* grad_lse;  // [B, H, Nq], or null
  float* row;             // [B, H, Nq], scratch
  void *dq, *dk, *dv;
  float* dbias;  // [B, H, Nk]: heads apart
} AvRange;

// What pages have beside an AvRange. The page table is read where it is used: a captured graph sees it change. Ranges
// that reach out of the cache are cut to it.
typedef struct {
  const int32_t* ranges;             // [P][2] half-open ranges of keys
  const float *init_out, *init_lse;  // [B, Nq, H, D] and [B, H, Nq], or null
  float *page_out, *page_lse;        // [P, B, Nq, H, D] and [P, B, H, Nq]; outputs, and inputs of the backward
  int32_t pages;

  // Backward. `row` of the AvRange has [P, B, H, Nq] here, and its grad_out is contiguous.
  const float *grad_page_out, *grad_page_lse;  // as page_out and page_lse, or null
  float* part_grad;                            // [P, B, Nq, H, D], scratch
  float *grad_init_out, *grad_init_lse;        // as init_out and init_lse, or null
} AvPages;

typedef struct {
  AvTokens cache, tokens;  // tokens [B, n, H, D] go into the cache [B, Nk, H, D]
  const int32_t* slot;     // where the first goes; tokens that would lie outside are left out
  int32_t batch, heads, slots, count, channels, bytes;  // bytes of one number
} AvCacheWrite;

// Who launches kernels instead of the CUDA runtime: see av_set_launcher. `kernel` is a C++ name such as
// "avis::gpu::msda_forward<float, 32, 12>", `dims` the grid's x, y, z and the block's; args are passed by value.
typedef int (*AvLauncher)(const char* kernel, const unsigned* dims, size_t shared, const void* args, size_t bytes,
                          void* stream);

#if defined(__cplusplus) && !defined(__CUDACC_RTC__)
extern "C" {
#endif
#if !defined(__CUDACC_RTC__)
int av_abi(void);
const char* av_archs(void);      // for instance "80 86 90"
const char* av_error(int code);  // what a returned code means
// For an architecture outside av_archs(): someone who compiles the same sources at run time. Null: the CUDA runtime.
void av_set_launcher(AvLauncher launcher);

int av_msda_forward(const AvMsda* args, void* stream);
int av_msda_backward(const AvMsda* args, void* stream);

// Null if the groups are no plan for so many queries and keys. `room` is device memory for av_plan_ints() numbers; it
// must live as long as the kernels run, the plan need not.
AvPlan* av_plan_new(const AvGroups* groups, const AvRange* args, int backward);
int64_t av_plan_ints(const AvPlan* plan);
void av_plan_delete(AvPlan* plan);
int av_range_forward(const AvRange* args, const AvPlan* plan, int32_t* room, void* stream);
int av_range_backward(const AvRange* args, const AvPlan* plan, int32_t* room, void* stream);

int av_paged_forward(const AvRange* args, const AvPages* pages, void* stream);
int av_paged_backward(const AvRange* args, const AvPages* pages, void* stream);
int av_cache_write(const AvCacheWrite* args, void* stream);
#endif
#if defined(__cplusplus) && !defined(__CUDACC_RTC__)
}
#endif
