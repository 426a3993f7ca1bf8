// The tables of deformable attention's points; no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "avis/msda.h"

namespace avis {

// The columns of a PointTable and the memory behind them.
class PointColumns {
 public:
  // One entry for each head, level and point; `head_stride` 0 with one head makes the table of a slab.
  PointColumns(const std::vector<std::int64_t>& shapes, std::int64_t points, std::int64_t heads,
               std::int64_t head_stride, std::int64_t token_stride) {
    const std::size_t count = heads * (shapes.size() / 2) * points;
    const std::size_t padded = (count + kPadding - 1) / kPadding * kPadding;
    width_.assign(padded, -1.0f);
    height_.assign(padded, -1.0f);
    base_.assign(padded, 0);
    row_step_.assign(padded, 0);
    std::size_t i = 0;
    for (std::int64_t head = 0; head < heads; ++head) {
      std::int64_t first = 0;
      for (std::size_t level = 0; level < shapes.size(); level += 2) {
        for (std::int64_t p = 0; p < points; ++p, ++i) {
          height_[i] = static_cast<float>(shapes[level]);
          width_[i] = static_cast<float>(shapes[level + 1]);
          base_[i] = static_cast<std::int32_t>(first * token_stride + head * head_stride);
          row_step_[i] = static_cast<std::int32_t>(shapes[level + 1] * token_stride);
        }
        first += shapes[level] * shapes[level + 1];
      }
    }
    table_ = {width_.data(),
              height_.data(),
              base_.data(),
              row_step_.data(),
              static_cast<std::int32_t>(token_stride),
              static_cast<std::int32_t>(count)};
  }
  const PointTable& get() const { return table_; }

 private:
  static constexpr std::size_t kPadding = 16;  // the widest vector
  std::vector<float> width_, height_;
  std::vector<std::int32_t> base_, row_step_;
  PointTable table_;
};

}  // namespace avis
