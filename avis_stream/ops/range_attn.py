"""Attention over a few contiguous ranges of keys: AVISM's windows, rolling windows and pages, without a mask.

Letters: `B` batch, `Nq` queries, `Nk` keys, `H` heads, `D` channels a head, `G` groups, `R` ranges a group.
`ranges.py` makes the plans, that is `q_starts` and `k_ranges`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, overload

import torch
from torch import Tensor

from avis_stream.checks import check_shape, describe
from avis_stream.errors import ShapeError
from avis_stream.ops._autograd import at_least_float32, forbid_double_backward, lower, register_autocast
from avis_stream.ops._library import LIBRARY, define, implement

define(
    "range_attn(Tensor q, Tensor k, Tensor v, int[] q_starts, int[] k_ranges, Tensor? key_bias, float scale) "
    "-> (Tensor, Tensor)"
)
define(
    "range_attn_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "int[] q_starts, int[] k_ranges, Tensor? key_bias, float scale, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"
)

_SCORES_AT_ONCE = 1 << 22
"""Scores that the reference holds at a time (16 MB in float32), unless a single group needs more."""


# --- public ----------------------------------------------------------------------------------------------------------


@overload
def range_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Sequence[int] | Tensor,
    k_ranges: Sequence[Any] | Tensor,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def range_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Sequence[int] | Tensor,
    k_ranges: Sequence[Any] | Tensor,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    *,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def range_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Sequence[int] | Tensor,
    k_ranges: Sequence[Any] | Tensor,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention in which each group of queries sees the union of a few ranges of keys.

    A query that sees no key, or only keys with a bias of -inf, gives 0, an lse of -inf and no gradient. Results of a
    group do not depend on the other groups in the call. Differentiable once, through the lse too.

    Args:
        q: [B, Nq, H, D] float32, bfloat16, float16 or float64; views of a projection's output are fine.
        k: [B, Nk, H, D], dtype of q.
        v: [B, Nk, H, D], dtype of q.
        q_starts: [G + 1] ascending ints, 0 first and Nq last: group g holds the queries from q_starts[g] on.
        k_ranges: [G, R, 2] half-open ranges of keys, disjoint within a group, in any order; (0, 0) is unused.
        key_bias: float32 [B, Nk], added to the scores of a key; -inf takes the key away.
        scale: Factor on q.k; None: D ** -0.5.
        return_lse: Whether to return the log of the softmax denominators too, to merge partial attentions.
    Returns:
        [B, Nq, H, D] in the dtype of q; with `return_lse` also float32 [B, H, Nq] (float64 beside float64).
    Raises:
        ShapeError: Shapes, dtypes, devices or ranges do not fit together.
    Example:
        >>> q = torch.zeros(1, 2, 1, 1); v = torch.tensor([1.0, 3.0, 8.0]).view(1, 3, 1, 1)
        >>> range_attn(q, v, v, q_starts=[0, 1, 2], k_ranges=[[(0, 2)], [(2, 3)]]).flatten().tolist()
        [2.0, 8.0]
    """
    starts, ranges = flat_ints(q_starts), flat_ints(k_ranges)
    try:
        scale = q.size(-1) ** -0.5 if scale is None else float(scale)
        out, lse = torch.ops.avis.range_attn(q, k, v, starts, ranges, key_bias, scale)
    except (RuntimeError, ArithmeticError, IndexError):  # of the kernel's checks; of the scale, where q has no channels
        check_arguments(q, k, v, starts, ranges, key_bias)
        raise
    return (out, lse) if return_lse else out


# --- checks ----------------------------------------------------------------------------------------------------------


def flat_ints(values: Sequence[Any] | Tensor) -> list[int]:
    """A flat list of ints from a tensor or from lists nested to any depth; a flat list is handed back."""
    if type(values) is list and values and type(values[0]) is int:
        return values
    flat: list[Any] = values.flatten().tolist() if isinstance(values, Tensor) else list(values)
    while flat and isinstance(flat[0], (list, tuple)):
        flat = list(chain.from_iterable(flat))
    return flat


