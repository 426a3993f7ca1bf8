from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from operator_cases import relative_error
from torch import Tensor

from avis_stream.errors import AvisStreamError, ShapeError
from avis_stream.ops import kv_write_, range_attn, range_attn_paged, ring_pages
from avis_stream.ops.range_attn_paged import reference

B, NQ, H, D, FRAME = 2, 7, 2, 8, 3


def make(dtype: torch.dtype = torch.float32, slots: int = 18) -> tuple[Tensor, ...]:
    q, k, v = torch.randn(B, NQ, H, D), torch.randn(B, slots, H, D), torch.randn(B, slots, H, D)
    init_out, init_lse = torch.randn(B, NQ, H, D), torch.randn(B, H, NQ)
    wide = torch.promote_types(dtype, torch.float32)
    return (
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        torch.randn(B, slots, dtype=wide),
        init_out.to(wide),
        init_lse.to(wide),
    )


PAGES = [[6, 12], [12, 16], [0, 6]]


def whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, init_out: Tensor | None, init_lse: Tensor | None) -> Any:
    """One softmax over everything; the initial part is literally one more key, with logit lse and that value."""
    keys = torch.cat([torch.arange(a, b) for a, b in PAGES])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k[:, keys]) * D**-0.5 + bias[:, None, None, keys]
    values = torch.einsum("bkhd->bhkd", v[:, keys])[:, :, None].expand(-1, -1, NQ, -1, -1)
    if init_out is not None:
        scores = torch.cat([scores, init_lse[..., None]], -1)
        values = torch.cat([values, init_out.transpose(1, 2)[..., None, :]], -2)
    return torch.einsum("bhqk,bhqkd->bqhd", scores.softmax(-1), values), scores.logsumexp(-1)


@pytest.mark.parametrize("initial", [False, True])
def test_equals_one_softmax(initial: bool) -> None:
    q, k, v, bias, *init = (x.double().requires_grad_() for x in make())
    want, want_lse = whole(q, k, v, bias, *(init if initial else (None, None)))
    leaves = [q, k, v, bias, *(init if initial else [])]
    singles = [x.detach().float().requires_grad_() for x in leaves]
    out, lse, page_out, page_lse = range_attn_paged(
        singles[0], singles[1], singles[2], PAGES, singles[3], (singles[4], singles[5]) if initial else None
    )
    assert relative_error(out, want) < 5e-6
    assert relative_error(lse, want_lse) < 5e-6
    for page, (start, stop) in enumerate(PAGES):
        alone = range_attn(q, k, v, [0, NQ], [[(start, stop)]], bias, return_lse=True)
        assert relative_error(page_out[page], alone[0]) < 5e-6
        assert relative_error(page_lse[page], alone[1]) < 5e-6
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    wants = torch.autograd.grad((want * grad).sum() + (want_lse * grad_lse).sum(), leaves)
    gots = torch.autograd.grad((out * grad).sum() + (lse * grad_lse).sum(), singles)
    for got, exact in zip(gots, wants, strict=True):
        assert relative_error(got, exact) < 1e-5


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_reference(dtype: torch.dtype, initial: bool) -> None:
    q, k, v, bias, *init = make(dtype)
    pages = torch.tensor([*PAGES, [3, 3]], dtype=torch.int32)
    args = q, k, v, pages, bias, *(init if initial else (None, None)), 0.5
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2**-7}[dtype]
    for got, want in zip(torch.ops.avis.range_attn_paged(*args), reference(*args), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got.isinf(), want.isinf())
        assert relative_error(got.nan_to_num(neginf=0), want.nan_to_num(neginf=0)) < tolerance


def test_gradcheck_through_all_results() -> None:
    q, k, v, bias, *init = (
        x[:1, :, :1, :2] if x.dim() == 4 else x[:1, :1] if x.dim() == 3 else x[:1] for x in make(torch.float64)
    )
    q, init[0], init[1] = q[:, :2], init[0][:, :2], init[1][..., :2]
    leaves = [x.clone().requires_grad_() for x in (q, k, v, bias, *init)]
    pages = torch.tensor(PAGES, dtype=torch.int32)

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor) -> Any:
        return torch.ops.avis.range_attn_paged(q, k, v, pages, bias, out, lse, 0.7)

    assert torch.autograd.gradcheck(call, leaves)


