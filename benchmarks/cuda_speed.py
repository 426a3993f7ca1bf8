"""The CUDA kernels against the clock, at the shapes of the model, beside torch's own forms: `make gpu-test`.

Ours and the rivals take turns; a time is the median of CUDA events around a call, inputs in cache as in a model that
has just made them. The device's own copy and matrix product are measured beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from avis_stream.ops.ms_deform_attn import ms_deform_attn_grid_sample

Row = dict[str, Any]
Timed = Callable[[], Any]
Case = tuple[str, dict[str, Timed], float, float]
"""What is timed, the contenders, floating point operations, and bytes that must move at least."""


def _time(run: Timed, device: str) -> float:
    """Seconds of one call."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    run()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / 1000


def take_turns(contenders: dict[str, Timed], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each; one that does not run is left out."""
    able = {}
    for name, run in contenders.items():
        try:
            for _ in range(1 if rounds == 1 else 5):
                run()
            able[name] = run
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(rounds):
        for name, run in able.items():
            samples[name].append(_time(run, device))
    return {name: statistics.median(times) for name, times in samples.items()}


def _bytes(*tensors: torch.Tensor) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors))


def deformable(device: str, dtype: torch.dtype, tiny: bool, run: Any) -> list[Case]:
    """The encoder's own case: every pixel of three levels is a query and looks about 2 pixels around itself."""
    images, shapes, heads = (1, [2, 3, 4, 6], 2) if tiny else (4, [12, 20, 24, 40, 48, 80], 8)
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    centres = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")[::-1], -1)
        for h, w in pairs
    ]
    ref = torch.cat([c.reshape(-1, 2) for c in centres])
    size = torch.tensor([[w, h] for h, w in pairs], dtype=torch.float32)[:, None]
    noise = 2 * torch.randn(images, len(ref), heads, len(pairs), 4, 2) / size
    loc = (ref[None, :, None, None, None] + noise).to(device)
    weight = torch.randn(images, len(ref), heads, len(pairs) * 4, device=device).softmax(-1).view(loc.shape[:-1])
    value = torch.randn(images, len(ref), heads, 32, device=device, dtype=dtype)
    grad = torch.randn(images, len(ref), heads * 32, device=device, dtype=dtype)
    leaves = [x.detach().requires_grad_() for x in (value.float(), loc, weight)]
    literal = ms_deform_attn_grid_sample(leaves[0], shapes, *leaves[1:])
    # Every point reads four rows; what must come from memory at least is each tensor once.
    flops = 2.0 * weight.numel() * 4 * 32
    moved = _bytes(value, loc, weight, grad)
    name = f"{images}x{len(ref)} queries, {str(dtype)[6:]}"
    forward = {
        "ours": lambda: run.ms_deform_attn(value, shapes, loc, weight),
        "grid_sample float32": lambda: ms_deform_attn_grid_sample(value.float(), shapes, loc, weight),
    }
    backward = {
        "ours": lambda: run.ms_deform_attn_backward(grad, value, shapes, loc, weight, [True] * 3),
        "grid_sample float32": lambda: torch.autograd.grad(literal, leaves, grad.float(), retain_graph=True),
    }
    return [
        (f"deformable forward, {name}", forward, flops, moved),
        (f"deformable backward, {name}", backward, 3 * flops, 2 * moved),
    ]


