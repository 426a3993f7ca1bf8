from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_cases import MsdaCase, make_case, relative_error
from torch import Tensor

from avis_stream.errors import ShapeError
from avis_stream.ops import ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_grid_sample
from avis_stream.ops._library import has_kernel
from avis_stream.ops.ms_deform_attn import _corners, backward_reference, reference

# `native` goes through the dispatcher, which runs the reference too where nothing is compiled.
Forward = Callable[..., Tensor]
FORWARD = {"native": torch.ops.avis.ms_deform_attn, "reference": reference}
BACKWARD = {"native": torch.ops.avis.ms_deform_attn_backward, "reference": backward_reference}
BOTH = pytest.mark.parametrize("kind", ["native", "reference"])

SHAPES = {
    "model": {"m": 8, "d": 32, "p": 4, "q": 45, "shapes": (2, 3, 4, 6, 8, 12)},
    "one level": {"shapes": (7, 5), "p": 1},
    "one pixel": {"shapes": (1, 1), "p": 3},
    "thin levels": {"shapes": (1, 17, 9, 1)},
    "five levels": {"shapes": (1, 1, 2, 3, 5, 4, 2, 2, 7, 3), "p": 2},
    "eight points": {"p": 8},
    "D=4": {"d": 4},
    "D=5": {"d": 5},
    "D=8": {"d": 8},
    "D=16": {"d": 16},
    "D=64": {"d": 64},
    "D=40": {"d": 40},
    "one image": {"n": 1},
    "three images": {"n": 3},
    "no image": {"n": 0},
    "no query": {"q": 0},
    "one query": {"q": 1, "n": 1, "m": 1},
    "many queries": {"q": 333, "m": 1},
}


