"""Arguments that take every kernel of libavis_cuda.so through its paths, for whoever runs them: emulator or GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from operator_cases import fused_arguments, make_case, paged_arguments, relative_error
from torch import Tensor

from avis_stream.ops.range_attn import flat_ints
from avis_stream.ops.ranges import rolling_plan

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
Operators = Any
"""Something with the operators as attributes: `torch.ops.avis`, or a `CudaLibrary`."""

Forward = Callable[[Any, list[Any]], Sequence[Tensor]]
"""The forward that backwards start from: everybody's starts with the same numbers, rounded alike."""


def to_device(args: Iterable[Any], device: str) -> list[Any]:
    return [x.to(device) if isinstance(x, Tensor) else x for x in args]


def range_arguments(dtype: torch.dtype, d: int, groups: str) -> list[Any]:
    """Of `range_attn`: a rolling window with sinks whose keys overlap, or more small groups than a GPU has places."""
    if groups == "rolling":
        plan = rolling_plan(9, 3, 7, 11, sink_frames=2)
        starts, key_ranges, keys = list(plan.q_starts), flat_ints(plan.k_ranges), 99
    else:
        keys = 40
        starts, key_ranges = list(range(71)), [n for i in range(70) for n in (i % 30, i % 30 + i % 9)]
    q, k, v = (torch.randn(2, n, 2, d).to(dtype) for n in (starts[-1], keys, keys))
    bias = torch.randn(2, keys)
    bias[:, ::3] = -torch.inf
    return [q, k, v, starts, key_ranges, bias, d**-0.5]


# --- one generator a family of kernels: names of results, and the results ---------------------------------------------


def _deformable(
    run: Operators, dtype: torch.dtype, d: int, p: int, device: str, forward: Forward
) -> Iterator[tuple[str, Tensor]]:
    case = make_case(d=d, m=3, p=p)
    value, shapes, loc, weight = to_device(case.args(), device)
    grad, value = case.grad.to(device, dtype), value.to(dtype)
    yield "out", run.ms_deform_attn(value, shapes, loc, weight)
    for i, g in enumerate(run.ms_deform_attn_backward(grad, value, shapes, loc, weight, [True] * 3)):
        yield f"grad{i}", g
    first, *rest = to_device(fused_arguments(d=d, m=3, p=p), device)
    yield "fused out", run.ms_deform_attn_fused(first.to(dtype), *rest)
    for i, g in enumerate(run.ms_deform_attn_fused_backward(grad, first.to(dtype), *rest, [True] * 4)):
        yield f"fused grad{i}", g


def _ranges(
    run: Operators, dtype: torch.dtype, d: int, groups: str, device: str, forward: Forward
) -> Iterator[tuple[str, Tensor]]:
    host = range_arguments(dtype, d, groups)
    q, k, v, *rest = args = to_device(host, device)
    out, lse = run.range_attn(*args)
    yield "out", out
    yield "lse", lse
    out, lse = to_device(forward(torch.ops.avis.range_attn, host), device)
    grads = to_device([torch.randn(out.shape).to(dtype), torch.randn(lse.shape)], device)
    for i, g in enumerate(run.range_attn_backward(*grads, q, k, v, out, lse, *rest, [True] * 4)):
        yield f"grad{i}", g


def _pages(
    run: Operators, dtype: torch.dtype, d: int, initial: bool, device: str, forward: Forward
) -> Iterator[tuple[str, Tensor]]:
    host = paged_arguments(dtype, d, initial)
    args = to_device(host, device)
    for i, x in enumerate(run.range_attn_paged(*args)):
        yield f"out{i}", x
    outs = forward(torch.ops.avis.range_attn_paged, host)
    grads = to_device([torch.randn(x.shape).to(x.dtype) for x in outs], device)
    mask = [True] * 4 + [initial] * 2
    results = run.range_attn_paged_backward(*grads, *args[:-1], *to_device(outs, device), args[-1], mask)
    for i, g in enumerate(results):
        yield f"grad{i}", g


def _cache(run: Operators, dtype: torch.dtype, d: int, device: str) -> Iterator[tuple[str, Tensor]]:
    caches = [torch.zeros(2, 9, 3, d, dtype=dtype, device=device) for _ in range(2)]
    new = [torch.randn(2, 4, 3, d).to(device, dtype) for _ in range(2)]
    run.kv_write_(*caches, *new, torch.tensor(5, dtype=torch.int32, device=device))
    yield "k", caches[0]
    yield "v", caches[1]


def results(
    run: Operators, device: str = "cpu", few: bool = False, saved: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Everything that the kernels compute, by name, on the CPU; `few`: in float32 with up to 32 channels.

    `saved` keeps what the CPU's own forward gave, or, where `torch.ops.avis` is not the CPU's own, brings it.
    """
    saved = {} if saved is None else saved
    dtypes = DTYPES[:1] if few else DTYPES
    families: list[tuple[str, Callable[..., Iterator[tuple[str, Tensor]]], Sequence[Any], Sequence[Any]]] = [
        ("msda", _deformable, (5, 32) if few else (5, 16, 32, 64), (4, 3)),
        ("range", _ranges, (5, 32) if few else (5, 32, 40, 128), ("rolling", "many")),
        ("paged", _pages, (5, 32) if few else (5, 32, 40, 128), (False, True)),
    ]
    found: dict[str, Tensor] = {}
    for dtype in dtypes:
        for family, compute, channels, variants in families:
            for d in channels:
                for variant in variants:
                    torch.manual_seed(d)
                    case = f"{family} {dtype} D={d} {variant}"

                    def forward(operator: Any, args: list[Any], case: str = case) -> Sequence[Tensor]:
                        if case not in saved:
                            saved[case] = tuple(operator(*args))
                        return saved[case]  # type: ignore[no-any-return]

                    for name, x in compute(run, dtype, d, variant, device, forward):
                        found[f"{case} {name}"] = x.cpu()
    for dtype, d in [(torch.float32, 8), (torch.float32, 5), (torch.bfloat16, 5), (torch.float64, 5)]:
        torch.manual_seed(d)
        for name, x in _cache(run, dtype, d, device):
            found[f"cache {dtype} D={d} {name}"] = x.cpu()
    return found


def assert_agree(others: dict[str, Tensor], mine: dict[str, Tensor]) -> None:
    """Up to the rounding of other orders of sums, and of the halves that results are stored in."""
    assert others.keys() == mine.keys()
    for name, want in mine.items():
        tolerance = 2**-7 if "bfloat16" in name else 2**-10 if "float16" in name else 1e-5
        got = others[name]
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        got, want = got.double(), want.double()
        assert torch.equal(got.isinf(), want.isinf()), name
        finite = ~want.isinf()
        assert relative_error(got[finite], want[finite]) < tolerance, name
