"""Multi-scale deformable attention: every query reads a few bilinear samples from each of a few feature maps.

Schema, reference, shapes, gradient and public function; the kernels are in `csrc/`. Letters: `N` images, `S` tokens of
all levels together, `M` heads, `D` channels a head, `Q` queries, `L` levels, `P` points a level.

Semantics, those of `grid_sample(padding_mode="zeros", align_corners=False)`: a location (x, y) in [0, 1] lies at pixel
x * W - 0.5. A point counts if that is in (-1, W) and likewise for y; corners outside the map contribute zero. Others,
NaN and Inf among them, are skipped: they read nothing and get no gradient. At integer pixels, where the slope jumps,
the gradient is that of the cell to the right and below.

Source: Deformable DETR (arXiv:2010.04159), section 4.1; the official `ms_deform_attn_core_pytorch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.checks import describe
from avis_stream.errors import ShapeError
from avis_stream.ops import _autograd
from avis_stream.ops._autograd import at_least_float32, forbid_double_backward, lower, register_autocast
from avis_stream.ops._library import LIBRARY, define, implement

HALF_TYPES = (torch.float16, torch.bfloat16)

define("ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor loc, Tensor weight) -> Tensor")
define(
    "ms_deform_attn_backward(Tensor grad_out, Tensor value, int[] spatial_shapes, Tensor loc, Tensor weight, "
    "bool[3] mask) -> (Tensor, Tensor, Tensor)"
)


# --- public ----------------------------------------------------------------------------------------------------------


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[Any] | Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sums bilinear samples of several feature maps, weighted per query and head.

    Differentiable once in all three tensors; the result is the same bit for bit for any number of threads.

    Args:
        value: [N, S, M, D] float32, bfloat16, float16 or float64; the levels' pixels one after the other, row by row.
        spatial_shapes: Height and width of each level: flat `[H0, W0, H1, W1, ...]`, or [L, 2] as list or tensor (a
            tensor on a GPU costs a copy to the host: keep the flat list).
        sampling_locations: [N, Q, M, L, P, 2] as (x, y) in [0, 1] of each level's map. Half types are widened to
            float32 first: coordinates are never computed in half precision.
        attention_weights: [N, Q, M, L, P] in the dtype of `value`, or float32; other half types are widened.
    Returns:
        [N, Q, M * D] in the dtype of `value`; sums run in float32 (float64 for float64).
    Raises:
        ShapeError: Shapes, dtypes or devices do not fit together.
    Source: Deformable DETR, equation 3.
    Example:
        >>> value, loc = torch.ones(1, 6, 1, 4), torch.full((1, 1, 1, 1, 1, 2), 0.5)
        >>> ms_deform_attn(value, [2, 3], loc, torch.ones(1, 1, 1, 1, 1)).tolist()
        [[[1.0, 1.0, 1.0, 1.0]]]
    """
    shapes = flat_shapes(spatial_shapes)
    loc, weight = coordinates(sampling_locations, value), weights(attention_weights, value)
    try:
        out: Tensor = torch.ops.avis.ms_deform_attn(value, shapes, loc, weight)
    except RuntimeError:  # every kernel checks; only then is it worth the time to say it better
        check_arguments(value, shapes, loc, weight)
        raise
    return out


