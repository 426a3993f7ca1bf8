// Attention over ranges and pages, and the cache: which kernel for which arguments.
#pragma once

#include "cache.cuh"
#include "launch.h"
#include "pages.cuh"
#include "plan.h"
#include "range_attn.cuh"
#include "range_attn_backward.cuh"
#include "upload.cuh"

namespace avis::gpu {

constexpr int kFewQueries = kDown * 2, kManyQueries = kDown * 4;
// Enough blocks to fill a large GPU twice; fewer than that, and small tiles of queries spread the work better.
constexpr long long kManyBlocks = 2 * 132;

inline std::size_t number_bytes(int storage) { return storage == AV_FLOAT32 ? 4 : 2; }

inline bool in_16_bytes(const AvTokens& x, std::int64_t channels, std::size_t bytes) {
  const auto whole = [&](std::int64_t elements) { return elements * static_cast<std::int64_t>(bytes) % 16 == 0; };
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && whole(x.batch_stride) && whole(x.token_stride) &&
         whole(x.head_stride) && whole(channels);
}

// `Args` is RangeArgs or longer; what the caller does not give stays zero.
template <class Args>
Args with_layout(const AvRange& given) {
  Args args{};
  static_cast<AvRange&>(args) = given;
  const auto wide = [&](const AvTokens& x) { return in_16_bytes(x, given.channels, number_bytes(given.storage)); };
  args.wide_q = wide(given.q);
  args.wide_k = wide(given.k);
  args.wide_v = wide(given.v);
  args.wide_grad = wide(given.grad_out);
  return args;
}

inline RangeArgs with_plan(const AvRange& given, const AvPlan& plan, const std::int32_t* room) {
  auto args = with_layout<RangeArgs>(given);
  args.tiles = room;
  args.key_tiles = room + plan.key_tiles_at;
  args.ranges = room + plan.ranges_at;
  args.spans = room + plan.spans_at;
  return args;
}

inline PagedArgs with_pages(const AvRange& given, const AvPages& pages) {
  auto args = with_layout<PagedArgs>(given);
  args.ranges = pages.ranges;
  args.pages = pages.pages;
  args.page_out = pages.page_out;
  args.page_lse = pages.page_lse;
  args.part_grad = args.new_part_grad = pages.part_grad;
  args.wide_grad = given.channels % 4 == 0;
  args.init_out = pages.init_out;
  args.init_lse = pages.init_lse;
  args.grad_page_out = pages.grad_page_out;
  args.grad_page_lse = pages.grad_page_lse;
  args.grad_init_out = pages.grad_init_out;
  args.grad_init_lse = pages.grad_init_lse;
  return args;
}

// Calls what(Type<T>{}, Number<C>{}) with the storage and the channels, padded to what a kernel is compiled for.
template <class What>
int by_type(const AvRange& args, const What& what) {
  if (args.channels < 1 || args.channels > 128) return kNoKernel;
  return by_storage(args.storage, [&](auto type) {
    if (args.channels <= 32) return what(type, Number<32>{});
#if defined(AVIS_FEW_KERNELS)
    return kNoKernel;
#else
    if (args.channels <= 64) return what(type, Number<64>{});
    return what(type, Number<128>{});
#endif
  });
}

inline int launch_upload(const AvPlan& plan, std::int32_t* room, void* stream) {
  int code = 0;
  const auto count = static_cast<std::int64_t>(plan.ints.size());
  for (std::int64_t at = 0; at < count && code == 0; at += kChunk) {
    Chunk chunk{};
    chunk.to = room + at;
    chunk.count = static_cast<std::int32_t>(std::min<std::int64_t>(kChunk, count - at));
    std::copy_n(plan.ints.data() + at, chunk.count, chunk.numbers);
    code = launch<upload>(blocks(chunk.count, kUploadThreads), kUploadThreads, 0, stream, chunk);
  }
  return code;
}

// Results do not depend on the size of the tiles: a query walks over its keys in the same steps in either.
inline AvPlan make_plan(const AvGroups& groups, const AvRange& args, bool backward) {
  Ints tiles, ranges, key_tiles, spans;
  std::int32_t tile_queries = backward ? kBackQueries : kManyQueries;
  cut_queries(groups, tile_queries, &tiles, &ranges);
  if (const auto count = static_cast<long long>(tiles.size() / 4);
      !backward && count * args.batch * args.heads < kManyBlocks) {
    tiles.clear();
    ranges.clear();
    tile_queries = kFewQueries;
    cut_queries(groups, tile_queries, &tiles, &ranges);
  }
  if (backward) {
    const int padded = args.channels <= 32 ? 32 : args.channels <= 64 ? 64 : 128;
    cut_keys(groups, args.keys, backward_keys(padded), &key_tiles, &spans);
  }
  AvPlan plan = join(tiles, ranges, key_tiles, spans);
  plan.tile_queries = tile_queries;
  return plan;
}

inline int launch_range_forward(const AvRange& given, const AvPlan& plan, std::int32_t* room, void* stream) {
  const RangeArgs args = with_plan(given, plan, room);
  const dim3 grid(plan.tiles, args.batch * args.heads);
  if (const int code = launch_upload(plan, room, stream); code != 0) return code;
  return by_type(args, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    constexpr int kChannels = decltype(channels)::value;
    if (plan.tile_queries == kManyQueries)
      return launch<range_forward<T, kChannels, 4, false>>(grid, kThreads, 0, stream, args);
    return launch<range_forward<T, kChannels, 2, false>>(grid, kThreads, 0, stream, args);
  });
}

