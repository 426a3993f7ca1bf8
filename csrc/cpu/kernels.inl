// Everything that is compiled once per instruction set; kernels_<isa>.cpp sets AVIS_ISA and includes this.

#include "avis/kernels.h"
#include "msda_backward.h"
#include "msda_forward.h"
#include "msda_general.h"

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

}  // namespace avis::AVIS_ISA