def ms_deform_attn_grid_sample(
    value: Tensor, spatial_shapes: Sequence[Any] | Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same as `ms_deform_attn`, in the literal form of the official code: one `grid_sample` a level.

    For tests, for the model's reference form and as a rival in benchmarks; ordinary autograd. Arguments and result
    are those of `ms_deform_attn`, all tensors of one dtype.
    """
    shapes = flat_shapes(spatial_shapes)
    check_arguments(value, shapes, sampling_locations, attention_weights)
    n, _, m, d = value.shape
    _, q, _, levels, points, _ = sampling_locations.shape
    sizes = list(zip(shapes[::2], shapes[1::2], strict=True))
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # [N*M, Q, L, P, 2], in [-1, 1]
    samples = []
    for level, (maps, (height, width)) in enumerate(
        zip(torch.split(value, [h * w for h, w in sizes], dim=1), sizes, strict=True)
    ):
        maps = maps.permute(0, 2, 3, 1).reshape(n * m, d, height, width)
        samples.append(
            F.grid_sample(maps, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        )  # [N*M, D, Q, P]
    by_head = attention_weights.transpose(1, 2).reshape(n * m, 1, q, levels * points)
    summed = (torch.stack(samples, dim=-2).flatten(-2) * by_head).sum(-1)  # [N*M, D, Q]
    return summed.view(n, m * d, q).transpose(1, 2).contiguous()


# --- checks ----------------------------------------------------------------------------------------------------------


def flat_shapes(spatial_shapes: Sequence[Any] | Tensor) -> list[int]:
    """Height and width of the levels as a flat list of ints, from any form that `ms_deform_attn` takes."""
    if isinstance(spatial_shapes, Tensor):
        return [int(size) for size in spatial_shapes.flatten().tolist()]
    if spatial_shapes and not isinstance(spatial_shapes[0], (int, torch.SymInt)):
        return list(chain.from_iterable(spatial_shapes))
    return list(spatial_shapes)


def coordinates(tensor: Tensor, value: Tensor) -> Tensor:
    """Coordinates in the precision that they are computed in: float64 beside a float64 value, else float32."""
    if value.dtype == torch.float64:
        return tensor
    return at_least_float32(tensor)


def weights(tensor: Tensor, value: Tensor) -> Tensor:
    """Weights or logits as they are if they have the dtype of `value`, else at least in float32."""
    return tensor if tensor.dtype == value.dtype else at_least_float32(tensor)


def check_arguments(value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor) -> None:
    """Raises ShapeError unless the arguments of `ms_deform_attn` fit together."""
    check_value(value, shapes)
    n, _, m, _ = value.shape
    levels = len(shapes) // 2
    if loc.dim() != 6 or tuple(loc.shape[i] for i in (0, 2, 3, 5)) != (n, m, levels, 2):
        raise ShapeError(
            f"sampling_locations must be [N={n}, Q, M={m}, L={levels}, P, 2] to fit value and spatial_shapes, "
            f"got {describe(loc)}"
        )
    if weight.shape != loc.shape[:-1]:
        raise ShapeError(
            f"attention_weights must be [N, Q, M, L, P] = {list(loc.shape[:-1])} to fit sampling_locations, "
            f"got {describe(weight)}"
        )
    check_companions(value, {"sampling_locations": loc}, {"attention_weights": weight})


def check_value(value: Tensor, shapes: Sequence[int]) -> None:
    """Raises ShapeError unless `value` is [N, S, M, D] with as many tokens as `shapes` has pixels."""
    if len(shapes) == 0 or len(shapes) % 2:
        raise ShapeError(f"spatial_shapes must be [H0, W0, H1, W1, ...], two numbers a level, got {list(shapes)}")
    if min(shapes) < 1:
        raise ShapeError(f"spatial_shapes must be at least 1 everywhere, got {list(shapes)}; drop empty levels")
    tokens = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    if value.dim() != 4 or value.shape[1] != tokens:
        raise ShapeError(
            f"value must be [N, S={tokens}, M, D], S the pixels of spatial_shapes {list(shapes)}, got {describe(value)}"
        )
    if value.dtype not in (torch.float32, torch.float64, *HALF_TYPES):
        raise ShapeError(f"value must be float32, float64, bfloat16 or float16, got {describe(value)}")


def check_companions(value: Tensor, coordinates: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Raises ShapeError unless dtypes and devices of the other arguments go with `value`."""
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in coordinates.items():
        if tensor.dtype != wide:
            raise ShapeError(f"{name} must be {wide} beside a {value.dtype} value, got {describe(tensor)}")
    for name, tensor in weights.items():
        if tensor.dtype not in (wide, value.dtype):
            raise ShapeError(f"{name} must be {wide} or the {value.dtype} of value, got {describe(tensor)}")
    for name, tensor in (coordinates | weights).items():
        if tensor.device != value.device:
            raise ShapeError(f"{name} is on {tensor.device}, value on {value.device}; move one of them")


# --- reference: gathers with embedding_bag ---------------------------------------------------------------------------
#
# A sample is a weighted sum of 4 rows of the table value.view(N*S*M, D), so a query's whole output is one bag of 4*L*P
# weighted rows. `embedding_bag` does exactly that, and beats `grid_sample` forward and backward by a factor of 3.


class _Corners(NamedTuple):
    """The 4 rows that each point reads, in the order top left, top right, bottom left, bottom right."""

    row: Tensor
    """int [N, Q, M, L, P, 4], index into value.view(N*S*M, D); always that of a corner that exists."""
    weight: Tensor
    """[N, Q, M, L, P, 4]: bilinear factor times attention weight; 0 where the corner or the point is outside."""
    exists: Tensor
    """bool [N, Q, M, L, P, 4]."""
    fx: Tensor
    """[N, Q, M, L, P], distance from the left corners in pixels, in [0, 1)."""
    fy: Tensor
    attention: Tensor
    """[N, Q, M, L, P], the attention weight; 0 for skipped points."""
    sizes: Tensor
    """[L, 1, 2], width and height of each level."""


def _corners(value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor) -> _Corners:
    n, tokens, m, _ = value.shape
    device = value.device
    height, width = torch.tensor(shapes, dtype=torch.int32).view(-1, 2, 1).to(device).unbind(1)  # [L, 1] each
    areas = [h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True)]
    first = torch.tensor([sum(areas[:level]) for level in range(len(areas))], dtype=torch.int32, device=device)

    x, y = loc[..., 0] * width - 0.5, loc[..., 1] * height - 0.5
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)  # False for NaN
    x, y = torch.where(inside, x, 0), torch.where(inside, y, 0)
    attention = torch.where(inside, weight.to(loc.dtype), 0)
    left, top = x.floor(), y.floor()
    fx, fy = x - left, y - top
    # Numbers the rows of the table, and by embedding_bag's wish also what reads them: 4 corners a point.
    integer = torch.int32 if max(n * tokens * m, 2 * loc.numel()) < 2**31 else torch.int64
    left, top = left.to(integer), top.to(integer)
    has_left, has_right, has_top, has_bottom = left >= 0, left + 1 < width, top >= 0, top + 1 < height

    image = torch.arange(n, dtype=integer, device=device).view(n, 1, 1, 1, 1)
    head = torch.arange(m, dtype=integer, device=device).view(m, 1, 1)
    base = (image * tokens + first[:, None]) * m + head
    # A corner outside is replaced by its neighbour inside, with weight 0: a non-finite value elsewhere cannot leak in.
    x0, x1 = left.clamp(min=0) * m, torch.minimum(left + 1, width - 1) * m
    y0, y1 = base + top.clamp(min=0) * (width * m), base + torch.minimum(top + 1, height - 1) * (width * m)
    above, below = attention * (1 - fy) * has_top, attention * fy * has_bottom
    before, after = (1 - fx) * has_left, fx * has_right
    exists = torch.stack(
        (has_top & has_left, has_top & has_right, has_bottom & has_left, has_bottom & has_right), dim=-1
    )
    return _Corners(
        row=torch.stack((y0 + x0, y0 + x1, y1 + x0, y1 + x1), dim=-1),
        weight=torch.stack((above * before, above * after, below * before, below * after), dim=-1),
        exists=exists & inside[..., None],
        fx=fx,
        fy=fy,
        attention=attention,
        sizes=torch.stack((width, height), dim=-1).to(loc.dtype),
    )


