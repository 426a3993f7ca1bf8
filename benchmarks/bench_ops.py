"""Operators against their rivals, at the shapes of the model; see README.md for the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.ops import (
    AttentionPlan,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_grid_sample,
    range_attn,
    range_attn_paged,
)
from avis_stream.ops.ms_deform_attn import _corners

pytestmark = pytest.mark.slow

# (height, width) of the levels, heads, channels a head
DEFORMABLE = {
    "r50 384x640": ([12, 20, 24, 40, 48, 80], 8, 32),
    "swin-l 448x800": ([14, 25, 28, 50, 56, 100], 8, 32),
    "mini 96x160": ([3, 5, 6, 10, 12, 20], 4, 32),
}


@dataclass
class Deformable:
    value: Tensor
    shapes: list[int]
    loc: Tensor
    weight: Tensor
    grad: Tensor


def deformable(shapes: list[int], heads: int, channels: int) -> Deformable:
    """An encoder's own case: every pixel is a query and samples around itself, 2 pixels away on average."""
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    centres = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[::-1], -1)
        for h, w in pairs
    ]
    ref = torch.cat([c.reshape(-1, 2) for c in centres])
    size = torch.tensor([[w, h] for h, w in pairs], dtype=torch.float32)
    loc = ref[None, :, None, None, None] + 2 * torch.randn(1, len(ref), heads, len(pairs), 4, 2) / size[:, None]
    weight = torch.randn(1, len(ref), heads, 4 * len(pairs)).softmax(-1).view(loc.shape[:-1])
    value = torch.randn(1, len(ref), heads, channels)
    return Deformable(value, shapes, loc, weight, torch.randn(1, len(ref), heads * channels))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DEFORMABLE)
