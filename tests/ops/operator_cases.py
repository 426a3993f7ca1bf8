"""Random arguments for the operators, and how far a result may be off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class MsdaCase:
    """Random arguments of `ms_deform_attn` in float32, and a gradient for its result."""

    value: Tensor
    shapes: list[int]
    loc: Tensor
    weight: Tensor
    grad: Tensor

    def args(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        return self.value.to(dtype), self.shapes, self.loc.to(dtype), self.weight.to(dtype)

    def leaves(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        return tuple(x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in self.args(dtype))


def make_case(
    n: int = 2,
    shapes: tuple[int, ...] = (3, 5, 6, 4, 1, 1),
    m: int = 2,
    d: int = 32,
    q: int = 13,
    p: int = 4,
    spread: float = 0.8,
) -> MsdaCase:
    """Points uniform in a square of side 2 * spread around the middle, so that many lie on borders or outside."""
    levels = len(shapes) // 2
    tokens = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    loc = 0.5 + spread * (2 * torch.rand(n, q, m, levels, p, 2) - 1)
    # Bilinear interpolation has a kink at pixel centres: keep clear of it, or gradients depend on rounding.
    size = torch.tensor([[w, h] for h, w in zip(shapes[::2], shapes[1::2], strict=True)])[:, None]
    pixel = loc * size - 0.5
    pixel = torch.where((pixel - pixel.round()).abs() < 0.02, pixel + 0.05, pixel)
    weight = torch.rand(n, q, m, levels * p).softmax(-1).view(n, q, m, levels, p)
    return MsdaCase(torch.randn(n, tokens, m, d), list(shapes), (pixel + 0.5) / size, weight, torch.randn(n, q, m * d))


def fused_arguments(**sizes: Any) -> tuple[Any, ...]:
    """Of `ms_deform_attn_fused`."""
    case = make_case(**sizes)
    n, q, m, levels, p, _ = case.loc.shape
    size = torch.tensor(case.shapes).view(-1, 2).flip(-1)[:, None]
    ref = torch.rand(n, q, levels, 2)
    return case.value, case.shapes, ref, (case.loc - ref[:, :, None, :, None]) * size, torch.randn(n, q, m, levels * p)


def paged_arguments(dtype: torch.dtype, d: int, initial: bool) -> list[Any]:
    """Of `range_attn_paged`: pages of different lengths, an empty one and one whose keys are all taken away."""
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (torch.randn(2, n, 3, d).to(dtype) for n in (50, 130, 130))
    bias = torch.randn(2, 130, dtype=wide)
    bias[:, 70:80] = -torch.inf
    init = [torch.randn(2, 50, 3, d, dtype=wide), torch.randn(2, 3, 50, dtype=wide)] if initial else [None, None]
    pages = torch.tensor([[90, 130], [0, 67], [5, 5], [70, 80]], dtype=torch.int32)
    return [q, k, v, pages, bias, *init, d**-0.5]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude (at least 1) of what is expected."""
    if expected.numel() == 0:
        return 0.0
    scale = max(1.0, expected.abs().max().item())
    error = (actual.to(expected.dtype) - expected).abs().max().item() / scale
    assert math.isfinite(error)
    return error
