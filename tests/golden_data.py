"""Reads the recorded numbers of the official implementation (`tests/golden/README.md` says what each one is)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of `tests/golden/<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def tensor(name: str, key: str) -> Tensor:
    """One array as a tensor."""
    return torch.from_numpy(arrays(name)[key])


def state(name: str, prefix: str = "") -> dict[str, Tensor]:
    """All arrays whose key starts with `prefix`, without it."""
    return {key.removeprefix(prefix): torch.from_numpy(a) for key, a in arrays(name).items() if key.startswith(prefix)}


def assert_golden(actual: Tensor, name: str, key: str, *, atol: float = 1e-4, rtol: float = 1e-4) -> None:
    """Compares with a recorded array; the failure names it."""
    expected = tensor(name, key)
    torch.testing.assert_close(
        actual.reshape(expected.shape), expected, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {key}: {text}"
    )
