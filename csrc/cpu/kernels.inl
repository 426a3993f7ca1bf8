// Everything that is compiled once per instruction set; kernels_<isa>.cpp sets AVIS_ISA and includes this.

#include "avis/kernels.h"
#include "msda_backward.h"
#include "msda_forward.h"
#include "msda_general.h"
#include "range_attn_backward.h"
#include "range_attn_forward.h"
#include "range_attn_general.h"
#include "range_attn_merge.h"

namespace avis::AVIS_ISA {

#define AVIS_STRING_(x) #x
#define AVIS_STRING(x) AVIS_STRING_(x)

// Whether the kernels that keep all channels of a row in registers serve these arguments.
template <class T>
bool fast(const MsdaArgs& args) {
  const bool whole_vectors = args.channels % ((sizeof(T) == 2 ? 2 : 1) * kLanes) == 0;
  return whole_vectors && (args.channels == 16 || args.channels == 32 || args.channels == 64) &&
         args.row_points.count <= kMaxPoints;
}

// Calls what(Type<T>{}, Size<D>{}) with the storage and the number of channels as types; D = 0 stands for "general".
template <class T>
struct Type {
  using type = T;
};
template <int D>
struct Size {
  static constexpr int value = D;
};

template <class T, class What>
void by_channels(const MsdaArgs& args, const What& what) {
  if (!fast<T>(args)) return what(Type<T>{}, Size<0>{});
  if constexpr (16 % ((sizeof(T) == 2 ? 2 : 1) * kLanes) == 0)
    if (args.channels == 16) return what(Type<T>{}, Size<16>{});
  if (args.channels == 32) return what(Type<T>{}, Size<32>{});
  what(Type<T>{}, Size<64>{});
}

template <class What>
void by_type(const MsdaArgs& args, const What& what) {
  switch (args.storage) {
    case Storage::kFloat32:
      return by_channels<float>(args, what);
    case Storage::kBFloat16:
      return by_channels<BFloat16>(args, what);
    case Storage::kFloat16:
      return by_channels<Float16>(args, what);
    case Storage::kFloat64:
      return what(Type<double>{}, Size<0>{});
  }
}

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};

void msda_forward(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  by_type(args, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    if constexpr (size.value > 0)
      msda_forward_fast<T, size.value>(args, first, last);
    else
      msda_forward_general<T, typename WideOf<T>::type>(args, first, last);
  });
}

void msda_backward_points(const MsdaArgs& args, std::int64_t first, std::int64_t last) {
  by_type(args, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    if constexpr (size.value > 0)
      msda_backward_points_fast<T, size.value>(args, first, last);
    else
      msda_backward_points_general<T, typename WideOf<T>::type>(args, first, last);
  });
}

void msda_backward_value(const MsdaArgs& args, std::int64_t image, std::int64_t head, std::int64_t first_level,
                         std::int64_t last_level, void* slab) {
  by_type(args, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    if constexpr (size.value > 0)
      msda_backward_value_fast<T, size.value>(args, image, head, first_level, last_level, slab);
    else
      msda_backward_value_general<T, typename WideOf<T>::type>(args, image, head, first_level, last_level, slab);
  });
}

template <class What>
void by_storage(Storage storage, const What& what) {
  switch (storage) {
    case Storage::kFloat32:
      return what(Type<float>{});
    case Storage::kBFloat16:
      return what(Type<BFloat16>{});
    case Storage::kFloat16:
      return what(Type<Float16>{});
    case Storage::kFloat64:
      return what(Type<double>{});
  }
}

std::size_t range_attn_scratch(const RangeAttnArgs& args, const RangeGroup& group, bool backward) {
  if (args.storage == Storage::kFloat64) return group.seen * sizeof(double);
  const std::int64_t padded = round_up(args.channels, kLanes);
  const std::int64_t floats = backward ? BackwardRoom(nullptr, group.q_last - group.q_first, group.seen, padded).floats
                                       : ForwardRoom(nullptr, group.seen, padded).floats;
  return floats * sizeof(float);
}

void range_attn_forward(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                        void* scratch) {
  by_storage(args.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 8)
      range_attn_forward_general(args, batch, head, group, scratch);
    else if (args.wide_out)
      range_attn_forward_fast<T, float>(args, batch, head, group, scratch);
    else
      range_attn_forward_fast<T, T>(args, batch, head, group, scratch);
  });
}

void range_attn_backward(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, const RangeGroup& group,
                         void* scratch) {
  by_storage(args.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 8)
      range_attn_backward_general(args, batch, head, group, scratch);
    else
      range_attn_backward_fast<T>(args, batch, head, group, scratch);
  });
}

void range_attn_merge(const RangeMergeArgs& args, std::int64_t batch, std::int64_t head) {
  by_storage(args.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    merge_parts<T, typename WideOf<T>::type>(args, batch, head);
  });
}

// The table that kernels_<isa>.cpp publishes.
#define AVIS_KERNELS                                                                            \
  {AVIS_STRING(AVIS_ISA),         AVIS_ISA::msda_forward,       AVIS_ISA::msda_backward_points, \
   AVIS_ISA::msda_backward_value, AVIS_ISA::range_attn_scratch, AVIS_ISA::range_attn_forward,   \
   AVIS_ISA::range_attn_backward, AVIS_ISA::range_attn_merge}

}  // namespace avis::AVIS_ISA
