from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import avis_stream.ops  # noqa: F401  (defines the operators)

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden_windows() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "c_windows.npz") as file:
        return {key: file[key] for key in file.files if key.endswith("shift_mask_add")}


@pytest.fixture(scope="session")
def golden_msda() -> dict[str, Tensor]:
    with np.load(GOLDEN / "b_msda.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