def expected(case: MsdaCase) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients of the literal form in float64."""
    value, shapes, loc, weight = case.leaves(torch.float64)
    out = ms_deform_attn_grid_sample(value, shapes, loc, weight)
    return out.detach(), list(torch.autograd.grad(out, (value, loc, weight), case.grad.double()))


@BOTH
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_equals_grid_sample(kind: str, sizes: dict[str, Any]) -> None:
    case = make_case(**sizes)
    if case.value.numel() == 0 or case.loc.numel() == 0:  # grid_sample refuses these
        out = FORWARD[kind](*case.args())
        assert out.shape == case.grad.shape
        assert not out.any()
        grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
        assert [g.shape for g in grads] == [case.value.shape, case.loc.shape, case.weight.shape]
        assert not any(g.any() for g in grads)
        return
    out, grads = expected(case)
    assert relative_error(FORWARD[kind](*case.args()), out) < 2e-6
    for name, actual, want in zip(
        ["value", "loc", "weight"], BACKWARD[kind](case.grad, *case.args(), [True] * 3), grads, strict=True
    ):
        assert relative_error(actual, want) < 5e-6, name


@pytest.mark.parametrize("case", ["tiny", "real_head", "odd_d", "one_level", "wide", "borders"])
def test_equals_recorded_numbers(golden_msda: dict[str, Tensor], case: str) -> None:
    def read(name: str) -> Tensor:
        return golden_msda[f"{case}.{name}"]

    leaves = [read(name).clone().requires_grad_() for name in ("value", "sampling_locations", "attention_weights")]
    out = ms_deform_attn(leaves[0], read("spatial_shapes"), leaves[1], leaves[2])
    torch.testing.assert_close(out, read("output"), atol=1e-5, rtol=1e-5)
    if case == "borders":  # recorded without gradients: they jump exactly where its points are
        return
    grads = torch.autograd.grad(out, leaves, read("grad_output"))
    for name, grad in zip(("value", "sampling_locations", "attention_weights"), grads, strict=True):
        torch.testing.assert_close(grad, read(f"grad_{name}"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_equals_recorded_module(golden_msda: dict[str, Tensor], fused: bool) -> None:
    """The whole official module: projections around the operator."""
    g = {key.removeprefix("module."): x for key, x in golden_msda.items() if key.startswith("module.")}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, g[f"param.{name}.weight"], g[f"param.{name}.bias"])

    n, q, _ = g["query"].shape
    shapes = g["spatial_shapes"].flatten().tolist()
    value = linear(g["input_flatten"], "value_proj").view(n, -1, 4, 8)
    offsets = linear(g["query"], "sampling_offsets").view(n, q, 4, 3, 4, 2)
    logits = linear(g["query"], "attention_weights").view(n, q, 4, 12)
    ref = g["reference_points"]
    if fused:
        out = ms_deform_attn_fused(value, shapes, ref, offsets, logits)
    else:
        loc = ref[:, :, None, :, None] + offsets / g["spatial_shapes"].flip(-1)[:, None]
        out = ms_deform_attn(value, shapes, loc, logits.softmax(-1).view(n, q, 4, 3, 4))
    torch.testing.assert_close(linear(out, "output_proj"), g["output"], atol=1e-5, rtol=1e-5)


# --- borders and numbers that are none --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("height", [1, 3, 4])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_borders(kind: str, height: int, width: int) -> None:
    """Points exactly on pixels, edges and the last positions that count, forward and backward.

    In float64 `grid_sample` has the same right-hand derivative at pixels, except on the outermost ones.
    """
    xs = torch.tensor([-0.5, 0.0, 0.5, 0.5 / width, 1 - 0.5 / width, 1.0, 1 + 0.5 / width, -0.5 / width, 2.0])
    ys = torch.tensor([-0.5, 0.0, 0.5, 0.5 / height, 1 - 0.5 / height, 1.0, 1 + 0.5 / height, -0.5 / height, 2.0])
    loc = torch.cartesian_prod(xs, ys).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, height * width, 1, 8)
    weight = torch.rand(loc.shape[:-1])
    case = MsdaCase(value, [height, width], loc, weight, torch.randn(1, loc.shape[1], 8))
    out, (grad_value, _, grad_weight) = expected(case)
    assert relative_error(FORWARD[kind](*case.args()), out) < 1e-5
    grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
    assert relative_error(grads[0], grad_value) < 1e-5
    assert relative_error(grads[2], grad_weight) < 1e-5


@BOTH
def test_gradient_at_a_pixel_is_that_of_the_right_hand_cell(kind: str) -> None:
    value = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1)  # one row: slopes 1, 2, 4, and -8 into the border
    at_pixels = (torch.arange(4) + 0.5) / 4
    loc = torch.stack((at_pixels, torch.full((4,), 0.5)), -1).view(1, 4, 1, 1, 1, 2)
    grad = torch.ones(1, 4, 1)
    _, grad_loc, _ = BACKWARD[kind](grad, value, [1, 4], loc, torch.ones(1, 4, 1, 1, 1), [True] * 3)
    assert grad_loc[..., 0].flatten().tolist() == [4.0, 8.0, 16.0, -32.0]  # times the width


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 3e9])
@pytest.mark.parametrize("axis", [0, 1])
def test_points_without_a_place_are_skipped(kind: str, bad: float, axis: int) -> None:
    case = make_case(q=20)
    case.loc[:, ::3, :, :, 1, axis] = bad
    case.weight[:, ::3, :, :, 1] = float("nan")  # not even looked at
    clean = make_case(q=20)
    clean.value, clean.loc, clean.weight = case.value, case.loc.clone(), case.weight.clone()
    clean.loc[:, ::3, :, :, 1] = 0.5
    clean.weight[:, ::3, :, :, 1] = 0
    torch.testing.assert_close(FORWARD[kind](*case.args()), FORWARD[kind](*clean.args()), rtol=1e-6, atol=1e-6)
    grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
    want = BACKWARD[kind](case.grad, *clean.args(), [True] * 3)
    torch.testing.assert_close(grads[0], want[0], rtol=1e-6, atol=1e-6)
    for grad, other in zip(grads[1:], want[1:], strict=True):
        assert not grad[:, ::3, :, :, 1].any(), "a skipped point has no gradient"
        other[:, ::3, :, :, 1] = 0
        torch.testing.assert_close(grad, other, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_values_outside_the_support_do_not_leak(kind: str, poison: float) -> None:
    """A non-finite value is felt only by points that touch it, and by no fully skipped one."""
    case = make_case(n=1, shapes=(6, 6), q=300, m=1, p=1, spread=0.8)
    clean = FORWARD[kind](*case.args())
    clean_grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
    case.value[0, 0] = poison  # pixel (0, 0)
    pixel = case.loc[0, :, 0, 0, 0] * 6 - 0.5
    touched = ((pixel > -1) & (pixel < 1)).all(-1)
    assert 0 < touched.sum() < len(touched)
    out = FORWARD[kind](*case.args())
    assert torch.equal(out[0, ~touched], clean[0, ~touched])
    assert not torch.isfinite(out[0, touched]).any()
    grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
    torch.testing.assert_close(grads[0], clean_grads[0])
    for grad, other in zip(grads[1:], clean_grads[1:], strict=True):
        assert torch.equal(grad[0, ~touched], other[0, ~touched])


@BOTH
def test_everything_outside_gives_zero(kind: str) -> None:
    case = make_case()
    case.loc += 5
    assert not FORWARD[kind](*case.args()).any()
    assert not any(grad.any() for grad in BACKWARD[kind](case.grad, *case.args(), [True] * 3))


# --- layouts, types, masks --------------------------------------------------------------------------------------------


@BOTH
def test_any_layout(kind: str) -> None:
    """Views of a projection's output, head-major memory, gaps between elements, expanded axes."""
    # PyTorch's own elementwise kernels round differently where memory is not contiguous; ours may not.
    tolerance = 0 if kind == "native" and has_kernel("ms_deform_attn", "cpu") else 2e-6
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    case = make_case(n=2, m=3, d=32)
    out = FORWARD[kind](*case.args())
    grads = BACKWARD[kind](case.grad, *case.args(), [True] * 3)

    def strided(x: Tensor) -> list[Tensor]:
        wide = F.pad(x, (3, 5))[..., 3 : 3 + x.shape[-1]]
        head_major = x.transpose(1, 2).contiguous().transpose(1, 2)
        every_other = torch.stack((x, x), -1)[..., 0]
        return [wide, head_major, every_other]

    for layout in range(3):
        value, loc, weight = (strided(x)[layout] for x in (case.value, case.loc, case.weight))
        close(FORWARD[kind](value, case.shapes, loc, weight), out)
        again = BACKWARD[kind](strided(case.grad)[layout % 3], value, case.shapes, loc, weight, [True] * 3)
        close(again, grads)
    expanded = case.value[:1].expand(2, -1, -1, -1)
    close(FORWARD[kind](expanded, *case.args()[1:])[0], out[0])
    ones = torch.ones(()).expand(case.grad.shape)  # what .sum().backward() hands over
    close(BACKWARD[kind](ones, *case.args(), [True] * 3), BACKWARD[kind](ones.contiguous(), *case.args(), [True] * 3))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", ["same", "float32"])
