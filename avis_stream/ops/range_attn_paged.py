"""Attention over pages of a cache, merged in order: the decoder's memory of a stream, and writing into it.

Each page gives every query a partial result and its lse, which the caller may keep (a page that leaves the cache is
folded into a query's sink). Letters: `B` batch, `Nq` queries, `Nk` slots of the cache, `H` heads, `D` channels, `P`
pages.

Merging (lse a, value x) with (b, y): lse = log(e^a + e^b), value = e^(a - lse) x + e^(b - lse) y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avis_stream.checks import describe
from avis_stream.errors import AvisStreamError, ShapeError
from avis_stream.ops._autograd import at_least_float32, forbid_double_backward, lower, register_autocast
from avis_stream.ops._library import LIBRARY, define, implement
from avis_stream.ops.range_attn import check_ranges, check_tensors, wide_dtype

define(
    "range_attn_paged(Tensor q, Tensor k, Tensor v, Tensor page_ranges, Tensor? key_bias, Tensor? init_out, "
    "Tensor? init_lse, float scale) -> (Tensor, Tensor, Tensor, Tensor)"
)
define(
    "range_attn_paged_backward(Tensor grad_out, Tensor? grad_lse, Tensor? grad_page_out, Tensor? grad_page_lse, "
    "Tensor q, Tensor k, Tensor v, Tensor page_ranges, Tensor? key_bias, Tensor? init_out, Tensor? init_lse, "
    "Tensor out, Tensor lse, Tensor page_out, Tensor page_lse, float scale, bool[6] mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    has_native=False,
)
define("kv_write_(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor slot) -> ()")


# --- public ----------------------------------------------------------------------------------------------------------


def range_attn_paged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    page_ranges: Sequence[Sequence[int]] | Tensor,
    key_bias: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All queries attend to all pages; pages are merged in the order given, after the initial (value, lse).

    Args:
        q: [B, Nq, H, D] float32, bfloat16, float16 or float64.
        k: [B, Nk, H, D] keys of the whole cache, dtype of q.
        v: [B, Nk, H, D], dtype of q.
        page_ranges: [P, 2] half-open ranges of slots, as `ring_pages` gives them: lists, or an int32 tensor on the
            device of q, which a captured CUDA graph reads anew each time; out of bounds there, it is cut to the cache.
        key_bias: float32 [B, Nk], added to the scores of a key; -inf takes the key away.
        initial: Value float32 [B, Nq, H, D] and lse float32 [B, H, Nq] of what the queries have seen before: the sinks.
            float64 beside float64.
        scale: Factor on q.k; None: D ** -0.5.

    Returns:
        out [B, Nq, H, D] and lse [B, H, Nq] of everything together; page_out [P, B, Nq, H, D] and page_lse
        [P, B, H, Nq] of each page alone. out has the dtype of q, the others are float32 (float64). All differentiable.

    Raises:
        ShapeError: Shapes, dtypes, devices or pages do not fit together.
    Source: FlashDecoding's split softmax; the sinks are those of ADR 0201.
    """
    pages = (
        page_ranges
        if isinstance(page_ranges, Tensor)
        else torch.tensor(page_ranges, dtype=torch.int32, device=q.device).view(-1, 2)
    )
    init_out, init_lse = initial if initial is not None else (None, None)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    check_arguments(q, k, v, pages, key_bias, init_out, init_lse)
    if not isinstance(page_ranges, Tensor):  # a tensor is looked at where it is read
        for start, stop in page_ranges:
            check_ranges(q.shape[1], k.shape[1], [0, q.shape[1]], [start, stop])
    results: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.avis.range_attn_paged(
        q, k, v, pages, key_bias, init_out, init_lse, scale
    )
    return results


