from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from operator_cases import make_case, relative_error
from torch import Tensor

from avis_stream.errors import ShapeError
from avis_stream.ops import ms_deform_attn_fused, ms_deform_attn_grid_sample
from avis_stream.ops.ms_deform_attn_fused import backward_reference, reference

FORWARD = {"native": torch.ops.avis.ms_deform_attn_fused, "reference": reference}
BACKWARD = {"native": torch.ops.avis.ms_deform_attn_fused_backward, "reference": backward_reference}
BOTH = pytest.mark.parametrize("kind", ["native", "reference"])


def make_fused(**sizes: Any) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments of the fused operator whose points are those of `make_case`, and a gradient for its result."""
    case = make_case(**sizes)
    pairs = torch.tensor(case.shapes).view(-1, 2).flip(-1)[:, None]
    ref = torch.rand(case.loc.shape[0], case.loc.shape[1], len(pairs), 2)
    offsets = (case.loc - ref[:, :, None, :, None]) * pairs
    return (
        case.value,
        case.shapes,
        ref,
        offsets,
        3 * torch.randn(*offsets.shape[:3], offsets[0, 0, 0, ..., 0].numel()),
    ), case.grad


def wide(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double().requires_grad_() if isinstance(x, Tensor) else x for x in args)


def literal(value: Tensor, shapes: list[int], ref: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    pairs = torch.tensor(shapes).view(-1, 2).flip(-1)[:, None]
    loc = ref[:, :, None, :, None] + offsets / pairs
    return ms_deform_attn_grid_sample(value, shapes, loc, logits.softmax(-1).view(loc.shape[:-1]))


@BOTH
@pytest.mark.parametrize(
    "sizes",
    [{}, {"m": 8, "q": 45}, {"d": 5}, {"d": 16, "p": 2}, {"p": 8}, {"shapes": (4, 4), "p": 1}, {"q": 1}],
    ids=str,
)
def test_equals_softmax_and_grid_sample(kind: str, sizes: dict[str, Any]) -> None:
    args, grad = make_fused(**sizes)
    leaves = wide(args)
    want = literal(*leaves)
    assert relative_error(FORWARD[kind](*args), want) < 3e-6
    wants = torch.autograd.grad(want, [leaves[i] for i in (0, 2, 3, 4)], grad.double())
    gots = BACKWARD[kind](grad, *args, [True] * 4)
    for name, got, exact in zip(["value", "ref", "offsets", "logits"], gots, wants, strict=True):
        assert got.shape == exact.shape
        assert relative_error(got, exact) < 1e-5, name


@BOTH
@pytest.mark.parametrize("mask", itertools.product([False, True], repeat=4))
def test_backward_mask(kind: str, mask: tuple[bool, ...]) -> None:
    args, grad = make_fused()
    full = BACKWARD[kind](grad, *args, [True] * 4)
    for wanted, a, b in zip(mask, BACKWARD[kind](grad, *args, list(mask)), full, strict=True):
        assert torch.equal(a, b) if wanted else a.numel() == 0


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_storage(kind: str, dtype: torch.dtype) -> None:
    (value, shapes, ref, offsets, logits), grad = make_fused()
    value, logits, grad = value.to(dtype), logits.to(dtype), grad.to(dtype)
    leaves = wide((value, shapes, ref, offsets, logits))
    want = literal(*leaves)
    half_ulp = 1.01 * torch.finfo(dtype).eps / 2
    torch.testing.assert_close(
        FORWARD[kind](value, shapes, ref, offsets, logits).double(), want, rtol=half_ulp, atol=2e-5
    )
    wants = torch.autograd.grad(want, [leaves[i] for i in (0, 2, 3, 4)], grad.double())
    gots = BACKWARD[kind](grad, value, shapes, ref, offsets, logits, [True] * 4)
    assert [g.dtype for g in gots] == [dtype, torch.float32, torch.float32, dtype]
    for got, exact in zip(gots, wants, strict=True):
        rtol = half_ulp if got.dtype == dtype else 1e-5
        torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=2e-5 * max(1, exact.abs().max().item()))


def test_gradcheck() -> None:
    args, _ = make_fused(n=1, shapes=(3, 4, 2, 2), m=2, d=3, q=3, p=2)
    assert torch.autograd.gradcheck(torch.ops.avis.ms_deform_attn_fused, wide(args))


def test_opcheck() -> None:
    args, grad = make_fused()
    leaves = tuple(x.requires_grad_() if isinstance(x, Tensor) else x for x in args)
    torch.library.opcheck(torch.ops.avis.ms_deform_attn_fused, leaves)
    plain = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    torch.library.opcheck(torch.ops.avis.ms_deform_attn_fused_backward, (grad, *plain, [True, False, True, True]))


def test_double_backward_raises() -> None:
    (value, *rest), _ = make_fused()
    (grad,) = torch.autograd.grad(ms_deform_attn_fused(value.requires_grad_(), *rest).sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad.sum().backward()


def test_autocast() -> None:
    (value, shapes, ref, offsets, logits), _ = make_fused()
    with torch.autocast("cpu", torch.bfloat16):
        out = ms_deform_attn_fused(value, shapes, ref, offsets.bfloat16(), logits.bfloat16())
    assert torch.equal(
        out, ms_deform_attn_fused(value.bfloat16(), shapes, ref, offsets.bfloat16().float(), logits.bfloat16())
    )


def test_logits_by_level_and_point() -> None:
    (value, shapes, ref, offsets, logits), _ = make_fused()
    by_level = logits.view(offsets.shape[:-1])
    assert torch.equal(
        ms_deform_attn_fused(value, shapes, ref, offsets, by_level),
        ms_deform_attn_fused(value, shapes, ref, offsets, logits),
    )


@pytest.mark.parametrize(
    ("at", "wrong", "message"),
    [
        (2, torch.zeros(2, 13, 3, 4), "reference_points must be .* boxes are not taken"),
        (2, torch.zeros(2, 12, 3, 2), "offsets must be"),
        (3, torch.zeros(2, 13, 2, 3, 4, 3), "offsets must be"),
        (4, torch.zeros(2, 13, 2, 11), "logits must be .*L\\*P=12"),
        (3, torch.zeros(2, 13, 2, 3, 4, 2).double(), "offsets must be torch.float32"),
    ],
)
def test_door(at: int, wrong: Tensor, message: str) -> None:
    args = list(make_fused()[0])
    args[at] = wrong
    with pytest.raises(ShapeError, match=message):
        ms_deform_attn_fused(*args)
    with pytest.raises((ShapeError, RuntimeError), match="must"):
        torch.ops.avis.ms_deform_attn_fused(*args)