def _table(value: Tensor, corners: _Corners) -> tuple[Tensor, Tensor]:
    """The rows to gather from, [N*S*M, D] in the precision of the sums, and the row index of every corner."""
    table = value.reshape(-1, value.shape[-1]).to(corners.fx.dtype)
    if bool(torch.isfinite(table.sum())):
        return table, corners.row
    # 0 * NaN is NaN: where the table is not finite, corners that do not exist must read a row of zeros instead.
    zero_row = corners.row.new_full((), len(table))
    return F.pad(table, (0, 0, 0, 1)), torch.where(corners.exists, corners.row, zero_row)


def reference(value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor) -> Tensor:
    check_arguments(value, shapes, loc, weight)
    n, _, m, d = value.shape
    q = loc.shape[1]
    if value.numel() == 0 or weight.numel() == 0:
        return value.new_zeros(n, q, m * d)
    corners = _corners(value, shapes, loc, weight)
    table, row = _table(value, corners)
    bags = F.embedding_bag(
        row.view(n * q * m, -1), table, mode="sum", per_sample_weights=corners.weight.view(n * q * m, -1)
    )
    return bags.view(n, q, m * d).to(value.dtype)


def backward_reference(
    grad_out: Tensor, value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor, mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    check_arguments(value, shapes, loc, weight)
    if value.numel() == 0 or weight.numel() == 0:
        return tuple(grad.zero_() for grad in empty_grads((value, loc, weight), mask))
    corners = _corners(value, shapes, loc, weight)
    grad = grad_out.reshape(-1, value.shape[-1]).to(loc.dtype)  # [N*Q*M, D], one row a bag
    grad_value = _scatter(grad, value, corners) if mask[0] else value.new_empty(0)
    if not (mask[1] or mask[2]):
        return grad_value, loc.new_empty(0), weight.new_empty(0)

    dots = torch.where(corners.exists, _dots(grad, value, corners), 0)  # d out / d corner weight
    top_left, top_right, bottom_left, bottom_right = dots.unbind(-1)
    top = torch.lerp(top_left, top_right, corners.fx)
    bottom = torch.lerp(bottom_left, bottom_right, corners.fx)
    grad_weight = torch.lerp(top, bottom, corners.fy).to(weight.dtype)
    grad_x = torch.lerp(top_right - top_left, bottom_right - bottom_left, corners.fy)
    grad_pixel = torch.stack((grad_x, bottom - top), dim=-1)
    grad_loc = grad_pixel * corners.attention[..., None] * corners.sizes
    return grad_value, grad_loc if mask[1] else loc.new_empty(0), grad_weight if mask[2] else weight.new_empty(0)


def empty_grads(inputs: Sequence[Tensor], mask: Sequence[bool]) -> tuple[Tensor, ...]:
    """Room for the gradient of each input, contiguous; [0] where the mask does not ask for it."""
    return tuple(
        torch.empty(x.shape if wanted else 0, dtype=x.dtype, device=x.device)
        for x, wanted in zip(inputs, mask, strict=True)
    )


def _scatter(grad: Tensor, value: Tensor, corners: _Corners) -> Tensor:
    """Gradient of the table: each row sums the weighted bags that read it, as one more `embedding_bag`.

    The stable sort gives every sum a fixed order; `index_add` would need 250 MB of copies at the model's size.
    """
    row, weight = corners.row.flatten(), corners.weight.flatten()
    order = torch.argsort(row, stable=True)
    count = torch.bincount(row, minlength=value.numel() // value.shape[-1])
    start = count.cumsum(0) - count
    corners_per_bag = len(row) // len(grad)
    summed = F.embedding_bag(order // corners_per_bag, grad, start, mode="sum", per_sample_weights=weight[order])
    return summed.view(value.shape).to(value.dtype)


def _dots(grad: Tensor, value: Tensor, corners: _Corners) -> Tensor:
    """Dot product of each bag's gradient with each of the rows it read, [N, Q, M, L, P, 4]."""
    table, row = _table(value, corners)
    corners_per_bag = row.numel() // len(grad)
    start = torch.arange(0, row.numel(), corners_per_bag, dtype=row.dtype, device=row.device)
    bag = torch.arange(len(grad), dtype=row.dtype, device=row.device).repeat_interleave(corners_per_bag)
    # The half of embedding_bag's own backward that we need; calling autograd is not possible below the dispatcher.
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, table, row.flatten(), start, bag, 0)
    return dots.view(row.shape)


def gradients(
    grad_out: Tensor, value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor, mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The backward operator; with `torch.use_deterministic_algorithms` every sum in it has a fixed order.

    On CUDA the kernel sums the gradient of `value` by atomics, so that one is the reference's then.
    """
    args = grad_out, value, shapes, loc, weight
    if not (mask[0] and _autograd.wants_fixed_order(value)):
        grads: tuple[Tensor, ...] = torch.ops.avis.ms_deform_attn_backward(*args, mask)
        return grads
    _, *others = torch.ops.avis.ms_deform_attn_backward(*args, [False, *mask[1:]])
    return backward_reference(*args, [True, False, False])[0], *others


implement("ms_deform_attn", reference)
implement("ms_deform_attn_backward", backward_reference)


# --- shapes, gradient, autocast --------------------------------------------------------------------------------------


@torch.library.register_fake("avis::ms_deform_attn", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(value: Tensor, spatial_shapes: Sequence[int], loc: Tensor, weight: Tensor) -> Tensor:
    check_arguments(value, spatial_shapes, loc, weight)
    return value.new_empty(value.shape[0], loc.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("avis::ms_deform_attn_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    grad_out: Tensor, value: Tensor, spatial_shapes: Sequence[int], loc: Tensor, weight: Tensor, mask: Sequence[bool]
) -> tuple[Tensor, ...]:
    return empty_grads((value, loc, weight), mask)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, loc, weight = inputs
    ctx.save_for_backward(value, loc, weight)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, loc, weight = ctx.saved_tensors
    mask = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    grads = gradients(grad_out, value, ctx.spatial_shapes, loc, weight, mask)
    grad_value, grad_loc, grad_weight = (grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))
    return grad_value, None, grad_loc, grad_weight


torch.library.register_autograd("avis::ms_deform_attn", _backward, setup_context=_save, lib=LIBRARY)
forbid_double_backward("ms_deform_attn_backward")


def _autocast(dtype: torch.dtype, value: Tensor, shapes: list[int], loc: Tensor, weight: Tensor) -> tuple[Any, ...]:
    value = lower(value, dtype)
    return value, shapes, loc, weights(weight, value)


register_autocast("ms_deform_attn", _autocast)