def test_msda_fwd(name: str, threads: int, record: Callable[..., Any]) -> None:
    case = deformable(*DEFORMABLE[name])
    args = case.shapes, case.loc, case.weight
    corners = _corners(case.value, *args)
    queries = case.grad.numel() // case.value.shape[-1]
    rows, weights = corners.row.view(queries, -1), corners.weight.view(queries, -1)
    table = case.value.view(-1, case.value.shape[-1])
    with torch.inference_mode():
        record(
            f"deformable fwd {name}",
            threads,
            {
                "ours": lambda: ms_deform_attn(case.value, *args),
                "grid_sample": lambda: ms_deform_attn_grid_sample(case.value, *args),
                "embedding_bag, indices ready": lambda: F.embedding_bag(
                    rows, table, per_sample_weights=weights, mode="sum"
                ),
            },
            bars={"grid_sample": 40, "embedding_bag, indices ready": 1.4},
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DEFORMABLE)
def test_msda_fwd_bf16(name: str, threads: int, record: Callable[..., Any]) -> None:
    """The value stored in bfloat16; apart from float32, or one would find the other's data in the cache."""
    case = deformable(*DEFORMABLE[name])
    args = case.shapes, case.loc, case.weight
    half = case.value.bfloat16()
    with torch.inference_mode():
        record(
            f"deformable fwd bf16 {name}",
            threads,
            {
                "ours": lambda: ms_deform_attn(half, *args),
                "grid_sample float32": lambda: ms_deform_attn_grid_sample(case.value, *args),
            },
            bars={"grid_sample float32": 70},
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_msda_fused(threads: int, record: Callable[..., Any]) -> None:
    """Offsets and logits as the network gives them, against softmax and locations made by torch first."""
    case = deformable(*DEFORMABLE["r50 384x640"])
    size = torch.tensor(case.shapes, dtype=torch.float32).view(-1, 2).flip(1)
    ref = case.loc.mean((2, 4))
    offsets = (case.loc - ref[:, :, None, :, None]) * size[:, None]
    logits = case.weight.flatten(3).log()

    def apart() -> Tensor:
        loc = ref[:, :, None, :, None] + offsets / size[:, None]
        return ms_deform_attn(case.value, case.shapes, loc, logits.softmax(-1).view(case.weight.shape))

    with torch.inference_mode():
        record(
            "deformable fwd fused r50 384x640",
            threads,
            {"ours": lambda: ms_deform_attn_fused(case.value, case.shapes, ref, offsets, logits), "not fused": apart},
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DEFORMABLE)
def test_msda_bwd(name: str, threads: int, record: Callable[..., Any]) -> None:
    case = deformable(*DEFORMABLE[name])
    leaves = [x.requires_grad_() for x in (case.value, case.loc, case.weight)]
    ours = ms_deform_attn(leaves[0], case.shapes, *leaves[1:])
    literal = ms_deform_attn_grid_sample(leaves[0], case.shapes, *leaves[1:])
    record(
        f"deformable bwd {name}",
        threads,
        {
            "ours": lambda: torch.autograd.grad(ours, leaves, case.grad, retain_graph=True),
            "grid_sample": lambda: torch.autograd.grad(literal, leaves, case.grad, retain_graph=True),
        },
        bars={"grid_sample": 40},
    )


# groups, queries and keys of each, and how many times faster than SDPA it must be
ATTENTION = {
    "micro 100x640": (1, 100, 640, 2.3),
    "(a) encoder 600x600": (2, 600, 600, 2.2),
    "(a) encoder 300x300": (4, 300, 300, 2.2),
    "(a) swin-l encoder 1200x1200": (2, 1200, 1200, 2.2),
    "(b) fusion 6x600": (2, 6, 600, 1.5),
}
# queries, keys a page and pages of each
DECODER = {"(c) decoder 100x3600": (100, 600, 6), "(c) swin-l decoder 200x7200": (200, 1200, 6)}


def attention(
    groups: int, queries: int, keys: int, grad: bool = False
) -> tuple[list[Tensor], AttentionPlan, list[Tensor]]:
    """q, k, v for range_attn, its plan, and the same tensors as SDPA takes them."""
    tensors = [torch.randn(1, groups * n, 8, 32, requires_grad=grad) for n in (queries, keys, keys)]
    plan = AttentionPlan(
        tuple(g * queries for g in range(groups + 1)), tuple(((g * keys, (g + 1) * keys),) for g in range(groups))
    )
    rival = [x.detach().view(groups, -1, 8, 32).transpose(1, 2).requires_grad_(grad) for x in tensors]
    return tensors, plan, rival


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ATTENTION)
def test_range_attn_fwd(name: str, threads: int, record: Callable[..., Any]) -> None:
    groups, queries, keys, bar = ATTENTION[name]
    tensors, plan, rival = attention(groups, queries, keys)
    with torch.inference_mode():
        record(
            f"range attention fwd {name}",
            threads,
            {
                "ours": lambda: range_attn(*tensors, plan.q_starts, plan.k_ranges),
                "sdpa": lambda: F.scaled_dot_product_attention(*rival),
            },
            flops=4.0 * groups * queries * keys * 8 * 32,
            bars={"sdpa": bar},
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_range_attn_bf16(threads: int, record: Callable[..., Any]) -> None:
    tensors, plan, rival = attention(2, 600, 600)
    halves, rival_halves = [x.bfloat16() for x in tensors], [x.bfloat16() for x in rival]
    with torch.inference_mode():
        record(
            "range attention fwd bf16 (a) encoder 600x600",
            threads,
            {
                "ours": lambda: range_attn(*halves, plan.q_starts, plan.k_ranges),
                "sdpa bf16": lambda: F.scaled_dot_product_attention(*rival_halves),
                "sdpa float32": lambda: F.scaled_dot_product_attention(*rival),
            },
            flops=4.0 * 2 * 600 * 600 * 8 * 32,
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DECODER)
def test_range_attn_paged(name: str, threads: int, record: Callable[..., Any]) -> None:
    """A stream's decoder: pages merged in order onto what the sinks hold, each page's own answer kept as well."""
    queries, page, pages = DECODER[name]
    tensors, _, rival = attention(1, queries, page * pages)
    initial = torch.randn(1, queries, 8, 32), torch.randn(1, 8, queries)
    table = torch.tensor([[p * page, (p + 1) * page] for p in range(pages)], dtype=torch.int32)
    with torch.inference_mode():
        record(
            f"range attention fwd {name}, {pages} pages",
            threads,
            {
                "ours": lambda: range_attn_paged(*tensors, table, None, initial),
                "sdpa, no pages and no sinks": lambda: F.scaled_dot_product_attention(*rival),
            },
            flops=4.0 * queries * page * pages * 8 * 32,
            bars={"sdpa, no pages and no sinks": 2.3},
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_range_attn_fwd_bwd(threads: int, record: Callable[..., Any]) -> None:
    """Ten windows of six frames, against SDPA with the additive mask that the official code builds (not counted).

    As with shifted windows, where the last one holds frames of both ends that must not see each other.
    """
    groups, tokens = 10, 600
    tensors, _, rival = attention(groups, tokens, tokens, grad=True)
    starts = [*range(0, groups * tokens, tokens), (2 * groups - 1) * tokens // 2, groups * tokens]
    plan = AttentionPlan(tuple(starts), tuple((pair,) for pair in pairwise(starts)))
    mask = torch.zeros(groups, 8, tokens, tokens)
    mask[-1, :, : tokens // 2, tokens // 2 :] = mask[-1, :, tokens // 2 :, : tokens // 2] = -1000.0
    grad = torch.randn_like(tensors[0])
    rival_grad = grad.view(groups, -1, 8, 32).transpose(1, 2)
    record(
        "range attention fwd+bwd 10 windows of 600",
        threads,
        {
            "ours": lambda: torch.autograd.grad(range_attn(*tensors, plan.q_starts, plan.k_ranges), tensors, grad),
            "sdpa": lambda: torch.autograd.grad(F.scaled_dot_product_attention(*rival), rival, rival_grad),
            "sdpa with mask": lambda: torch.autograd.grad(
                F.scaled_dot_product_attention(*rival, attn_mask=mask), rival, rival_grad
            ),
        },
        rounds=10,
        flops=14.0 * groups * tokens * tokens * 8 * 32,
        bars={"sdpa with mask": 1.8},
    )


def hundred(call: Callable[[], Any]) -> Callable[[], None]:
    """One call is too short for the clock."""

    def run() -> None:
        for _ in range(100):
            call()

    return run


@torch.inference_mode()
def test_overhead_of_deformable_attention(record: Callable[..., Any]) -> None:
    """Checks, dispatch and allocation: what a call costs beyond its arithmetic."""
    value, loc, weight = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
    record(
        "100 tiny calls: deformable attention",
        1,
        {
            "ours": hundred(lambda: ms_deform_attn(value, [1, 1], loc, weight)),
            "the operator alone": hundred(lambda: torch.ops.avis.ms_deform_attn(value, [1, 1], loc, weight)),
            "a torch.add": hundred(lambda: torch.add(value, value)),
        },
    )


@torch.inference_mode()
def test_overhead_of_range_attention(record: Callable[..., Any]) -> None:
    x = torch.zeros(1, 1, 1, 8)
    record(
        "100 tiny calls: range attention",
        1,
        {
            "ours": hundred(lambda: range_attn(x, x, x, [0, 1], [0, 1])),
            "the operator alone": hundred(lambda: torch.ops.avis.range_attn(x, x, x, [0, 1], [0, 1], None, 1.0)),
            "a torch.add": hundred(lambda: torch.add(x, x)),
        },
    )
