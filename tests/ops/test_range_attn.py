from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import relative_error
from torch import Tensor

from avis_stream.errors import ShapeError
from avis_stream.ops import AttentionPlan, dense_mask, range_attn, rolling_plan, window_plan
from avis_stream.ops._library import has_kernel
from avis_stream.ops.range_attn import backward_reference, flat_ints, reference

FORWARD = {"native": torch.ops.avis.range_attn, "reference": reference}
BACKWARD = {"native": torch.ops.avis.range_attn_backward, "reference": backward_reference}
BOTH = pytest.mark.parametrize("kind", ["native", "reference"])

PLANS = {
    "plain windows": window_plan(13, 5, 3, 3),
    "shifted windows": window_plan(13, 5, 3, 3, shifted=True),
    "fusion": window_plan(13, 5, 1, 3, shifted=True),
    "rolling": rolling_plan(9, 3, 2, 2),
    "rolling with sinks": rolling_plan(9, 3, 4, 5, sink_frames=2),
    "global": window_plan(4, 0, 20, 33),
    "long rows": AttentionPlan((0, 7), (((0, 1300),),)),
    "ranges in any order": AttentionPlan((0, 5, 6), (((40, 64), (3, 4), (10, 33)), ((0, 1), (0, 0), (0, 0)))),
    "a group without keys": AttentionPlan((0, 3, 5), (((0, 0),), ((2, 9),))),
    "a group without queries": AttentionPlan((0, 3, 3, 5), (((0, 4),), ((4, 6),), ((2, 9),))),
    "one of each": AttentionPlan((0, 1), (((0, 1),),)),
    "no query": AttentionPlan((0, 0), (((0, 3),),)),
    "no key": AttentionPlan((0, 3), (((0, 0),),)),
    "no group": AttentionPlan((0,), ()),
}


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    plan: AttentionPlan
    bias: Tensor | None
    grad: Tensor
    grad_lse: Tensor

    scale = 0.3

    def args(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        bias = None if self.bias is None else self.bias.to(torch.promote_types(dtype, torch.float32))
        starts, ranges = flat_ints(self.plan.q_starts), flat_ints(self.plan.k_ranges)
        return self.q.to(dtype), self.k.to(dtype), self.v.to(dtype), starts, ranges, bias, self.scale

    def backward_args(self, kind: str, dtype: torch.dtype = torch.float32, lse: bool = True) -> tuple[Any, ...]:
        args = self.args(dtype)
        out = FORWARD[kind](*args)
        return self.grad.to(dtype), self.grad_lse if lse else None, *args[:3], *out, *args[3:]


def make_case(plan: AttentionPlan, b: int = 2, h: int = 2, d: int = 32, bias: str = "none") -> Case:
    keys = max([stop for ranges in plan.k_ranges for _, stop in ranges], default=0)
    queries = plan.q_starts[-1]
    q, k, v = (2 * torch.randn(b, n, h, d) for n in (queries, keys, keys))
    key_bias = torch.randn(b, keys) if bias != "none" else None
    if key_bias is not None and bias == "removed" and keys:
        key_bias[:, torch.rand(keys) < 0.4] = -torch.inf
        key_bias[0, : keys // 2] = -torch.inf  # whole windows without a key
    return Case(q, k, v, plan, key_bias, torch.randn(b, queries, h, d), torch.randn(b, h, queries))


def dense(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition, with a mask, for autograd in float64."""
    visible = dense_mask(plan, k.shape[1])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if bias is not None:
        scores = scores + bias[:, None, None]
        visible = visible & (bias > -torch.inf)[:, None, None]
    else:
        visible = visible.expand(scores.shape)
    visible = visible.expand(scores.shape)
    has_key = visible.any(-1)
    # Rows without a key would be NaN, and their gradients with them: give them a harmless row and cut it off.
    safe = torch.where(visible, scores, -torch.inf)
    safe = torch.where(has_key[..., None], safe, 0)
    probabilities = torch.where(visible, safe.softmax(-1), 0)
    lse = torch.where(has_key, safe.logsumexp(-1) if k.shape[1] else safe.sum(-1), -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, v), lse


def expected(case: Case) -> tuple[Tensor, Tensor, list[Tensor]]:
    q, k, v, _, _, bias, scale = (x.requires_grad_() if isinstance(x, Tensor) else x for x in case.args(torch.float64))
    out, lse = dense(q, k, v, case.plan, bias, scale)
    lse_grad = torch.where(lse == -torch.inf, 0, case.grad_lse.double())
    total = (out * case.grad).sum() + (torch.where(lse == -torch.inf, 0, lse) * lse_grad).sum()
    leaves = [x for x in (q, k, v, bias) if x is not None]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    return (
        out.detach(),
        lse.detach(),
        [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)],
    )


def assert_lse(actual: Tensor, want: Tensor) -> None:
    assert torch.equal(actual == -torch.inf, want == -torch.inf)
    seen = want > -torch.inf
    assert relative_error(actual[seen], want[seen]) < 3e-6


@BOTH
@pytest.mark.parametrize("bias", ["none", "finite", "removed"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_equals_masked_attention(kind: str, bias: str, plan: AttentionPlan) -> None:
    case = make_case(plan, bias=bias)
    out, lse, grads = expected(case)
    got, got_lse = FORWARD[kind](*case.args())
    assert relative_error(got, out) < 5e-6
    assert_lse(got_lse, lse)
    mask = [True, True, True, bias != "none"]
    gots = BACKWARD[kind](*case.backward_args(kind), mask)
    for name, actual, want in zip("qkvb", gots, grads, strict=False):
        assert actual.shape == want.shape
        assert relative_error(actual, torch.where(want.isnan(), 0, want)) < 1e-5, name


@BOTH
@pytest.mark.parametrize("d", [1, 4, 5, 8, 16, 24, 32, 64, 80])
@pytest.mark.parametrize("heads", [1, 3])
def test_sizes(kind: str, d: int, heads: int) -> None:
    case = make_case(window_plan(7, 3, 5, 11, shifted=True), b=1, h=heads, d=d, bias="finite")
    case.q *= d**-0.5
    out, lse, grads = expected(case)
    got, got_lse = FORWARD[kind](*case.args())
    assert relative_error(got, out) < 5e-6
    assert_lse(got_lse, lse)
    for actual, want in zip(BACKWARD[kind](*case.backward_args(kind), [True] * 4), grads, strict=True):
        assert relative_error(actual, want) < 1e-5


@pytest.mark.parametrize("name", ["plain windows", "rolling with sinks", "a group without keys"])
def test_gradcheck(name: str) -> None:
    case = make_case(PLANS[name], b=1, h=1, d=3, bias="finite")
    q, k, v, starts, ranges, bias, scale = case.args(torch.float64)
    leaves = [x[:, :].clone().requires_grad_() for x in (q, k, v, bias)]

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.avis.range_attn(q, k, v, starts, ranges, bias, scale)
        return out, torch.where(lse == -torch.inf, 0, lse)

    assert torch.autograd.gradcheck(call, leaves)


@BOTH
def test_rows_without_keys_give_zero_and_no_gradient(kind: str) -> None:
    case = make_case(PLANS["plain windows"], bias="finite")
    case.bias[:] = -torch.inf
    out, lse = FORWARD[kind](*case.args())
    assert not out.any()
    assert (lse == -torch.inf).all()
    assert not any(g.any() for g in BACKWARD[kind](*case.backward_args(kind), [True] * 4))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nan_in_the_lse_gradient_of_a_row_without_keys_counts_for_nothing(kind: str, dtype: torch.dtype) -> None:
    """`torch.logaddexp` of two such rows sends it."""
    case = make_case(PLANS["shifted windows"], bias="removed")
    args = [x.to(dtype) if isinstance(x, Tensor) else x for x in case.backward_args(kind, dtype)]
    unseen = args[6] == -torch.inf
    assert unseen.any()
    assert not unseen.all()
    args[1] = torch.where(unseen, 0, args[1])
    want = BACKWARD[kind](*args, [True] * 4)
    args[1] = torch.where(unseen, torch.nan, args[1])
    for a, b in zip(BACKWARD[kind](*args, [True] * 4), want, strict=True):
        assert torch.equal(a, b)


@BOTH
def test_large_scores_do_not_overflow(kind: str) -> None:
    case = make_case(PLANS["plain windows"])
    case.q *= 200
    out, lse, _ = expected(case)
    got, got_lse = FORWARD[kind](*case.args())
    assert relative_error(got, out) < 2e-4  # scores of some thousands have an absolute error of some 1e-4
    assert relative_error(got_lse, lse) < 1e-6


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_storage(kind: str, dtype: torch.dtype) -> None:
    case = make_case(PLANS["shifted windows"], bias="finite")
    for name in "qkv":
        setattr(case, name, getattr(case, name).to(dtype).float())
    case.grad = case.grad.to(dtype).float()
    out, lse, grads = expected(case)
    got, got_lse = FORWARD[kind](*case.args(dtype))
    assert (got.dtype, got_lse.dtype) == (dtype, torch.float32)
    half_ulp = 1.01 * torch.finfo(dtype).eps / 2
    torch.testing.assert_close(got.double(), out, rtol=half_ulp, atol=2e-5)
    assert_lse(got_lse, lse)
    gots = BACKWARD[kind](*case.backward_args(kind, dtype), [True] * 4)
    assert [g.dtype for g in gots] == [dtype, dtype, dtype, torch.float32]
    for actual, want in zip(gots, grads, strict=True):
        # The backward starts from the rounded output, so its own error is of the size of that rounding.
        assert relative_error(actual, want) < 8 * half_ulp


@BOTH
@pytest.mark.parametrize("mask", itertools.product([False, True], repeat=4))
def test_backward_mask(kind: str, mask: tuple[bool, ...]) -> None:
    case = make_case(PLANS["rolling with sinks"], bias="finite")
    full = BACKWARD[kind](*case.backward_args(kind), [True] * 4)
    for wanted, a, b in zip(mask, BACKWARD[kind](*case.backward_args(kind), list(mask)), full, strict=True):
        assert torch.equal(a, b) if wanted else a.numel() == 0


@BOTH
def test_lse_gradient_is_optional(kind: str) -> None:
    case = make_case(PLANS["plain windows"])
    without = BACKWARD[kind](*case.backward_args(kind, lse=False), [True] * 4)
    case.grad_lse.zero_()
    for a, b in zip(without, BACKWARD[kind](*case.backward_args(kind), [True] * 4), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@BOTH
def test_layouts(kind: str) -> None:
    """q, k and v as views of one projection's output."""
    plan = PLANS["plain windows"]
    packed = torch.randn(2, 39, 3, 4, 16)
    q, k, v = packed.unbind(2)
    rest = flat_ints(plan.q_starts), flat_ints(plan.k_ranges), None, 0.25
    want = FORWARD[kind](q.contiguous(), k.contiguous(), v.contiguous(), *rest)
    for views in ((q, k, v), tuple(torch.stack((x, x), -1)[..., 0] for x in (q, k, v))):
        for a, b in zip(FORWARD[kind](*views, *rest), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("name", ["shifted windows", "rolling with sinks", "long rows"])
def test_threads_do_not_change_a_bit(kind: str, name: str) -> None:
    case = make_case(PLANS[name], h=4, bias="finite")
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append([*FORWARD[kind](*case.args()), *BACKWARD[kind](*case.backward_args(kind), [True] * 4)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_autograd_and_lse() -> None:
    case = make_case(PLANS["rolling"], bias="finite")
    q, k, v, _, _, bias, scale = (x.requires_grad_() if isinstance(x, Tensor) else x for x in case.args())
    out, lse = range_attn(q, k, v, case.plan.q_starts, case.plan.k_ranges, bias, scale, return_lse=True)
    ((out * case.grad).sum() + (lse * case.grad_lse).sum()).backward()
    _, _, grads = expected(case)
    for leaf, want in zip((q, k, v, bias), grads, strict=True):
        assert relative_error(leaf.grad, want) < 1e-5


def test_without_channels_the_bias_alone_decides() -> None:
    bias = torch.randn(2, 5, requires_grad=True)
    q, k = torch.zeros(2, 3, 1, 0), torch.zeros(2, 5, 1, 0)
    _, lse = range_attn(q, k, k, [0, 3], [[(0, 5)]], bias, scale=1.0, return_lse=True)
    torch.testing.assert_close(lse, bias.logsumexp(-1)[:, None, None].expand(2, 1, 3))
    (grad,) = torch.autograd.grad(lse.sum(), bias)
    torch.testing.assert_close(grad, 3 * bias.softmax(-1))


def test_partial_attentions_merge_by_their_lse() -> None:
    """What the lse is for: two halves of the keys, merged, are the whole."""
    q, k, v = torch.randn(1, 5, 2, 8), torch.randn(1, 12, 2, 8), torch.randn(1, 12, 2, 8)
    parts = [range_attn(q, k, v, [0, 5], [[half]], return_lse=True) for half in ((0, 7), (7, 12))]
    lse = torch.stack([lse for _, lse in parts])
    share = lse.softmax(0).transpose(-1, -2)[..., None]
    merged = sum(share[i] * out for i, (out, _) in enumerate(parts))
    torch.testing.assert_close(merged, range_attn(q, k, v, [0, 5], [[(0, 12)]]))


def test_double_backward_raises() -> None:
    case = make_case(PLANS["rolling"])
    q = case.q.requires_grad_()
    out = range_attn(q, case.k, case.v, case.plan.q_starts, case.plan.k_ranges)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("bias", ["none", "finite"])
def test_opcheck(bias: str) -> None:
    case = make_case(PLANS["rolling with sinks"], bias=bias)
    args = case.args()
    leaves = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in args)
    torch.library.opcheck(torch.ops.avis.range_attn, leaves)
    torch.library.opcheck(
        torch.ops.avis.range_attn_backward, (*case.backward_args("native"), [True, False, True, bias != "none"])
    )


def test_autocast() -> None:
    case = make_case(PLANS["rolling"], bias="finite")
    args = case.q, case.k, case.v, case.plan.q_starts, case.plan.k_ranges, case.bias
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = range_attn(*args, return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    half = [x.bfloat16() for x in args[:3]]
    assert torch.equal(out, range_attn(*half, *args[3:]))


@BOTH
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 3, 0, 4)], ids=["no image", "no head"])
def test_no_scores_at_all(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    args = x, x, x, [0, 3], [0, 3], None, 1.0
    out, lse = FORWARD[kind](*args)
    assert out.shape == x.shape
    assert lse.shape == (shape[0], shape[2], 3)
    for grad in BACKWARD[kind](x, None, *args[:3], out, lse, *args[3:], [True] * 4):
        assert not grad.any()


def test_plans_in_any_form() -> None:
    case = make_case(PLANS["rolling with sinks"])
    starts, ranges = case.plan.q_starts, case.plan.k_ranges
    want = range_attn(case.q, case.k, case.v, starts, ranges)
    for form in (
        (list(starts), [list(map(list, r)) for r in ranges]),
        (torch.tensor(starts), torch.tensor(ranges)),
        (np.array(starts).tolist(), flat_ints(ranges)),
    ):
        assert torch.equal(range_attn(case.q, case.k, case.v, *form), want)


DOOR: list[tuple[dict[str, Any], str]] = [
    ({"q": torch.zeros(2, 4, 8)}, r"q must be a tensor \[B, Nq, H, D\]"),
    ({"k": torch.zeros(2, 6, 3, 8)}, r"k must be \[B=2, Nk, H=2, D=8\]"),
    ({"v": torch.zeros(2, 5, 2, 8)}, r"v must have the shape \[2, 6, 2, 8\] of k"),
    ({"k": torch.zeros(2, 6, 2, 8).half()}, "k must be torch.float32"),
    ({"bias": torch.zeros(2, 5)}, r"key_bias must be torch.float32 \[B=2, Nk=6\]"),
    ({"bias": torch.zeros(2, 6).double()}, "key_bias must be torch.float32"),
    ({"starts": [0, 3]}, "q_starts must begin with 0 and end with Nq=4"),
    ({"starts": [1, 4]}, "q_starts must begin with 0"),
    ({"starts": []}, "q_starts must begin with 0"),
    ({"starts": [0, 5, 4]}, "q_starts must not descend"),
    ({"ranges": [0, 1, 2]}, r"k_ranges must be \[G=2, R, 2\]"),
    ({"ranges": [0, 7, 0, 1]}, r"k_ranges must lie within \[0, Nk=6\], group 0 has \(0, 7\)"),
    ({"ranges": [0, 2, -1, 1]}, "group 1 has"),
    ({"ranges": [0, 2, 4, 3]}, "group 1 has"),
    ({"ranges": [0, 2, 1, 3, 0, 0, 0, 0]}, "must be disjoint, group 0"),
]


@pytest.mark.parametrize(("change", "message"), DOOR, ids=[m for _, m in DOOR])
def test_door(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"q": torch.zeros(2, 4, 2, 8), "k": torch.zeros(2, 6, 2, 8), "v": torch.zeros(2, 6, 2, 8)}
    args = good | {"starts": [0, 2, 4], "ranges": [0, 3, 3, 6], "bias": None} | change
    with pytest.raises(ShapeError, match=message):
        range_attn(*args.values())
    with pytest.raises((ShapeError, RuntimeError), match="must"):
        torch.ops.avis.range_attn(*args.values(), 0.5)


@pytest.mark.parametrize("call", [reference, torch.ops.avis.range_attn])
def test_no_dense_matrix(call: Callable[..., Any]) -> None:
    """30,000 queries in windows of 30: a [Nq, Nk] matrix would be 3.6 GB a head."""
    x = torch.randn(1, 30_000, 1, 4)
    plan = window_plan(1000, 1, 30, 30)
    out, _ = call(x, x, x, list(plan.q_starts), flat_ints(plan.k_ranges), None, 0.5)
    windows = x.view(1000, 30, 4)
    want = (windows @ windows.transpose(1, 2) * 0.5).softmax(-1) @ windows
    torch.testing.assert_close(out.view(1000, 30, 4), want)


@BOTH
def test_nan_stays_in_its_row(kind: str) -> None:
    case = make_case(PLANS["plain windows"])
    want, _ = FORWARD[kind](*case.args())
    case.q[0, 20, 1] = float("nan")
    out, lse = FORWARD[kind](*case.args())
    assert out[0, 20, 1].isnan().all()
    assert lse[0, 1, 20].isnan()
    out[0, 20, 1] = want[0, 20, 1]
    assert torch.equal(out, want)


@BOTH
def test_groups_do_not_touch_each_other(kind: str) -> None:
    """The same window, alone or among others, gives the same bits: what binds the online path to the offline one."""
    plan = window_plan(30, 6, 20, 20)
    case = make_case(plan, b=1, h=4)
    whole, whole_lse = FORWARD[kind](*case.args())
    tolerance = 0.0 if kind == "native" and has_kernel("range_attn", "cpu") else 1e-5
    for tokens, part in plan.split(1):
        q, k, v = (x[:, tokens] for x in (case.q, case.k, case.v))
        out, lse = FORWARD[kind](q, k, v, list(part.q_starts), flat_ints(part.k_ranges), None, case.scale)
        torch.testing.assert_close(out, whole[:, tokens], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse, whole_lse[:, :, tokens], rtol=tolerance, atol=tolerance)
        alone, _ = FORWARD[kind](q[:, 7:8], k, v, [0, 1], flat_ints(part.k_ranges), None, case.scale)
        torch.testing.assert_close(alone, out[:, 7:8], rtol=tolerance, atol=tolerance)
