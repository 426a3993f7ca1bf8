"""Published backbone weights under our names. Readers of further kinds join here as training needs them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from avis_stream.errors import CheckpointError

_EPS = 1e-5


def mobilenet_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageNet weights of MobileNetV2, batch norm folded into the convolutions.

    Args:
        published: torchvision's `features.*`, of today's layout (`features.N.conv.0.0`) or the older flat one
            (`features.N.conv.0`); the last 1x1 convolution and the classifier are not used.
    Raises:
        CheckpointError: A convolution or its norm is missing.
    """
    names = [key.removesuffix(".running_var") for key in published if key.endswith(".running_var")]
    state: dict[str, Tensor] = {}
    for block in range(18):
        norms = sorted(
            (n for n in names if n.startswith(f"features.{block}.")),
            key=lambda n: [int(x) for x in re.findall(r"\d+", n)],
        )
        parts = ["stem"] if block == 0 else [f"blocks.{block - 1}.{p}" for p in ("expand", "depthwise", "project")]
        parts = parts[1:] if block == 1 else parts  # the first block does not expand
        if len(norms) != len(parts):
            raise CheckpointError(f"MobileNetV2's features.{block} has {len(norms)} batch norms, wanted {len(parts)}")
        for norm, part in zip(norms, parts, strict=True):
            state |= {f"{part}.{key}": value for key, value in _fold(published, norm).items()}
    return state


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _fold(published: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
    """Weight and bias of the convolution that stands before a batch norm, with the norm in it."""
    stem, _, index = norm.rpartition(".")
    convolution = f"{stem}.{int(index) - 1}.weight"
    if convolution not in published:
        raise CheckpointError(f"{convolution!r} is missing beside {norm!r}")
    scale = published[f"{norm}.weight"] * (published[f"{norm}.running_var"] + _EPS).rsqrt()
    return {
        "weight": published[convolution] * scale[:, None, None, None],
        "bias": published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale,
    }
