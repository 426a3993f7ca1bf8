// What the kernels of range attention must know of a plan: groups cut into tiles, on the host.
//
// A tile of queries belongs to one group. For the gradients of the keys the axis of keys is cut wherever a range begins
// or ends: between two cuts all keys are seen by the same queries, the "spans" of a tile of keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "avis/cuda_api.h"

// All numbers in one array, as the device gets them.
struct AvPlan {
  std::vector<std::int32_t> ints;
  std::int32_t tile_queries = 0;
  std::int32_t tiles = 0, key_tiles = 0;                       // their number
  std::int64_t ranges_at = 0, key_tiles_at = 0, spans_at = 0;  // where they begin; tiles begin at 0
};

namespace avis::gpu {

using Ints = std::vector<std::int32_t>;

inline bool fits(const AvGroups& groups, std::int64_t queries, std::int64_t keys) {
  const std::int64_t *starts = groups.q_starts, *ranges = groups.k_ranges;
  if (groups.groups < 0 || starts[0] != 0 || starts[groups.groups] != queries) return false;
  for (std::int64_t g = 0; g < groups.groups; ++g) {
    if (starts[g] > starts[g + 1]) return false;
    for (std::int64_t r = g * groups.per_group; r < (g + 1) * groups.per_group; ++r)
      if (ranges[2 * r] != ranges[2 * r + 1] &&
          (ranges[2 * r] < 0 || ranges[2 * r] > ranges[2 * r + 1] || ranges[2 * r + 1] > keys))
        return false;
  }
  return true;
}

// Tiles [first query, last query, first range, number of ranges]; empty ranges are left out.
inline void cut_queries(const AvGroups& groups, std::int32_t tile_queries, Ints* tiles, Ints* ranges) {
  for (std::int64_t g = 0; g < groups.groups; ++g) {
    const auto first_range = static_cast<std::int32_t>(ranges->size() / 2);
    for (std::int64_t r = g * groups.per_group; r < (g + 1) * groups.per_group; ++r)
      if (groups.k_ranges[2 * r] < groups.k_ranges[2 * r + 1])
        for (int end = 0; end < 2; ++end) ranges->push_back(static_cast<std::int32_t>(groups.k_ranges[2 * r + end]));
    const auto count = static_cast<std::int32_t>(ranges->size() / 2) - first_range;
    const auto last = static_cast<std::int32_t>(groups.q_starts[g + 1]);
    for (auto first = static_cast<std::int32_t>(groups.q_starts[g]); first < last; first += tile_queries)
      tiles->insert(tiles->end(), {first, std::min(first + tile_queries, last), first_range, count});
  }
}

// Tiles [first key, last key, first span, number of spans] over all keys, those that nobody sees included: somebody
// must write their zeros. Neighbouring groups that see the same keys make one span.
inline void cut_keys(const AvGroups& groups, std::int32_t keys, std::int32_t tile_keys, Ints* tiles, Ints* spans) {
  std::map<std::int64_t, std::vector<std::pair<std::int64_t, bool>>> cuts;  // key -> groups that begin or end to see
  cuts[0], cuts[keys];
  for (std::int64_t g = 0; g < groups.groups; ++g)
    for (std::int64_t r = g * groups.per_group; r < (g + 1) * groups.per_group; ++r)
      if (groups.k_ranges[2 * r] < groups.k_ranges[2 * r + 1]) {
        cuts[groups.k_ranges[2 * r]].emplace_back(g, true);
        cuts[groups.k_ranges[2 * r + 1]].emplace_back(g, false);
      }
  std::multiset<std::int64_t> watching;  // a group twice where one of its ranges ends and the next begins
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    for (const auto& [group, begins] : cut->second)
      if (begins) watching.insert(group);
    for (const auto& [group, begins] : cut->second)
      if (!begins) watching.erase(watching.find(group));
    const auto first_span = static_cast<std::int32_t>(spans->size() / 2);
    for (const std::int64_t group : watching) {
      const auto start = static_cast<std::int32_t>(groups.q_starts[group]);
      const auto stop = static_cast<std::int32_t>(groups.q_starts[group + 1]);
      if (start == stop) continue;
      if (static_cast<std::int32_t>(spans->size() / 2) > first_span && spans->back() == start)
        spans->back() = stop;
      else
        spans->insert(spans->end(), {start, stop});
    }
    const auto count = static_cast<std::int32_t>(spans->size() / 2) - first_span;
    const auto stop = static_cast<std::int32_t>(std::next(cut)->first);
    for (auto first = static_cast<std::int32_t>(cut->first); first < stop; first += tile_keys)
      tiles->insert(tiles->end(), {first, std::min(first + tile_keys, stop), first_span, count});
  }
}

// Joins the four arrays; each begins at a multiple of 16 bytes, since tiles are read as int4.
inline AvPlan join(const Ints& tiles, const Ints& ranges, const Ints& key_tiles, const Ints& spans) {
  AvPlan plan;
  plan.tiles = static_cast<std::int32_t>(tiles.size() / 4);
  plan.key_tiles = static_cast<std::int32_t>(key_tiles.size() / 4);
  const auto append = [&](const Ints& part) {
    const auto at = static_cast<std::int64_t>(plan.ints.size());
    plan.ints.insert(plan.ints.end(), part.begin(), part.end());
    plan.ints.resize((plan.ints.size() + 3) / 4 * 4);
    return at;
  };
  append(tiles);
  plan.key_tiles_at = append(key_tiles);
  plan.ranges_at = append(ranges);
  plan.spans_at = append(spans);
  return plan;
}

}  // namespace avis::gpu