def test_nothing_seen_gives_zero() -> None:
    q, k, v, *_ = make()
    out, lse, page_out, page_lse = range_attn_paged(q, k, v, torch.zeros(0, 2, dtype=torch.int32))
    assert not out.any()
    assert (lse == -torch.inf).all()
    assert page_out.shape == (0, B, NQ, H, D)
    assert page_lse.shape == (0, B, H, NQ)
    empty = torch.full((B, H, NQ), -torch.inf)
    q.requires_grad_()
    out, lse, *_ = range_attn_paged(q, k, v, [[4, 4]], None, (torch.zeros(B, NQ, H, D), empty))
    assert not out.any()
    assert (lse == -torch.inf).all()
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert not grad.any()


def test_what_sees_nothing_takes_no_nan_from_the_lse_gradient() -> None:
    """`torch.logaddexp` of two lses of -inf sends one; shares of 0 must not hand it on."""
    q, k, v, *_ = make()
    init = torch.zeros(B, NQ, H, D), torch.full((B, H, NQ), -torch.inf)
    bias = torch.zeros(B, 18)
    bias[0] = -torch.inf
    leaves = [x.requires_grad_() for x in (q, k, v, bias, *init)]
    out, lse, *_ = range_attn_paged(q, k, v, PAGES, bias, init)
    total = torch.logaddexp(lse, lse)
    for grad in torch.autograd.grad(out.sum() + torch.where(total.isinf(), 0, total).sum(), leaves):
        assert grad.isfinite().all()
        assert not grad[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_storage(dtype: torch.dtype) -> None:
    q, k, v, bias, *init = make(dtype)
    want, want_lse = whole(*(x.double() for x in (q, k, v, bias, *init)))
    out, lse, page_out, _ = range_attn_paged(q, k, v, PAGES, bias, tuple(init))
    assert (out.dtype, lse.dtype, page_out.dtype) == (dtype, torch.float32, torch.float32)
    torch.testing.assert_close(out.double(), want, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=2e-5)
    assert relative_error(lse, want_lse) < 5e-6


def test_ring_equals_growing_history() -> None:
    """A stream in a ring with sinks for what left it = attention over the whole past, at every frame."""
    page_frames, pages = 2, 3
    ring = page_frames * pages * FRAME
    k_cache, v_cache = torch.zeros(1, ring, H, D), torch.zeros(1, ring, H, D)
    q = torch.randn(1, NQ, H, D)
    sink = torch.zeros(1, NQ, H, D), torch.full((1, H, NQ), -torch.inf)
    k_all, v_all = torch.randn(1, 20 * FRAME, H, D), torch.randn(1, 20 * FRAME, H, D)
    for t in range(20):
        frame = slice(t * FRAME, (t + 1) * FRAME)
        kv_write_(k_cache, v_cache, k_all[:, frame], v_all[:, frame], t * FRAME % ring)
        spans = ring_pages(t + 1, page_frames, pages, FRAME)
        out, lse, page_out, page_lse = range_attn_paged(q, k_cache, v_cache, spans, None, sink)
        want, want_lse = range_attn(q, k_all, v_all, [0, NQ], [[(0, (t + 1) * FRAME)]], return_lse=True)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)
        if t % page_frames == page_frames - 1 and len(spans) == pages:  # the oldest page leaves: fold it
            total = torch.logaddexp(sink[1], page_lse[0])
            shares = [(part - total).exp().transpose(1, 2)[..., None] for part in (sink[1], page_lse[0])]
            sink = sink[0] * shares[0] + page_out[0] * shares[1], total


@pytest.mark.parametrize("mask", itertools.product([False, True], repeat=6))
def test_backward_mask(mask: tuple[bool, ...]) -> None:
    q, k, v, bias, *init = make()
    pages = torch.tensor(PAGES, dtype=torch.int32)
    outs = torch.ops.avis.range_attn_paged(q, k, v, pages, bias, *init, 0.5)
    args = torch.randn_like(q), None, None, None, q, k, v, pages, bias, *init, *outs, 0.5
    full = torch.ops.avis.range_attn_paged_backward(*args, [True] * 6)
    part = torch.ops.avis.range_attn_paged_backward(*args, list(mask))
    for wanted, a, b in zip(mask, part, full, strict=True):
        assert torch.equal(a, b) if wanted else a.numel() == 0


