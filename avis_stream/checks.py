"""Checks at the door: the only place that words shape, dtype and value errors."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avis_stream.errors import ConfigError, ShapeError


def describe(value: object) -> str:
    """What came, for an error message: a tensor's shape and dtype, or a short form of anything else."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {list(value.shape)} {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_shape(
    value: Any, name: str, shape: str, *, dtype: torch.dtype | None = None, hint: str = "", **sizes: int
) -> Tensor:
    """Checks that `value` is a tensor of the given rank, sizes and dtype, and returns it.

    Args:
        value: What the caller handed over.
        name: The argument's name, as the caller knows it.
        shape: Axis names, e.g. `"T 3 H W"`; a number, or a name given in `sizes`, must match exactly.
        dtype: Wanted dtype; None accepts any.
        hint: What to do about it, appended to the message.
        sizes: Known sizes by axis name.
    Raises:
        ShapeError: The tensor differs; the message names the argument, what was wanted and what came.
    Example:
        >>> check_shape(torch.zeros(2, 3), "x", "B C", C=3).shape
        torch.Size([2, 3])
    """
    axes = shape.split()
    wanted = f"[{', '.join(f'{a}={sizes[a]}' if a in sizes else a for a in axes)}]"
    if dtype is not None:
        wanted += f" {str(dtype).removeprefix('torch.')}"
    fits = isinstance(value, Tensor) and value.dim() == len(axes) and (dtype is None or value.dtype == dtype)
    if fits:
        expected = [int(a) if a.isdigit() else sizes.get(a) for a in axes]
        fits = all(e is None or e == got for e, got in zip(expected, value.shape, strict=True))
    if not fits:
        raise ShapeError(f"{name} must be a tensor {wanted}, got {describe(value)}" + (f"; {hint}" if hint else ""))
    checked: Tensor = value
    return checked


def check_finite(value: Tensor, name: str, hint: str) -> Tensor:
    """Checks that a tensor holds no NaN and no infinity, and returns it.

    Looks at values, so it waits for the device. Where values cannot be looked at, inside `torch.export`,
    `torch.compile` or the capture of a CUDA graph, nothing is checked.

    Args:
        value: Any shape.
        name: The argument's name, as the caller knows it.
        hint: What to do about it.
    Raises:
        ShapeError: Some values are not finite; the message says how many.
    """
    capturing = value.is_cuda and torch.cuda.is_current_stream_capturing()
    # A finite sum has finite terms, and is fifty times as cheap; one that is not may have overflowed.
    if torch.compiler.is_compiling() or capturing or bool(value.sum().isfinite() or value.isfinite().all()):
        return value
    bad = int((~value.isfinite()).sum())
    raise ShapeError(f"{name} must be finite, got {bad} NaN or infinite values of {value.numel()}; {hint}")


def whole_number(value: object, name: str) -> int:
    """The value as an int: of Python's, numpy's, or a tensor of one.

    Raises:
        ConfigError: It is no whole number, or has more than 64 bits.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    require(number is not None and -(1 << 63) <= number < 1 << 63, name, value, "a whole number of 64 bits")
    assert number is not None
    return number


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Raises ConfigError, naming the field, what was wanted and what came, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {describe(value)}")


def refuse(given: Mapping[str, object], because: str) -> None:
    """Refuses options that a command would pass over.

    Args:
        given: What was given for each option, by its name; nothing, or False, where it was not.
        because: Why it would; the message begins with it.
    Raises:
        ConfigError: Some were given.
    """
    names = ", ".join(name for name, value in given.items() if value)
    if names:
        raise ConfigError(f"{because}; leave out {names}")
