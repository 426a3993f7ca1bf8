"""Deformable attention straight from the network's outputs: softmax and sampling locations inside the operator.

Saves the softmax, the division and both their results. The reference, and the backward, compute them in PyTorch and
leave the rest to `ms_deform_attn`, native where that is. Letters and semantics are those of `ms_deform_attn.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avis_stream.checks import describe
from avis_stream.errors import ShapeError
from avis_stream.ops import _autograd
from avis_stream.ops._autograd import at_least_float32, forbid_double_backward, lower, register_autocast
from avis_stream.ops._library import LIBRARY, define, implement
from avis_stream.ops.ms_deform_attn import (
    check_companions,
    check_value,
    coordinates,
    empty_grads,
    flat_shapes,
    gradients,
    weights,
)

define("ms_deform_attn_fused(Tensor value, int[] spatial_shapes, Tensor ref, Tensor offsets, Tensor logits) -> Tensor")
define(
    "ms_deform_attn_fused_backward(Tensor grad_out, Tensor value, int[] spatial_shapes, Tensor ref, Tensor offsets, "
    "Tensor logits, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)",
    has_native=False,
)


def ms_deform_attn_fused(
    value: Tensor, spatial_shapes: Sequence[Any] | Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn` at `reference_points + offsets / (W, H)` with weights `softmax(logits)`.

    Args:
        value: [N, S, M, D], as in `ms_deform_attn`.
        spatial_shapes: Flat `[H0, W0, H1, W1, ...]` or [L, 2].
        reference_points: [N, Q, L, 2] as (x, y) in [0, 1]; boxes (4 numbers) are not supported.
        offsets: [N, Q, M, L, P, 2] as (x, y) in pixels of each level.
        logits: [N, Q, M, L * P] or [N, Q, M, L, P], dtype as the weights of `ms_deform_attn`.
    Returns:
        [N, Q, M * D] in the dtype of `value`.
    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.
    Source: Deformable DETR, equation 3, with its section A.3 for the normalisation of offsets.
    """
    shapes = flat_shapes(spatial_shapes)
    ref, offsets = coordinates(reference_points, value), coordinates(offsets, value)
    logits = weights(logits.flatten(3) if logits.dim() == 5 else logits, value)
    try:
        out: Tensor = torch.ops.avis.ms_deform_attn_fused(value, shapes, ref, offsets, logits)
    except RuntimeError:  # as in `ms_deform_attn`: the kernel has checked, this says it better
        check_arguments(value, shapes, ref, offsets, logits)
        raise
    return out


def check_arguments(value: Tensor, shapes: Sequence[int], ref: Tensor, offsets: Tensor, logits: Tensor) -> None:
    """Raises ShapeError unless the arguments of `ms_deform_attn_fused` fit together."""
    check_value(value, shapes)
    n, _, m, _ = value.shape
    levels = len(shapes) // 2
    if ref.dim() != 4 or (ref.shape[0], *ref.shape[2:]) != (n, levels, 2):
        raise ShapeError(
            f"reference_points must be [N={n}, Q, L={levels}, 2], got {describe(ref)}; boxes are not taken"
        )
    q = ref.shape[1]
    if offsets.dim() != 6 or (*offsets.shape[:4], offsets.shape[5]) != (n, q, m, levels, 2):
        raise ShapeError(f"offsets must be [N={n}, Q={q}, M={m}, L={levels}, P, 2], got {describe(offsets)}")
    if logits.shape != (n, q, m, levels * offsets.shape[4]):
        raise ShapeError(
            f"logits must be [N={n}, Q={q}, M={m}, L*P={levels * offsets.shape[4]}], got {describe(logits)}"
        )
    check_companions(value, {"reference_points": ref, "offsets": offsets}, {"logits": logits})


def _sizes(shapes: Sequence[int], like: Tensor) -> Tensor:
    """[L, 1, 2] width and height of each level."""
    return like.new_tensor([[w, h] for h, w in zip(shapes[::2], shapes[1::2], strict=True)])[:, None]


def _unfuse(shapes: Sequence[int], ref: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling locations [N, Q, M, L, P, 2] and attention weights [N, Q, M, L, P], both in the wide type."""
    loc = ref[:, :, None, :, None] + offsets / _sizes(shapes, offsets)
    return loc, torch.softmax(logits.to(loc.dtype), dim=-1).view(offsets.shape[:-1])


def reference(value: Tensor, shapes: Sequence[int], ref: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    check_arguments(value, shapes, ref, offsets, logits)
    out: Tensor = torch.ops.avis.ms_deform_attn(value, shapes, *_unfuse(shapes, ref, offsets, logits))
    return out


def backward_reference(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    ref: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    check_arguments(value, shapes, ref, offsets, logits)
    loc, weight = _unfuse(shapes, ref, offsets, logits)
    plain_mask = [mask[0], mask[1] or mask[2], mask[3]]
    grad_value, grad_loc, grad_weight = gradients(grad_out, value, shapes, loc, weight, plain_mask)
    empty = value.new_empty(0)
    grad_ref = grad_loc.sum((2, 4)) if mask[1] else empty.to(ref.dtype)
    grad_offsets = grad_loc / _sizes(shapes, offsets) if mask[2] else empty.to(offsets.dtype)
    grad_logits = empty.to(logits.dtype)
    if mask[3]:
        weighted = (weight * grad_weight).flatten(3)  # softmax: dL = w * (dW - sum(w * dW))
        grad_logits = (weighted - weight.flatten(3) * weighted.sum(-1, keepdim=True)).to(logits.dtype)
    return grad_value, grad_ref, grad_offsets, grad_logits


implement("ms_deform_attn_fused", reference, quiet=True)
implement("ms_deform_attn_fused_backward", backward_reference, quiet=True)


@torch.library.register_fake("avis::ms_deform_attn_fused", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(value: Tensor, spatial_shapes: Sequence[int], ref: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    check_arguments(value, spatial_shapes, ref, offsets, logits)
    return value.new_empty(value.shape[0], ref.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("avis::ms_deform_attn_fused_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    grad_out: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    ref: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    return empty_grads((value, ref, offsets, logits), mask)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, ref, offsets, logits = inputs
    ctx.save_for_backward(value, ref, offsets, logits)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, *others = ctx.saved_tensors
    mask = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
    fixed_order = mask[0] and _autograd.wants_fixed_order(value)
    differentiate: Any = backward_reference if fixed_order else torch.ops.avis.ms_deform_attn_fused_backward
    grads = differentiate(grad_out, value, ctx.spatial_shapes, *others, mask)
    grad_value, *grad_others = (grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))
    return grad_value, None, *grad_others


torch.library.register_autograd("avis::ms_deform_attn_fused", _backward, setup_context=_save, lib=LIBRARY)
forbid_double_backward("ms_deform_attn_fused_backward")


def _autocast(dtype: torch.dtype, value: Tensor, shapes: Any, ref: Tensor, offsets: Tensor, logits: Tensor) -> Any:
    value = lower(value, dtype)
    return value, shapes, at_least_float32(ref), at_least_float32(offsets), weights(logits, value)


register_autocast("ms_deform_attn_fused", _autocast)
