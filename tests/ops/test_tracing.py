"""Every public operator inside a graph: compiled without a break, exported, and under autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.operator_cases import fused_arguments, make_case, paged_arguments
from torch import Tensor, nn

from avis_stream.ops import kv_write_, ms_deform_attn, ms_deform_attn_fused, range_attn, range_attn_paged

Outputs = tuple[Tensor, ...]


class Block(nn.Module):
    """An operator between two others, so that there is a graph to be cut."""

    def __init__(self, run: Callable[..., Outputs]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *inputs: Tensor) -> Outputs:
        first, *rest = inputs
        return tuple(2 * x for x in self.run(first + 1, *rest))


def msda() -> tuple[Block, Outputs]:
    case = make_case()
    inputs = case.value, case.loc, case.weight
    return Block(lambda value, loc, weight: (ms_deform_attn(value, case.shapes, loc, weight),)), inputs


def msda_fused() -> tuple[Block, Outputs]:
    value, shapes, *rest = fused_arguments()
    return Block(lambda value, *rest: (ms_deform_attn_fused(value, shapes, *rest),)), (value, *rest)


def ranged() -> tuple[Block, Outputs]:
    q, k, v, *_ = paged_arguments(torch.float32, 32, initial=False)
    return Block(lambda q, k, v: (range_attn(q, k, v, [0, 20, 50], [0, 60, 70, 130]),)), (q, k, v)


def paged() -> tuple[Block, Outputs]:
    q, k, v, pages, bias, init_out, init_lse, _ = paged_arguments(torch.float32, 32, initial=True)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, init_out: Tensor, init_lse: Tensor) -> Outputs:
        return range_attn_paged(q, k, v, pages, bias, (init_out, init_lse))

    return Block(run), (q, k, v, bias, init_out, init_lse)


def written() -> tuple[Block, Outputs]:
    k_cache, v_cache = torch.randn(2, 1, 12, 2, 8)
    k, v = torch.randn(2, 1, 5, 2, 8)

    def run(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> Outputs:
        v_cache = v_cache.clone()
        kv_write_(k_cache, v_cache, k, v, 4)
        return k_cache, v_cache

    return Block(run), (k_cache, v_cache, k, v)


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    """Every case compiles the same code object, which has a limit."""
    torch.compiler.reset()


CASES = {
    "ms_deform_attn": msda,
    "ms_deform_attn_fused": msda_fused,
    "range_attn": ranged,
    "range_attn_paged": paged,
    "kv_write_": written,
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_and_exported(name: str) -> None:
    block, inputs = CASES[name]()
    wanted = block(*inputs)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")(*inputs)
    exported = torch.export.export(block, inputs)
    assert any(f"avis.{name}" in str(node.target) for node in exported.graph.nodes)
    for got in (compiled, exported.module()(*inputs)):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "kv_write_"])
def test_compiled_with_gradients(name: str) -> None:
    block, inputs = CASES[name]()
    leaves = [x.clone().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(block(*leaves)[0].square().sum(), leaves)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves)[0].square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_autocast_of_pages() -> None:
    """Queries and keys in half precision; sums, sinks and the pages' own answers stay wide."""
    block, inputs = paged()
    wanted = block(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out, *wide = block(*inputs)
    assert out.dtype == torch.bfloat16
    assert {x.dtype for x in wide} == {torch.float32}
    torch.testing.assert_close(out.float(), wanted[0], rtol=0.05, atol=0.05)
