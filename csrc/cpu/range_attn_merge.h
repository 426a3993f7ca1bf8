// Partial attentions over different keys become one: each part weighs as much as its softmax denominator, e^lse.
//
//     lse = log(sum of e^lse_p)        out = sum of e^(lse_p - lse) out_p
//
// A few exponentials a query, always in the order initial part, page 0, page 1, ... Source: FlashDecoding (Dao et al.,
// 2023), the split softmax.
#pragma once

#include "avis/range_attn.h"
#include "storage.h"
#include "tile.h"

namespace avis::AVIS_ISA {

template <class T, class W>
void merge_parts(const RangeMergeArgs& args, std::int64_t batch, std::int64_t head) {
  constexpr std::int64_t kAtOnce = 64;  // channels, so that sums stay in registers or in the nearest cache
  const std::int64_t first_part = args.init_lse == nullptr ? 0 : -1;
  const std::int64_t rows = args.batch * args.queries * args.heads;  // in one page
  for (std::int64_t query = 0; query < args.queries; ++query) {
    const std::int64_t lse_at = (batch * args.heads + head) * args.queries + query;
    const std::int64_t row = (batch * args.queries + query) * args.heads + head;
    const auto lse_of = [&](std::int64_t part) {
      return part < 0 ? static_cast<const W*>(args.init_lse)[lse_at]
                      : static_cast<const W*>(args.page_lse)[part * rows + lse_at];
    };
    W max = -kInfinity, total = 0;
    for (std::int64_t part = first_part; part < args.pages; ++part) max = lse_of(part) > max ? lse_of(part) : max;
    const W shift = max == -kInfinity ? 0 : max;
    for (std::int64_t part = first_part; part < args.pages; ++part) total += exp_of(lse_of(part) - shift);
    for (std::int64_t c0 = 0; c0 < args.channels; c0 += kAtOnce) {
      const std::int64_t n = args.channels - c0 < kAtOnce ? args.channels - c0 : kAtOnce;
      W sum[kAtOnce] = {};
      for (std::int64_t part = first_part; part < args.pages; ++part) {
        const W share = exp_of(lse_of(part) - shift);
        if (share == 0) continue;  // a part without keys; what it holds does not count, NaN included
        const W* from = (part < 0 ? static_cast<const W*>(args.init_out)
                                  : static_cast<const W*>(args.page_out) + part * rows * args.channels) +
                        row * args.channels + c0;
        for (std::int64_t c = 0; c < n; ++c) sum[c] += share * from[c];
      }
      const W inverse = total == 0 ? 0 : 1 / total;  // NaN stays
      T* out = static_cast<T*>(args.out) + row * args.channels + c0;
      for (std::int64_t c = 0; c < n; ++c) narrow(sum[c] * inverse, out + c);
    }
    static_cast<W*>(args.lse)[lse_at] = total == 0 ? -kInfinity : shift + log_of(total);
  }
}

}  // namespace avis::AVIS_ISA