// dq, then dk, dv and dbias, as far as they are wanted.
template <bool kPaged, class Args>
int launch_gradients(const Args& args, unsigned tiles, unsigned key_tiles, void* stream) {
  const unsigned heads = args.batch * args.heads;
  return by_type(args, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    constexpr int kChannels = decltype(channels)::value;
    int code = 0;
    if (args.dq != nullptr)
      code = launch<range_dq<T, kChannels, kPaged>>(dim3(tiles, heads), kThreads, 0, stream,
                                                    static_cast<const RangeArgs&>(args));
    if (code == 0 && (args.dk != nullptr || args.dv != nullptr || args.dbias != nullptr))
      code = launch<range_dkv<T, kChannels, kPaged>>(dim3(key_tiles, heads), kThreads, 0, stream,
                                                     static_cast<const RangeArgs&>(args));
    return code;
  });
}

inline int launch_range_backward(const AvRange& given, const AvPlan& plan, std::int32_t* room, void* stream) {
  const RangeArgs args = with_plan(given, plan, room);
  if (const int code = launch_upload(plan, room, stream); code != 0) return code;
  const long long rows = static_cast<long long>(args.batch) * args.heads * args.queries;
  const int code = by_storage(args.storage, [&](auto type) {
    return launch<range_row<typename decltype(type)::type>>(blocks(rows, kThreads / 32), kThreads, 0, stream, args);
  });
  return code != 0 ? code : launch_gradients<false>(args, plan.tiles, plan.key_tiles, stream);
}

inline int launch_paged_forward(const AvRange& given, const AvPages& pages, void* stream) {
  const PagedArgs args = with_pages(given, pages);
  return by_type(args, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    const dim3 grid(blocks(args.queries, kFewQueries), args.batch * args.heads, args.pages);
    const int code = launch<range_forward<T, decltype(channels)::value, 2, true>>(grid, kThreads, 0, stream,
                                                                                  static_cast<const RangeArgs&>(args));
    if (code != 0) return code;
    const long long numbers = static_cast<long long>(args.batch) * args.queries * args.heads * args.channels;
    if (args.channels % 4 == 0 && reinterpret_cast<std::uintptr_t>(args.init_out) % 16 == 0)
      return launch<merge_pages<T, 4>>(blocks(numbers / 4, kMergeThreads), kMergeThreads, 0, stream, args);
    return launch<merge_pages<T, 1>>(blocks(numbers, kMergeThreads), kMergeThreads, 0, stream, args);
  });
}

inline int launch_paged_backward(const AvRange& given, const AvPages& pages, void* stream) {
  const PagedArgs args = with_pages(given, pages);
  const long long rows = static_cast<long long>(args.batch) * args.queries * args.heads;
  const int code = by_storage(args.storage, [&](auto type) {
    return launch<split_pages<typename decltype(type)::type>>(blocks(rows, kMergeThreads / 32), kMergeThreads, 0,
                                                              stream, args);
  });
  if (code != 0 || args.channels > 128) return code != 0 ? code : kNoKernel;
  const int padded = args.channels <= 32 ? 32 : args.channels <= 64 ? 64 : 128;
  return launch_gradients<true>(args, blocks(args.queries, kBackQueries), blocks(args.keys, backward_keys(padded)),
                                stream);
}

template <class Unit>
int launch_write(const AvCacheWrite& args, void* stream) {
  const long long numbers = static_cast<long long>(args.batch) * args.count * args.heads * args.channels;
  const unsigned grid = blocks(numbers * args.bytes / static_cast<long long>(sizeof(Unit)), kCacheThreads);
  return launch<write_cache<Unit>>(grid, kCacheThreads, 0, stream, args);
}

inline int launch_cache_write(const AvCacheWrite& args, void* stream) {
  const auto wide = [&](const AvTokens& x) { return in_16_bytes(x, args.channels, args.bytes); };
  if (wide(args.cache) && wide(args.tokens)) return launch_write<uint4>(args, stream);
  switch (args.bytes) {
    case 8:
      return launch_write<unsigned long long>(args, stream);
    case 4:
      return launch_write<unsigned>(args, stream);
    case 2:
      return launch_write<unsigned short>(args, stream);
    default:
      return kNoKernel;
  }
}

}  // namespace avis::gpu
