// float64: one query at a time, written to be right.
#pragma once

#include "range_attn_pack.h"

namespace avis::AVIS_ISA {

// Scores of one query, then exp(score - lse) in their place; returns the lse.
inline double probabilities(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head, std::int64_t query,
                            const RangeGroup& group, double* p) {
  const auto* q = token<double>(args.q, batch, head, query);
  const auto* bias = static_cast<const double*>(args.key_bias);
  double max = -kInfinity, total = 0;
  each_key(group, [&](std::int64_t key, std::int64_t place) {
    const auto* k = token<double>(args.k, batch, head, key);
    double score = bias == nullptr ? 0 : bias[batch * args.keys + key];
    for (std::int64_t c = 0; c < args.channels; ++c) score += args.scale * q[c] * k[c];
    p[place] = score;
    max = score > max ? score : max;
  });
  if (max == -kInfinity) {
    for (std::int64_t i = 0; i < group.seen; ++i) p[i] = 0;
    return -kInfinity;
  }
  for (std::int64_t i = 0; i < group.seen; ++i) total += p[i] = __builtin_exp(p[i] - max);
  for (std::int64_t i = 0; i < group.seen; ++i) p[i] /= total;
  return max + __builtin_log(total);
}

inline void range_attn_forward_general(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head,
                                       const RangeGroup& group, void* scratch) {
  auto* p = static_cast<double*>(scratch);
  for (std::int64_t query = group.q_first; query < group.q_last; ++query) {
    static_cast<double*>(args.lse)[(batch * args.heads + head) * args.queries + query] =
        probabilities(args, batch, head, query, group, p);
    auto* out = static_cast<double*>(args.out) + ((batch * args.queries + query) * args.heads + head) * args.channels;
    for (std::int64_t c = 0; c < args.channels; ++c) out[c] = 0;
    each_key(group, [&](std::int64_t key, std::int64_t place) {
      const auto* v = token<double>(args.v, batch, head, key);
      for (std::int64_t c = 0; c < args.channels; ++c) out[c] += p[place] * v[c];
    });
  }
}

inline void range_attn_backward_general(const RangeAttnArgs& args, std::int64_t batch, std::int64_t head,
                                        const RangeGroup& group, void* scratch) {
  auto* p = static_cast<double*>(scratch);
  const std::int64_t channels = args.channels;
  for (std::int64_t query = group.q_first; query < group.q_last; ++query) {
    probabilities(args, batch, head, query, group, p);
    const double row = static_cast<const double*>(args.row)[(batch * args.heads + head) * args.queries + query];
    const auto* q = token<double>(args.q, batch, head, query);
    const auto* grad = token<double>(args.grad_out, batch, head, query);
    const std::int64_t q_at = ((batch * args.queries + query) * args.heads + head) * channels;
    each_key(group, [&](std::int64_t key, std::int64_t place) {
      const auto* k = token<double>(args.k, batch, head, key);
      const auto* v = token<double>(args.v, batch, head, key);
      double dp = 0;
      for (std::int64_t c = 0; c < channels; ++c) dp += grad[c] * v[c];
      const double ds = p[place] * (dp - row);
      const std::int64_t k_at = ((batch * args.keys + key) * args.heads + head) * channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        if (args.dq != nullptr) static_cast<double*>(args.dq)[q_at + c] += args.scale * ds * k[c];
        if (args.dk != nullptr) static_cast<double*>(args.dk)[k_at + c] += args.scale * ds * q[c];
        if (args.dv != nullptr) static_cast<double*>(args.dv)[k_at + c] += p[place] * grad[c];
      }
      if (args.dbias != nullptr) static_cast<double*>(args.dbias)[(batch * args.heads + head) * args.keys + key] += ds;
    });
  }
}

}  // namespace avis::AVIS_ISA
