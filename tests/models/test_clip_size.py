"""Recordings as a whole may be looked at with more pixels than streams (ADR 0014)."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import open_config, small_model

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineSegmenter
from avis_stream.types import SAMPLE_RATE
from avis_stream.weights.bundled import bundled_weights, stored_state
from avis_stream.weights.files import save_weights


def noting(model: AVISM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the pictures that the network gets from now on."""
    found: list[tuple[int, int]] = []
    localize = model.localize

    def noted(images: torch.Tensor, *others: Any) -> Any:
        found.append((int(images.shape[-2]), int(images.shape[-1])))
        return localize(images, *others)

    monkeypatch.setattr(model, "localize", noted)
    return found


def test_a_clip_has_a_size_of_its_own_and_masks_of_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.copy(small_model())
    model.config = replace(model.config, input=replace(model.config.input, clip_short_side_px=96))
    sizes = noting(model, monkeypatch)
    frames, sound = torch.randint(0, 255, (2, 3, 48, 80), dtype=torch.uint8), torch.rand(2 * SAMPLE_RATE) - 0.5
    clip = model.segment(frames, sound)
    assert set(sizes) == {(96, 160)}
    assert clip.masks(0).shape[1:] == (48, 80)
    sizes.clear()
    online = OnlineSegmenter(model, open_config())
    online.step(frames[0], sound[:SAMPLE_RATE], online.init_state())
    assert set(sizes) == {(64, 128)}, "64x106, padded"


def test_bundled_weights_have_it_and_a_file_of_ones_own_says_it_itself(tmp_path: Path) -> None:
    assert avs.load("avism_mini").config.input.for_clips().short_side_px == 256
    as_streams = avs.load("avism_mini", settings=("input.clip_short_side_px=none",)).config.input
    assert as_streams.for_clips() == as_streams
    bundled = bundled_weights("avism_mini")
    assert bundled is not None
    copied = shutil.copy(bundled, tmp_path / "copied.safetensors")
    assert avs.load("avism_mini", copied).config.input.clip_short_side_px == 256, "wherever they lie"
    own = tmp_path / "avism_mini.safetensors"
    model = avs.load("avism_mini", settings=("input.clip_short_side_px=none",))
    save_weights(stored_state(model), model.config, own)
    assert avs.load("avism_mini", own).config.input.clip_short_side_px is None, "as it was written"