def attention(device: str, dtype: torch.dtype, tiny: bool, run: Any) -> list[Case]:
    """The tracker's shapes: windows, fusion, and a decoder over pages."""
    cases = []
    shapes = [(2, 12, 12)] if tiny else [(10, 600, 600), (10, 300, 300), (10, 6, 600)]
    for groups, queries, keys in shapes:
        q, k, v = (torch.randn(1, groups * n, 8, 32, device=device, dtype=dtype) for n in (queries, keys, keys))
        starts = [g * queries for g in range(groups + 1)]
        ranges = [n for g in range(groups) for n in (g * keys, (g + 1) * keys)]
        rival = [x.view(groups, -1, 8, 32).transpose(1, 2) for x in (q, k, v)]
        flops, moved = (
            4.0 * groups * queries * keys * 256,
            float(sum(x.numel() * x.element_size() for x in (q, q, k, v))),
        )
        name = f"{groups} groups of {queries}x{keys}, {str(dtype)[6:]}"
        grad = torch.randn_like(q)
        out, lse = run.range_attn(q, k, v, starts, ranges, None, 32**-0.5)
        leaves = [x.detach().requires_grad_() for x in rival]
        other = F.scaled_dot_product_attention(*leaves)
        forward: dict[str, Timed] = {
            "ours": lambda q=q, k=k, v=v, s=starts, r=ranges: run.range_attn(q, k, v, s, r, None, 32**-0.5),  # type: ignore[misc]
            "sdpa": lambda rival=rival: F.scaled_dot_product_attention(*rival),  # type: ignore[misc]
        }
        backward: dict[str, Timed] = {
            "ours": lambda a=(grad, None, q, k, v, out, lse, starts, ranges): run.range_attn_backward(  # type: ignore[misc]
                *a, None, 32**-0.5, [True, True, True, False]
            ),
            "sdpa": lambda o=other, x=leaves, g=grad: torch.autograd.grad(  # type: ignore[misc]
                o, x, g.view(o.shape[0], -1, 8, 32).transpose(1, 2), retain_graph=True
            ),
        }
        cases += [
            (f"attention forward, {name}", forward, flops, moved),
            (f"attention backward, {name}", backward, 2.5 * flops, 2 * moved),
        ]
    queries, keys, count = (5, 24, 3) if tiny else (100, 3600, 6)
    q, k, v = (torch.randn(1, n, 8, 32, device=device, dtype=dtype) for n in (queries, keys, keys))
    size = keys // count
    pages = torch.tensor([[i * size, (i + 1) * size] for i in range(count)], dtype=torch.int32, device=device)
    rival = [x.transpose(1, 2) for x in (q, k, v)]
    paged: dict[str, Timed] = {
        "ours": lambda: run.range_attn_paged(q, k, v, pages, None, None, None, 32**-0.5),
        "sdpa, without pages": lambda: F.scaled_dot_product_attention(*rival),
    }
    moved = _bytes(q, q, k, v)
    cases.append((f"pages, {queries}x{keys} in {count}, {str(dtype)[6:]}", paged, 4.0 * queries * keys * 256, moved))
    return cases


def peaks(device: str, tiny: bool, rounds: int) -> Row:
    """What a plain copy and a plain matrix product reach."""
    n, size = (1 << 12, 64) if tiny else (1 << 28, 4096)
    source = torch.empty(n, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    seconds = take_turns({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, device, rounds)
    return {
        "what": "peaks",
        "seconds": seconds,
        "gb_per_s": 8 * n / seconds["copy"] / 1e9,
        "gflop_per_s": 2 * size**3 / seconds["product"] / 1e9,
    }


def measure(run: Any, device: str, tiny: bool = False) -> list[Row]:
    """All rows, the device's peaks first. `run` has the operators as attributes."""
    rounds = 1 if tiny else 50
    rows = [peaks(device, tiny, rounds)]
    for dtype in (torch.float32,) if tiny else (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        for what, contenders, flops, moved in deformable(device, dtype, tiny, run) + attention(
            device, dtype, tiny, run
        ):
            seconds = take_turns(contenders, device, rounds)
            rows.append(
                {
                    "what": what,
                    "seconds": seconds,
                    "gb_per_s": moved / seconds["ours"] / 1e9,
                    "gflop_per_s": flops / seconds["ours"] / 1e9,
                }
            )
    return rows


def words(row: Row) -> str:
    """A row for people."""
    seconds = dict(row["seconds"])
    ours = seconds.pop("ours", None)
    rates = f"{row['gb_per_s']:.0f} GB/s, {row['gflop_per_s']:.0f} GFLOP/s"
    if ours is None:
        return f"{row['what']:<52} {rates}"
    others = "  ".join(f"{name} {1e6 * s:.0f} us = {s / ours:.2f}x" for name, s in seconds.items())
    return f"{row['what']:<52} ours {1e6 * ours:.0f} us ({rates})  {others}"