@pytest.mark.parametrize("d", [5, 8, 32])
def test_half_storage(kind: str, dtype: torch.dtype, weight_dtype: str, d: int) -> None:
    """Only stored in half: against float32 on the rounded inputs, the result differs by its own rounding alone."""
    case = make_case(d=d)
    value = case.value.to(dtype)
    weight = case.weight.to(dtype) if weight_dtype == "same" else case.weight
    grad = case.grad.to(dtype)
    rounded = MsdaCase(value.float(), case.shapes, case.loc, weight.float(), grad.float())
    want, want_grads = expected(rounded)
    out = FORWARD[kind](value, case.shapes, case.loc, weight)
    assert out.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(out.double(), want, rtol=1.01 * half_ulp, atol=2e-5)
    grads = BACKWARD[kind](grad, value, case.shapes, case.loc, weight, [True] * 3)
    assert [g.dtype for g in grads] == [dtype, torch.float32, weight.dtype]
    for got, exact in zip(grads, want_grads, strict=True):
        ulp = 1e-5 if got.dtype == torch.float32 else 1.01 * half_ulp
        torch.testing.assert_close(got.double(), exact, rtol=ulp, atol=2e-5 * max(1, exact.abs().max().item()))


@BOTH
@pytest.mark.parametrize("mask", itertools.product([False, True], repeat=3))
def test_backward_mask(kind: str, mask: tuple[bool, ...]) -> None:
    case = make_case()
    full = BACKWARD[kind](case.grad, *case.args(), [True] * 3)
    part = BACKWARD[kind](case.grad, *case.args(), list(mask))
    for wanted, a, b in zip(mask, part, full, strict=True):
        assert torch.equal(a, b) if wanted else a.numel() == 0