@pytest.mark.parametrize("initial", [False, True])
def test_opcheck(initial: bool) -> None:
    q, k, v, bias, *init = (x.requires_grad_() for x in make())
    pages = torch.tensor(PAGES, dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.avis.range_attn_paged, (q, k, v, pages, bias, *(init if initial else (None, None)), 0.5)
    )
    plain = [x.detach() for x in (q, k, v, bias, *init)]
    outs = torch.ops.avis.range_attn_paged(*plain[:3], pages, *plain[3:], 0.5)
    args = (
        *(torch.randn(out.shape) for out in outs),
        *plain[:3],
        pages,
        *plain[3:],
        *outs,
        0.5,
        [True, False, True, True, True, False],
    )
    torch.library.opcheck(torch.ops.avis.range_attn_paged_backward, args)
    cache = torch.zeros(B, 18, H, D)
    torch.library.opcheck(
        torch.ops.avis.kv_write_,
        (cache, cache.clone(), k.detach()[:, :3], v.detach()[:, :3], torch.tensor([5], dtype=torch.int32)),
    )


def test_double_backward_raises() -> None:
    q, k, v, *_ = make()
    q.requires_grad_()
    (grad,) = torch.autograd.grad(range_attn_paged(q, k, v, PAGES)[0].sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_kv_write_writes_there_and_nowhere_else() -> None:
    k_cache, v_cache = torch.zeros(B, 18, H, D), torch.ones(B, 18, H, D)
    k, v = torch.randn(B, 3, H, D), torch.randn(B, 3, H, D)
    kv_write_(k_cache, v_cache, k, v, 15)
    assert torch.equal(k_cache[:, 15:], k)
    assert torch.equal(v_cache[:, 15:], v)
    assert not k_cache[:, :15].any()
    assert (v_cache[:, :15] == 1).all()
    with pytest.raises(ShapeError, match="must lie within 18 slots, got 3 and 3 from 16 on"):
        kv_write_(k_cache, v_cache, k, v, 16)
    with pytest.raises(ShapeError, match="k must be"):
        kv_write_(k_cache, v_cache, k.half(), v, 0)


def test_a_backward_through_a_cache_that_was_written_since_is_refused() -> None:
    q, k_cache, v_cache, *_ = make()
    new = torch.randn(B, 3, H, D)
    for caches in ((k_cache, v_cache), (v_cache, k_cache)):  # either alone is enough
        q.requires_grad_()
        out = range_attn_paged(q, k_cache, v_cache, PAGES)[0]
        other = torch.zeros_like(k_cache)
        kv_write_(caches[0], other, new, new, 0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    versions = k_cache._version, v_cache._version
    torch.ops.avis.kv_write_(k_cache, v_cache, new, new, torch.zeros((), dtype=torch.int32))
    assert (k_cache._version, v_cache._version) == tuple(version + 1 for version in versions)


def test_caches_made_in_inference_mode_may_be_written() -> None:
    new = torch.randn(B, 3, H, D)
    with torch.inference_mode():
        caches = torch.zeros(B, 18, H, D), torch.zeros(B, 18, H, D)
        kv_write_(*caches, new, new, 5)
    kept = torch.zeros(B, 18, H, D)
    with torch.inference_mode():
        kv_write_(kept, caches[1], new, new, 5)
    assert kept._version == 1
    assert torch.equal(caches[0][:, 5:8], new)
    assert torch.equal(kept[:, 5:8], new)


@pytest.mark.parametrize("place", range(4), ids=["k_cache", "v_cache", "k", "v"])
def test_kv_write_loses_no_gradient_in_silence(place: int) -> None:
    tensors = [torch.zeros(B, 18, H, D), torch.zeros(B, 18, H, D), torch.ones(B, 3, H, D), torch.ones(B, 3, H, D)]
    tensors[place].requires_grad_()
    name = ("k_cache", "v_cache", "k", "v")[place]
    with pytest.raises(AvisStreamError, match=rf"passes no gradient on, {name} must not require one.*torch\.no_grad"):
        kv_write_(*tensors, 0)
    assert not tensors[0].any()
    with torch.no_grad():
        kv_write_(*tensors, 0)
    assert tensors[0][:, :3].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pages": torch.zeros(2, 2)}, "page_ranges must be int32"),
        ({"pages": [[0, 19]]}, "must lie within"),
        ({"pages": [[5, 3]]}, "must lie within"),
        ({"initial": (torch.zeros(B, NQ, H, D), torch.zeros(B, NQ, H))}, "initial lse must be"),
        ({"initial": (torch.zeros(B, NQ, H, D).double(), torch.zeros(B, H, NQ))}, "initial value must be"),
        ({"bias": torch.zeros(B, 17)}, "key_bias must be"),
    ],
)
def test_door(change: dict[str, Any], message: str) -> None:
    q, k, v, bias, *init = make()
    args = {"q": q, "k": k, "v": v, "pages": PAGES, "bias": bias, "initial": tuple(init)} | change
    with pytest.raises(ShapeError, match=message):
        range_attn_paged(*args.values())