def kv_write_(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: int | Tensor) -> None:
    """Writes new keys and values [B, n, H, D] into a cache [B, Nk, H, D], from token `slot` on, in place.

    Args:
        k_cache: [B, Nk, H, D], any dtype of `range_attn_paged`.
        v_cache: As `k_cache`.
        k: [B, n, H, D], dtype of the caches.
        v: As `k`.
        slot: A number, or one int32 on the device of the caches, which a captured CUDA graph reads anew each time;
            tokens that would lie outside the cache are then left out on CUDA, an error on the CPU.

    Not differentiable: a cache holds numbers. Whoever saved one for a backward is told there that it has changed.

    Raises:
        ShapeError: Shapes do not fit, or the tokens would not end within the cache.
        AvisStreamError: A gradient would get lost: one of the tensors requires it, and gradients are on.
    """
    check_write(k_cache, v_cache, k, v, None if isinstance(slot, Tensor) else slot)
    if torch.is_grad_enabled():
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache), ("k", k), ("v", v)):
            if x.requires_grad:
                raise AvisStreamError(
                    f"kv_write_ passes no gradient on, {name} must not require one; "
                    "detach it, or call under torch.no_grad()"
                )
    # `full` and not `tensor`: a fill can be captured, a copy from the host cannot.
    place = slot if isinstance(slot, Tensor) else torch.full((), slot, dtype=torch.int32, device=k_cache.device)
    torch.ops.avis.kv_write_(k_cache, v_cache, k, v, place)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    key_bias: Tensor | None,
    init_out: Tensor | None,
    init_lse: Tensor | None,
) -> None:
    """Raises ShapeError unless the arguments of `range_attn_paged` fit together; pages are not looked at."""
    check_tensors(q, k, v, key_bias)
    if pages.dim() != 2 or pages.shape[1] != 2 or pages.dtype != torch.int32:
        raise ShapeError(f"page_ranges must be int32 [P, 2], got {describe(pages)}")
    batch, queries, heads, _ = q.shape
    if (init_out is None) != (init_lse is None):
        raise ShapeError("initial must be a value and an lse, or None; got only one of them")
    if init_out is not None and init_lse is not None:
        wide = wide_dtype(q)
        if init_out.shape != q.shape or init_out.dtype != wide:
            raise ShapeError(f"initial value must be {wide} {list(q.shape)} as q, got {describe(init_out)}")
        if init_lse.shape != (batch, heads, queries) or init_lse.dtype != wide:
            raise ShapeError(f"initial lse must be {wide} {[batch, heads, queries]}, got {describe(init_lse)}")


def check_write(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: int | None) -> None:
    """Raises ShapeError unless k and v fit into the caches, from token `slot` on if that is known."""
    if k_cache.dim() != 4 or v_cache.shape != k_cache.shape:
        raise ShapeError(f"caches must both be [B, Nk, H, D], got {describe(k_cache)} and {describe(v_cache)}")
    batch, slots, heads, channels = k_cache.shape
    for name, x in (("k", k), ("v", v)):
        if x.dim() != 4 or (x.shape[0], *x.shape[2:]) != (batch, heads, channels) or x.dtype != k_cache.dtype:
            raise ShapeError(f"{name} must be [B={batch}, n, H={heads}, D={channels}] as the cache, got {describe(x)}")
    start = slot or 0
    if k.shape != v.shape or start < 0 or start + k.shape[1] > slots:
        raise ShapeError(f"k and v must lie within {slots} slots, got {k.shape[1]} and {v.shape[1]} from {start} on")


# --- built from range_attn -------------------------------------------------------------------------------------------
#
# A page is one call of range_attn, native where that is; merging touches Nq rows a page and is cheap beside it.


def _to_rows(lse_like: Tensor) -> Tensor:
    """[..., H, Nq] -> [..., Nq, H, 1], to go with values."""
    return lse_like.transpose(-1, -2)[..., None]


def _share(lse: Tensor, total: Tensor) -> Tensor:
    """e^(lse - total), 0 where the part is empty (the whole may be too)."""
    return torch.exp(torch.where(lse == -torch.inf, -torch.inf, lse - torch.where(total == -torch.inf, 0, total)))


