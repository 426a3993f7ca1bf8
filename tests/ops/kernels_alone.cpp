// The CPU kernels without torch: runs every one of them on small made-up inputs and prints all results, a line each.
//
// For machines that we have no torch for: test_arm.py compares what an Arm build prints, under qemu, with what a build
// for this machine prints.

#define AVIS_ISA base
#include <cstdio>
#include <vector>

#include "kernels.inl"
#include "ops/point_columns.h"

namespace {

using namespace avis;
using base::BFloat16;
using base::Float16;

template <class T>
using Wide = typename base::WideOf<T>::type;

template <class T>
struct Name;
template <>
struct Name<float> {
  static constexpr const char* text = "float32";
  static constexpr Storage storage = Storage::kFloat32;
};
template <>
struct Name<double> {
  static constexpr const char* text = "float64";
  static constexpr Storage storage = Storage::kFloat64;
};
template <>
struct Name<BFloat16> {
  static constexpr const char* text = "bfloat16";
  static constexpr Storage storage = Storage::kBFloat16;
};
template <>
struct Name<Float16> {
  static constexpr const char* text = "float16";
  static constexpr Storage storage = Storage::kFloat16;
};

// Numbers in [low, high), the same on every machine: in double, where a fused multiply-add changes no float.
template <class T>
std::vector<T> numbers(std::int64_t count, double low, double high, std::uint32_t seed) {
  std::vector<T> made(count);
  std::uint32_t state = seed * 2654435761u + 1;
  for (T& x : made) {
    state = state * 1664525u + 1013904223u;
    const double unit = static_cast<double>(state >> 8) / 16777216.0;
    base::narrow(static_cast<Wide<T>>(low + (high - low) * unit), &x);
  }
  return made;
}

template <class T>
void print(const char* what, std::int64_t channels, const std::vector<T>& numbers) {
  std::printf("%s %s D=%lld", what, Name<T>::text, static_cast<long long>(channels));
  for (const T& x : numbers) std::printf(" %.17g", static_cast<double>(base::widen(x)));
  std::printf("\n");
}

// The gradients of T's operators are wide; the name of T tells their lines apart.
template <class T>
void print_wide(const char* what, std::int64_t channels, const std::vector<Wide<T>>& numbers) {
  std::printf("%s of ", what);
  std::printf("%s D=%lld", Name<T>::text, static_cast<long long>(channels));
  for (const Wide<T> x : numbers) std::printf(" %.17g", static_cast<double>(x));
  std::printf("\n");
}

template <class T>
void deformable(std::int64_t channels) {
  using W = Wide<T>;
  const std::vector<std::int64_t> sizes = {5, 7, 3, 4};
  const std::int64_t images = 2, tokens = 47, heads = 3, queries = 9, levels = 2, points = 3;
  const std::int64_t rows = images * queries, per_row = heads * levels * points;
  const auto value = numbers<T>(images * tokens * heads * channels, -1, 1, 1);
  const auto loc = numbers<W>(rows * per_row * 2, -0.2, 1.2, 2), weight = numbers<W>(rows * per_row, 0, 1, 3);
  const auto grad = numbers<W>(rows * heads * channels, -1, 1, 4);
  const PointColumns of_rows(sizes, points, heads, channels, heads * channels), of_slab(sizes, points, 1, 0, channels);
  std::vector<T> out(rows * heads * channels), grad_value(value.size());
  std::vector<W> grad_loc(loc.size()), grad_weight(weight.size()), slab(tokens * channels + 16);

  MsdaArgs args{};
  args.images = images, args.tokens = tokens, args.heads = heads, args.channels = channels;
  args.queries = queries, args.levels = levels, args.points = points, args.sizes = sizes.data();
  args.storage = Name<T>::storage, args.value = value.data();
  args.image_stride = tokens * heads * channels, args.token_stride = heads * channels, args.head_stride = channels;
  args.source = {loc.data(), weight.data(), nullptr, nullptr};
  args.row_points = of_rows.get(), args.slab_points = of_slab.get();
  args.out = out.data(), args.grad_out = grad.data(), args.grad_value = grad_value.data();
  args.grad_loc = grad_loc.data(), args.grad_weight = grad_weight.data();

  base::msda_forward(args, 0, rows);
  print("msda out", channels, out);
  base::msda_backward_points(args, 0, rows);
  print_wide<T>("msda grad_loc", channels, grad_loc);
  print_wide<T>("msda grad_weight", channels, grad_weight);
  for (std::int64_t image = 0; image < images; ++image)
    for (std::int64_t head = 0; head < heads; ++head)
      base::msda_backward_value(args, image, head, 0, levels, slab.data());
  print("msda grad_value", channels, grad_value);

  const auto ref = numbers<W>(rows * levels * 2, 0, 1, 5), offsets = numbers<W>(rows * per_row * 2, -2, 2, 6);
  std::vector<float> pixel;
  for (std::int64_t i = 0; i < levels * points; ++i) {
    pixel.push_back(1.0f / static_cast<float>(sizes[2 * (i / points) + 1]));
    pixel.push_back(1.0f / static_cast<float>(sizes[2 * (i / points)]));
  }
  args.source = {offsets.data(), weight.data(), ref.data(), pixel.data()};
  base::msda_forward(args, 0, rows);
  print("msda_fused out", channels, out);
}

template <class T>
HeadTokens tokens_of(const std::vector<T>& x, std::int64_t tokens, std::int64_t heads, std::int64_t channels) {
  return {x.data(), tokens * heads * channels, heads * channels, channels};
}

template <class T>
void ranges(std::int64_t channels) {
  using W = Wide<T>;
  const std::int64_t batch = 2, heads = 2, queries = 13, keys = 29;
  const std::int64_t seen_first[] = {0, 9, 12, 20}, seen_second[] = {3, 29};
  const RangeGroup groups[] = {{0, 6, seen_first, 2, 17}, {6, 13, seen_second, 1, 26}};
  const auto q = numbers<T>(batch * queries * heads * channels, -2, 2, 1);
  const auto k = numbers<T>(batch * keys * heads * channels, -2, 2, 2);
  const auto v = numbers<T>(batch * keys * heads * channels, -2, 2, 3);
  auto bias = numbers<W>(batch * keys, -1, 1, 4);
  for (std::size_t i = 0; i < bias.size(); i += 5) bias[i] = -static_cast<W>(base::kInfinity);
  const auto grad = numbers<W>(q.size(), -1, 1, 5), row = numbers<W>(batch * heads * queries, -1, 1, 6);
  std::vector<T> out(q.size());
  std::vector<W> lse(row.size()), dq(q.size()), dk(k.size()), dv(v.size()), dbias(batch * heads * keys);

  RangeAttnArgs args{};
  args.batch = batch, args.queries = queries, args.keys = keys, args.heads = heads, args.channels = channels;
  args.storage = Name<T>::storage;
  args.q = tokens_of(q, queries, heads, channels);
  args.k = tokens_of(k, keys, heads, channels);
  args.v = tokens_of(v, keys, heads, channels);
  args.key_bias = bias.data(), args.scale = 0.25, args.out = out.data(), args.lse = lse.data();
  args.grad_out = tokens_of(grad, queries, heads, channels);
  args.row = row.data(), args.dq = dq.data(), args.dk = dk.data(), args.dv = dv.data(), args.dbias = dbias.data();

  const auto each = [&](auto run, bool backward) {
    for (const RangeGroup& group : groups) {
      std::vector<double> scratch(base::range_attn_scratch(args, group, backward) / sizeof(double) + 16);
      for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) run(args, b, h, group, scratch.data());
    }
  };
  each(base::range_attn_forward, false);
  print("range out", channels, out);
  print_wide<T>("range lse", channels, lse);
  each(base::range_attn_backward, true);
  print_wide<T>("range dq", channels, dq);
  print_wide<T>("range dk", channels, dk);
  print_wide<T>("range dv", channels, dv);
  print_wide<T>("range dbias", channels, dbias);

  const std::int64_t pages = 3;
  const auto init = numbers<W>(q.size(), -1, 1, 7), page = numbers<W>(pages * q.size(), -1, 1, 8);
  const auto init_lse = numbers<W>(row.size(), -3, 3, 9), page_lse = numbers<W>(pages * row.size(), -3, 3, 10);
  RangeMergeArgs merge{};
  merge.batch = batch, merge.queries = queries, merge.heads = heads, merge.channels = channels, merge.pages = pages;
  merge.storage = Name<T>::storage, merge.init_out = init.data(), merge.init_lse = init_lse.data();
  merge.page_out = page.data(), merge.page_lse = page_lse.data(), merge.out = out.data(), merge.lse = lse.data();
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h) base::range_attn_merge(merge, b, h);
  print("merge out", channels, out);
  print_wide<T>("merge lse", channels, lse);
}

template <class T>
void all() {
  for (const std::int64_t channels : {5, 16, 32, 64}) deformable<T>(channels);
  for (const std::int64_t channels : {5, 32}) ranges<T>(channels);
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  all<BFloat16>();
  all<Float16>();
}
