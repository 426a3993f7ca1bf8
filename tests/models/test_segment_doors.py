"""What `AVISM.segment` refuses, in words that help, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_model import small_model

from avis_stream.errors import AvisStreamError, ConfigError, ShapeError


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (ShapeError, r"channels first, got \[32000, 2\] float32; turn", {"audio": torch.zeros(32_000, 2)}),
        (ShapeError, r"channels first, got \[0, 32000\]", {"audio": torch.zeros(0, 32_000)}),
        (ConfigError, "sample_rate must be a whole number", {"sample_rate": 44_100.0}),
        (ConfigError, "sample_rate must be 1 to 1000000 Hz, got -1", {"sample_rate": -1}),
        (ConfigError, "sample_rate must be 1 to 1000000 Hz, got 1000000000", {"sample_rate": 10**9}),
        (ConfigError, "out_size must be a height and a width", {"out_size": (0, 0)}),
        (ConfigError, "out_size must be a height and a width", {"out_size": (-3, 5)}),
    ],
)
def test_doors(kind: type[AvisStreamError], words: str, change: dict[str, Any]) -> None:
    arguments = {"images": torch.zeros(2, 3, 48, 80, dtype=torch.uint8), "audio": torch.zeros(2, 32_000)} | change
    with pytest.raises(kind, match=words):
        small_model().segment(**arguments)