def _spans(pages: Tensor, q: Tensor, k: Tensor) -> list[list[int]]:
    spans: list[list[int]] = pages.tolist()
    for start, stop in spans:
        check_ranges(q.shape[1], k.shape[1], [0, q.shape[1]], [start, stop])
    return spans


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    key_bias: Tensor | None,
    init_out: Tensor | None,
    init_lse: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`range_attn_paged`, page by page."""
    check_arguments(q, k, v, pages, key_bias, init_out, init_lse)
    wide = wide_dtype(q)
    batch, queries, heads, _ = q.shape
    out = torch.zeros(q.shape, dtype=wide, device=q.device) if init_out is None else init_out.clone()
    lse = q.new_full((batch, heads, queries), -torch.inf, dtype=wide) if init_lse is None else init_lse.clone()
    page_out = torch.empty(len(pages), *q.shape, dtype=wide, device=q.device)
    page_lse = torch.empty(len(pages), *lse.shape, dtype=wide, device=q.device)
    for page, span in enumerate(_spans(pages, q, k)):
        # Partial results stay in the wide type, or merging would round once a page.
        part, part_lse = torch.ops.avis.range_attn(
            q.to(wide), k[:, span[0] : span[1]].to(wide), v[:, span[0] : span[1]].to(wide), [0, queries],
            [0, span[1] - span[0]], None if key_bias is None else key_bias[:, span[0] : span[1]], scale
        )  # fmt: skip
        page_out[page], page_lse[page] = part, part_lse
        total = torch.logaddexp(lse, part_lse)
        out = out * _to_rows(_share(lse, total)) + part * _to_rows(_share(part_lse, total))
        lse = total
    return out.to(q.dtype), lse, page_out, page_lse


def backward_reference(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_page_out: Tensor | None,
    grad_page_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    key_bias: Tensor | None,
    init_out: Tensor | None,
    init_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    page_out: Tensor,
    page_lse: Tensor,
    scale: float,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Through the merge, then through each page.

    With s = e^(part_lse - lse), out is the sum of s * part: a part gets s * grad_out, and its lse
    s * (grad_out . (part - out) + grad_lse).
    """
    wide = wide_dtype(q)
    queries = q.shape[1]
    grad, merged = grad_out.to(wide), out.to(wide)

    def split(part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
        share = _share(part_lse, lse)
        towards = (grad * (part - merged)).sum(-1).transpose(-1, -2)  # [B, H, Nq]
        if grad_lse is not None:  # NaN after a logaddexp of what saw nothing
            towards = towards + torch.where(lse == -torch.inf, 0, grad_lse)
        return grad * _to_rows(share), share * towards

    dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))
    dbias = torch.zeros(k.shape[:2], dtype=wide, device=k.device)
    for page, (start, stop) in enumerate(_spans(pages, q, k)):
        part_grad, part_lse_grad = split(page_out[page], page_lse[page])
        if grad_page_out is not None:
            part_grad = part_grad + grad_page_out[page]
        if grad_page_lse is not None:
            part_lse_grad = part_lse_grad + grad_page_lse[page]
        grads = torch.ops.avis.range_attn_backward(
            part_grad, part_lse_grad, q.to(wide), k[:, start:stop].to(wide), v[:, start:stop].to(wide), page_out[page],
            page_lse[page], [0, queries], [0, stop - start], None if key_bias is None else key_bias[:, start:stop],
            scale, mask[:4]
        )  # fmt: skip
        for total, own, wanted in zip(
            (dq, dk[:, start:stop], dv[:, start:stop], dbias[:, start:stop]), grads, mask, strict=False
        ):
            if wanted:
                total += own
    init_grads = (dbias.new_empty(0), dbias.new_empty(0))
    if init_out is not None and init_lse is not None:
        init_grads = split(init_out, init_lse)
    grads = dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dbias, *init_grads
    return tuple(grad if wanted else grad.new_empty(0) for grad, wanted in zip(grads, mask, strict=True))