def check_arguments(
    q: Tensor, k: Tensor, v: Tensor, q_starts: Sequence[int], k_ranges: Sequence[int], key_bias: Tensor | None
) -> None:
    """Raises ShapeError unless the arguments of `range_attn` fit together."""
    check_tensors(q, k, v, key_bias)
    check_ranges(q.shape[1], k.shape[1], q_starts, k_ranges)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None) -> None:
    """Raises ShapeError unless the tensors fit together."""
    check_shape(q, "q", "B Nq H D")
    batch, _, heads, channels = q.shape
    if k.dim() != 4 or (k.shape[0], *k.shape[2:]) != (batch, heads, channels):
        raise ShapeError(f"k must be [B={batch}, Nk, H={heads}, D={channels}] to fit q, got {describe(k)}")
    if v.shape != k.shape:
        raise ShapeError(f"v must have the shape {list(k.shape)} of k, got {describe(v)}")
    if q.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ShapeError(f"q must be float32, float64, bfloat16 or float16, got {describe(q)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ShapeError(f"{name} must be {q.dtype} on {q.device} as q is, got {tensor.dtype} on {tensor.device}")
    if key_bias is not None:
        wide = wide_dtype(q)
        if key_bias.shape != k.shape[:2] or key_bias.dtype != wide or key_bias.device != q.device:
            raise ShapeError(
                f"key_bias must be {wide} [B={batch}, Nk={k.shape[1]}] on {q.device}, "
                f"got {describe(key_bias)} on {key_bias.device}"
            )


def check_ranges(queries: int, keys: int, q_starts: Sequence[int], k_ranges: Sequence[int]) -> None:
    """Raises ShapeError unless flat `q_starts` and `k_ranges` are a plan for that many queries and keys."""
    groups = len(q_starts) - 1
    if groups < 0 or q_starts[0] != 0 or q_starts[-1] != queries:
        raise ShapeError(f"q_starts must begin with 0 and end with Nq={queries}, got {describe(list(q_starts))}")
    if len(k_ranges) % (2 * groups) if groups else len(k_ranges):
        raise ShapeError(f"k_ranges must be [G={groups}, R, 2] to fit q_starts, got {len(k_ranges)} numbers")
    per_group = len(k_ranges) // groups if groups else 0
    for group in range(groups):
        if q_starts[group] > q_starts[group + 1]:
            raise ShapeError(f"q_starts must not descend, got {q_starts[group]} before {q_starts[group + 1]}")
        own = k_ranges[group * per_group : (group + 1) * per_group]
        previous = 0
        for start, stop in _sorted_pairs(own):
            if not 0 <= start <= stop <= keys:
                raise ShapeError(f"k_ranges must lie within [0, Nk={keys}], group {group} has ({start}, {stop})")
            if start < previous:
                raise ShapeError(f"k_ranges of a group must be disjoint, group {group} has {list(own)}")
            previous = stop


def _sorted_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges in ascending order, empty ones left out unless they are out of order in themselves."""
    return sorted((a, b) for a, b in zip(flat[::2], flat[1::2], strict=True) if a != b)


# --- reference -------------------------------------------------------------------------------------------------------


def _batches(q: Tensor, keys: int, q_starts: Sequence[int], k_ranges: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of one size together, as token indices: queries int64 [n, nq] and the keys they see, int64 [n, nk]."""
    groups = len(q_starts) - 1
    per_group = len(k_ranges) // groups if groups else 0
    by_size: dict[tuple[int, int], list[tuple[int, list[tuple[int, int]]]]] = defaultdict(list)
    for group in range(groups):
        flat = k_ranges[group * per_group : (group + 1) * per_group]
        own = [(a, b) for a, b in zip(flat[::2], flat[1::2], strict=True) if b > a]
        size = q_starts[group + 1] - q_starts[group], sum(b - a for a, b in own)
        if min(size):
            by_size[size].append((q_starts[group], own))
    for (nq, nk), members in by_size.items():
        at_once = max(1, _SCORES_AT_ONCE // max(1, q.shape[0] * q.shape[2] * nq * nk))
        for i in range(0, len(members), at_once):
            part = members[i : i + at_once]
            first = torch.tensor([start for start, _ in part])
            queries = first[:, None] + torch.arange(nq)
            seen = torch.stack([torch.cat([torch.arange(a, b) for a, b in own]) for _, own in part])
            yield queries.to(q.device), seen.to(q.device)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of each group, heads outside, in the precision of the sums: [B, N, H, D] -> [B, n, H, len, D]."""
    return at_least_float32(x[:, index]).transpose(2, 3)


def _scores(q: Tensor, k: Tensor, key_bias: Tensor | None, seen: Tensor, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-1, -2)  # [B, n, H, nq, nk]
    return scores if key_bias is None else scores + key_bias[:, seen][:, :, None, None, :]


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """Softmax from its log denominators; a row without keys, whose lse is -inf, becomes zeros instead of NaN."""
    return torch.exp(scores - torch.where(lse == -torch.inf, 0, lse)[..., None])


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Sequence[int],
    k_ranges: Sequence[int],
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    check_arguments(q, k, v, q_starts, k_ranges, key_bias)
    batch, queries, heads, _ = q.shape
    out = q.new_zeros(q.shape)
    lse = torch.full((batch, heads, queries), -torch.inf, dtype=wide_dtype(q), device=q.device)
    for index, seen in _batches(q, k.shape[1], q_starts, k_ranges):
        scores = _scores(_gather(q, index), _gather(k, seen), key_bias, seen, scale)
        own_lse = torch.logsumexp(scores, dim=-1)  # [B, n, H, nq]
        out[:, index] = (_probabilities(scores, own_lse) @ _gather(v, seen)).transpose(2, 3).to(out.dtype)
        lse[:, :, index] = own_lse.transpose(1, 2)
    return out, lse


def backward_reference(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_starts: Sequence[int],
    k_ranges: Sequence[int],
    key_bias: Tensor | None,
    scale: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = wide_dtype(q)
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
    dbias = torch.zeros(k.shape[:2], dtype=wide, device=k.device)
    # d out and d lse meet in one number a row: dS = P * (dP - row), see FlashAttention-2, section 3.1.
    row = (grad_out.to(wide) * out.to(wide)).sum(-1).transpose(1, 2)  # [B, H, Nq]
    if grad_lse is not None:
        row = row - torch.where(lse == -torch.inf, 0, grad_lse)
    for index, seen in _batches(q, k.shape[1], q_starts, k_ranges):
        qg, kg, vg, grad = _gather(q, index), _gather(k, seen), _gather(v, seen), _gather(grad_out, index)
        p = _probabilities(_scores(qg, kg, key_bias, seen, scale), lse[:, :, index].transpose(1, 2))
        ds = p * (grad @ vg.transpose(-1, -2) - row[:, :, index].transpose(1, 2)[..., None])
        dq[:, index] = (ds @ kg).transpose(2, 3) * scale
        # Ranges of different groups may overlap, so keys add up.
        flat = seen.flatten()
        dk.index_add_(1, flat, (ds.transpose(-1, -2) @ qg).transpose(2, 3).flatten(1, 2) * scale)
        dv.index_add_(1, flat, (p.transpose(-1, -2) @ grad).transpose(2, 3).flatten(1, 2))
        dbias.index_add_(1, flat, ds.sum((2, 3)).flatten(1))
    grads = dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dbias
    dq, dk, dv, dbias = (grad if wanted else grad.new_empty(0) for grad, wanted in zip(grads, mask, strict=True))
    return dq, dk, dv, dbias


def wide_dtype(x: Tensor) -> torch.dtype:
    """Precision of sums, lse and biases: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


implement("range_attn", reference)
implement("range_attn_backward", backward_reference)


# --- shapes, gradient, autocast --------------------------------------------------------------------------------------


@torch.library.register_fake("avis::range_attn", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Sequence[int],
    k_ranges: Sequence[int],
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    check_tensors(q, k, v, key_bias)
    batch, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=wide_dtype(q))


@torch.library.register_fake("avis::range_attn_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_starts: Sequence[int],
    k_ranges: Sequence[int],
    key_bias: Tensor | None,
    scale: float,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    grads = [x.new_empty(x.shape if wanted else 0) for x, wanted in zip((q, k, v), mask, strict=False)]
    return *grads, q.new_empty(k.shape[:2] if mask[3] else 0, dtype=wide_dtype(q))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.q_starts, ctx.k_ranges, key_bias, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, key_bias, *output)
    ctx.set_materialize_grads(False)  # most callers never look at the lse


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, key_bias, out, lse = ctx.saved_tensors
    mask = [ctx.needs_input_grad[i] for i in (0, 1, 2, 5)]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = torch.ops.avis.range_attn_backward(
        grad_out, grad_lse, q, k, v, out, lse, ctx.q_starts, ctx.k_ranges, key_bias, ctx.scale, mask
    )
    dq, dk, dv, dbias = (grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))
    return dq, dk, dv, None, None, dbias, None


torch.library.register_autograd("avis::range_attn", _backward, setup_context=_save, lib=LIBRARY)
forbid_double_backward("range_attn_backward")


def _autocast(
    dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, q_starts: Any, k_ranges: Any, key_bias: Any, scale: float
) -> tuple[Any, ...]:
    bias = None if key_bias is None else at_least_float32(key_bias)
    return lower(q, dtype), lower(k, dtype), lower(v, dtype), q_starts, k_ranges, bias, scale


register_autocast("range_attn", _autocast)