@BOTH
def test_threads_do_not_change_a_bit(kind: str) -> None:
    case = make_case(n=2, shapes=(4, 5, 8, 10), m=4, q=300)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append([FORWARD[kind](*case.args()), *BACKWARD[kind](case.grad, *case.args(), [True] * 3)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("tokens", "queries", "wanted"),
    [(4, 2**29 - 1, torch.int32), (4, 2**29, torch.int64), (2**31, 1, torch.int64)],
)
def test_rows_and_corners_are_numbered_by_integers_that_are_large_enough(
    tokens: int, queries: int, wanted: torch.dtype
) -> None:
    """Without memory: only how the reference numbers them. Above 2**31 corners int32 numbers ran over."""
    value = torch.empty(1, tokens, 1, 1, device="meta")
    loc, weight = (torch.empty(1, queries, 1, 1, 1, *last, device="meta") for last in ((2,), ()))
    assert _corners(value, [tokens // 2, 2], loc, weight).row.dtype == wanted


# --- autograd, tracing, autocast --------------------------------------------------------------------------------------


def test_gradcheck() -> None:
    case = make_case(n=1, shapes=(3, 4, 2, 2), m=2, d=3, q=3, p=2)
    assert torch.autograd.gradcheck(torch.ops.avis.ms_deform_attn, case.leaves(torch.float64))


@pytest.mark.parametrize("requires", list(itertools.product([False, True], repeat=3))[1:])
def test_gradients_only_where_asked(requires: tuple[bool, ...]) -> None:
    case = make_case()
    value, shapes, loc, weight = case.args()
    leaves = [x.clone().requires_grad_(r) for x, r in zip((value, loc, weight), requires, strict=True)]
    ms_deform_attn(leaves[0], shapes, leaves[1], leaves[2]).backward(case.grad)
    _, want = expected(case)
    for leaf, r, exact in zip(leaves, requires, want, strict=True):
        assert (leaf.grad is not None) == r
        if r:
            assert relative_error(leaf.grad, exact) < 5e-6


def test_double_backward_raises() -> None:
    leaves = make_case().leaves()
    (grad,) = torch.autograd.grad(ms_deform_attn(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    case = make_case()
    value, shapes, loc, weight = case.leaves()
    value = value.detach().to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.avis.ms_deform_attn, (value, shapes, loc, weight))
    args = (
        case.grad.to(dtype),
        *(x.detach() for x in (value,)),
        shapes,
        loc.detach(),
        weight.detach(),
        [True, False, True],
    )
    torch.library.opcheck(torch.ops.avis.ms_deform_attn_backward, args)


def test_autocast_keeps_coordinates_in_float32() -> None:
    value, shapes, loc, weight = make_case().args()
    with torch.autocast("cpu", torch.bfloat16):
        out = ms_deform_attn(value, shapes, loc, weight)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ms_deform_attn(value.bfloat16(), shapes, loc, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert ms_deform_attn(value.double(), shapes, loc.double(), weight.double()).dtype == torch.float64


def test_spatial_shapes_in_any_form() -> None:
    value, shapes, loc, weight = make_case().args()
    want = ms_deform_attn(value, shapes, loc, weight)
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    for form in (tuple(shapes), pairs, torch.tensor(pairs), torch.tensor(shapes), [list(p) for p in pairs]):
        assert torch.equal(ms_deform_attn(value, form, loc, weight), want)


def test_half_locations_are_widened() -> None:
    value, shapes, loc, weight = make_case().args()
    loc = loc.half()
    assert torch.equal(ms_deform_attn(value, shapes, loc, weight), ms_deform_attn(value, shapes, loc.float(), weight))


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [3, 5, 6]}, r"spatial_shapes must be \[H0, W0"),
        ({"shapes": []}, r"spatial_shapes must be \[H0, W0"),
        ({"shapes": [3, 5, 6, 4, 0, 1]}, "spatial_shapes must be at least 1 everywhere"),
        ({"shapes": [(1 << 62) + 9, 4, 1, 1, 1, 3]}, r"value must be \[N, S="),  # modulo 2^64 it is as it should be
        ({"shapes": [3, 5, 6, 4, 1, 2]}, r"value must be \[N, S=41, M, D\].* got \[2, 40, 2, 32\] float32"),
        ({"value": torch.zeros(2, 40, 64)}, "value must be"),
        ({"value": torch.zeros(2, 40, 2, 32, dtype=torch.int32)}, "value must be float32"),
        ({"loc": torch.zeros(2, 13, 2, 3, 4, 3)}, r"sampling_locations must be \[N=2, Q, M=2, L=3, P, 2\]"),
        ({"loc": torch.zeros(2, 13, 2, 2, 4, 2)}, "sampling_locations must be"),
        ({"loc": torch.zeros(2, 13, 2, 3, 4, 2, dtype=torch.float64)}, "sampling_locations must be torch.float32"),
        ({"weight": torch.zeros(2, 13, 2, 12)}, r"attention_weights must be \[N, Q, M, L, P\] = \[2, 13, 2, 3, 4\]"),
        ({"weight": torch.zeros(2, 13, 2, 3, 4).double()}, "attention_weights must be torch.float32"),
        ({"value": torch.zeros(2, 40, 2, 32, device="meta")}, "sampling_locations is on cpu, value on meta"),
    ],
)
def test_door(change: dict[str, Any], message: str) -> None:
    case = make_case()
    args = {"value": case.value, "shapes": case.shapes, "loc": case.loc, "weight": case.weight} | change
    with pytest.raises(ShapeError, match=message):
        ms_deform_attn(*args.values())


@pytest.mark.parametrize(
    "args",
    [
        lambda c: (c.value, [3, 5, 6, 4, 1, 2], c.loc, c.weight),
        lambda c: (c.value, c.shapes[:4], c.loc, c.weight),
        lambda c: (c.value, [], c.loc, c.weight),
        lambda c: (c.value[0], c.shapes, c.loc, c.weight),
        lambda c: (c.value, c.shapes, c.loc[:1], c.weight),
        lambda c: (c.value, c.shapes, c.loc, c.weight[:, :-1]),
        lambda c: (c.value, c.shapes, c.loc.double(), c.weight),
        lambda c: (c.value.int(), c.shapes, c.loc, c.weight),
    ],
)
def test_door_of_the_operator_itself(args: Callable[[MsdaCase], tuple[Any, ...]]) -> None:
    """Whoever calls torch.ops directly is stopped too, by the reference or by C++."""
    case = make_case()
    with pytest.raises((ShapeError, RuntimeError), match="must"):
        torch.ops.avis.ms_deform_attn(*args(case))
    with pytest.raises((ShapeError, RuntimeError), match="must"):
        torch.ops.avis.ms_deform_attn_backward(case.grad, *args(case), [True] * 3)