def _kv_write(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: Tensor) -> None:
    first = int(slot)
    check_write(k_cache, v_cache, k, v, first)
    k_cache[:, first : first + k.shape[1]] = k
    v_cache[:, first : first + v.shape[1]] = v


implement("range_attn_paged", reference, quiet=True)
implement("range_attn_paged_backward", backward_reference, quiet=True)
implement("kv_write_", _kv_write)


def _note_write(keys: Any, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: Tensor) -> None:
    """Counts a write before it is done, whoever does it, so that autograd refuses what was saved before.

    Tensors made in inference mode have no count, and do not come by here.
    """
    torch.autograd.graph.increment_version((k_cache, v_cache))
    with torch._C._AutoDispatchBelowADInplaceOrView():
        torch.ops.avis.kv_write_.default.redispatch(
            keys & torch._C._after_ADInplaceOrView_keyset, k_cache, v_cache, k, v, slot
        )


LIBRARY.impl("kv_write_", _note_write, "ADInplaceOrView", with_keyset=True)


# --- shapes, gradient, autocast --------------------------------------------------------------------------------------


@torch.library.register_fake("avis::range_attn_paged", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(q: Tensor, k: Tensor, v: Tensor, pages: Tensor, key_bias: Any, init_out: Any, init_lse: Any, scale: float) -> Any:
    check_arguments(q, k, v, pages, key_bias, init_out, init_lse)
    batch, queries, heads, _ = q.shape
    count, wide = pages.shape[0], wide_dtype(q)
    return (
        q.new_empty(q.shape),
        q.new_empty(batch, heads, queries, dtype=wide),
        q.new_empty(count, *q.shape, dtype=wide),
        q.new_empty(count, batch, heads, queries, dtype=wide),
    )


@torch.library.register_fake("avis::range_attn_paged_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(*args: Any) -> tuple[Tensor, ...]:
    q, k, v, _, _, init_out, init_lse = args[4:11]
    mask, wide = args[-1], wide_dtype(q)
    shapes = [q.shape, k.shape, v.shape, k.shape[:2], 0, 0]
    if init_out is not None:
        shapes[4:] = [init_out.shape, init_lse.shape]
    dtypes = [q.dtype, q.dtype, q.dtype, wide, wide, wide]
    return tuple(
        q.new_empty(shape if wanted else 0, dtype=dtype)
        for shape, wanted, dtype in zip(shapes, mask, dtypes, strict=True)
    )


@torch.library.register_fake("avis::kv_write_", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: Tensor) -> None:
    check_write(k_cache, v_cache, k, v, None)


_DIFFERENTIABLE = (0, 1, 2, 4, 5, 6)
"""Places of q, k, v, key_bias, init_out and init_lse among the arguments."""


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *other_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    mask = [ctx.needs_input_grad[i] for i in _DIFFERENTIABLE]
    grad_out = torch.zeros_like(saved[7]) if grad_out is None else grad_out
    grads = torch.ops.avis.range_attn_paged_backward(grad_out, *other_grads, *saved, ctx.scale, mask)
    result: list[Tensor | None] = [None] * 8
    for place, grad, wanted in zip(_DIFFERENTIABLE, grads, mask, strict=True):
        result[place] = grad if wanted else None
    return tuple(result)


torch.library.register_autograd("avis::range_attn_paged", _backward, setup_context=_save, lib=LIBRARY)
forbid_double_backward("range_attn_paged_backward")


def _autocast(
    dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, pages: Tensor, bias: Any, out: Any, lse: Any, scale: float
) -> tuple[Any, ...]:
    wide = [None if x is None else at_least_float32(x) for x in (bias, out, lse)]
    return lower(q, dtype), lower(k, dtype), lower(v, dtype), pages, *wide, scale


register_autocast("range_attn_paged", _autocast)
