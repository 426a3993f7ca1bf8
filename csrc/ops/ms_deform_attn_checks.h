// What deformable attention asks of its arguments on any device; the words are those of avis_stream/ops.
#pragma once

#include "tensors.h"

namespace avis {

void check_arguments(const Tensor& value, const Sizes& shapes, const Tensor& loc, const Tensor& weight);
void check_fused(const Tensor& value, const Sizes& shapes, const Tensor& ref, const Tensor& offsets,
                 const Tensor& logits);
void check_grad(const Tensor& grad_out, const Tensor& value, const Tensor& loc);

}  // namespace avis
