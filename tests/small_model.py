"""A whole model with random weights that runs in milliseconds, and streams of pictures and sound for it."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineSegmenter, OnlineState
from avis_stream.online.config import OnlineConfig
from avis_stream.types import OnlineResult

SMALL = [
    "input.short_side_px=64",
    "input.clip_short_side_px=none",
    "channels=32",
    "mask_channels=16",
    "pixel_decoder.layers=1",
    "pixel_decoder.ffn_channels=32",
    "localizer.layers=2",
    "localizer.queries=6",
    "localizer.ffn_channels=32",
    "tracker.queries=5",
    "tracker.ffn_channels=32",
    "tracker.encoder_layers=2",
    "tracker.decoder_layers=2",
    "tracker.token_window=3",
    "postprocess.score_threshold=0.0",
    "postprocess.one_class=false",
    "postprocess.duplicate_iou=none",
    "postprocess.presence_threshold=0.0",
]
WITHOUT_HEAD = [
    "localizer.motion_cue=false", "localizer.fusion_hears=true", "localizer.sounding_head=false",
    "localizer.query_source=learned", "tracker.masks=video",
]  # fmt: skip
EVERYTHING = {"candidate_score": 0.0, "birth_score": 0.0, "show_score": 0.0, "presence_gate": False}
"""Thresholds under which the answers of random weights count."""


@functools.cache
def small_model(*, head: bool = True, seed: int = 0, masks: str = "frame", objects: str = "video") -> AVISM:
    torch.manual_seed(seed)
    settings = [*SMALL, f"tracker.objects={objects}", f"tracker.masks={masks}"]
    return avs.load("avism_mini", "random", settings=settings if head else settings + WITHOUT_HEAD)


def with_postprocess(model: AVISM, **settings: object) -> AVISM:
    """The same weights with other settings of `PostprocessConfig`; the model itself, which tests share, stays."""
    other = copy.copy(model)
    other.config = replace(model.config, postprocess=replace(model.config.postprocess, **settings))  # type: ignore[arg-type]
    return other


def open_config(**settings: object) -> OnlineConfig:
    return OnlineConfig(**(EVERYTHING | settings))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scene:
    """Frames and seconds of sound."""

    frames: Tensor
    """uint8 [T, 3, H, W]."""
    audio: Tensor
    """float32 [T, 16000]."""
    previous: Tensor

    def __len__(self) -> int:
        return len(self.frames)


@functools.cache
def scene(frames: int = 40, height: int = 48, width: int = 80, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames + 1, 3, 5, 8, generator=generator)
    coarse = 0.7 * coarse[:1] + 0.3 * coarse
    pictures = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    pictures = (pictures * 255).byte()
    return Scene(pictures[1:], 0.2 * torch.randn(frames, 16_000, generator=generator), pictures[:-1])


def play(
    online: OnlineSegmenter, film: Scene, state: OnlineState, frames: range, **arguments: Any
) -> tuple[list[OnlineResult], OnlineState]:
    """Steps through some frames of a scene; the results and the state after them."""
    results = []
    for t in frames:
        result, state = online.step(film.frames[t], film.audio[t], state, previous=film.previous[t], **arguments)
        results.append(result)
    return results, state
