"""Whole steps of the model: one frame through the localizer, a stream's latency and its slope, a clip by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import rounds_of

import avis_stream as avs
from avis_stream.memory import available_memory_bytes
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip
from avis_stream.online import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.tracking import Arrival, StreamTracker
from avis_stream.stages import StageTimer

pytestmark = pytest.mark.slow

# short side and picture of each model
MODELS = {"avism_mini": (96, 160), "avism_r50_in": (360, 640)}
SOUND = ["audio.encoder=none"]


def model_of(name: str, reference: bool = False) -> avs.AVISM:
    size = [f"input.short_side_px={MODELS[name][0]}", "input.clip_short_side_px=none"]
    settings = [*size, *([] if name == "avism_mini" else SOUND)]
    return avs.load(name, "random", settings=settings, reference=reference)


@pytest.mark.parametrize("threads", [1, 2])
def test_localizer(threads: int, record: Callable[..., Any]) -> None:
    """One frame of the published size, against the literal official form."""
    ours, literal = model_of("avism_r50_in"), model_of("avism_r50_in", reference=True)
    images, features = torch.randn(1, 3, 384, 640), torch.randn(1, ours.config.audio.feature_dim)
    with torch.inference_mode():
        record(
            "localizer, avism_r50_in, one frame 384x640",
            threads,
            {"ours": lambda: ours.localize(images, features), "reference": lambda: literal.localize(images, features)},
            rounds=10,
            bars={"reference": 3},
        )


def test_tracker_step(record: Callable[..., Any]) -> None:
    """Steps of a stream through a window, so that every phase counts once, against tracking the last 60 frames anew."""
    ours, literal = model_of("avism_r50_in"), model_of("avism_r50_in", reference=True)
    tracking = StreamTracker(ours.tracker, OnlineConfig())
    memory = TrackerMemory.empty(ours.config, tracking.geometry, True, torch.zeros(1))
    config, window = ours.config, tracking.geometry.window
    queries = torch.randn(60, config.localizer.queries, config.channels)
    sound = torch.randn(60, config.audio.feature_dim)

    def steps() -> None:
        for t in range(window):
            tracking.answer([memory], tracking.push([memory], [Arrival(queries[t : t + 1], sound[t : t + 1])]))

    def anew() -> None:
        for _ in range(window):
            literal.track(queries, sound)

    with torch.inference_mode():
        for _ in range(tracking.geometry.pages):
            steps()
        record(
            f"tracker, avism_r50_in, {window} steps of a stream",
            2,
            {"ours": steps, "released tracker on 60 frames, each step": anew},
            rounds=2,
            bars={"released tracker on 60 frames, each step": 8},
        )


@pytest.mark.parametrize("name", MODELS)
def test_stream_latency(name: str, benchmark: Any) -> None:
    """Frames one by one, everything included, from when the ring is full; does a long stream become slower?"""
    model = model_of(name)
    if name != "avism_mini":  # VGGish's weights are not ours to ship
        sound = torch.randn(1, model.config.audio.feature_dim)
        model.hear = lambda seconds, valid_samples=None: sound  # type: ignore[method-assign]
    online = avs.OnlineSegmenter(model, avs.OnlineConfig())
    state = online.init_state()
    height, width = MODELS[name]
    torch.set_num_threads(2)
    filling = online.tracking.geometry.ring
    steps = filling + rounds_of(600 if name == "avism_mini" else 60)
    taken = np.zeros(steps)
    frame, audio = torch.randint(256, (3, height, width), dtype=torch.uint8), 0.1 * torch.randn(16_000)
    for t in range(steps):
        start = time.perf_counter()
        _, state = online.step(frame, audio, state)
        taken[t] = time.perf_counter() - start
    settled = taken[filling:]
    third = -(-len(settled) // 3)
    later = float(np.median(settled[-third:]) / np.median(settled[:third])) - 1
    p50, p95, p99 = (float(np.quantile(settled, q)) for q in (0.5, 0.95, 0.99))
    benchmark.extra_info.update(
        what=f"online step, {name}, {height}x{width}",
        threads=2,
        latency={"p50": p50, "p95": p95, "p99": p99, "last_third_slower_by": later, "steps": len(settled)},
    )
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("name", MODELS)
def test_clip_by_stage(name: str, benchmark: Any) -> None:
    """A clip as a whole, by stage."""
    model = model_of(name)
    torch.set_num_threads(2)
    height, width = MODELS[name]
    count = rounds_of(60 if name == "avism_mini" else 12)
    features = torch.randn(count, model.config.audio.feature_dim)
    pictures = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    frames = [ClipFrame(picture, feature, None) for picture, feature in zip(pictures, features, strict=True)]
    timer = StageTimer()

    def again(start: int) -> Any:
        return mask_features_again(model, lambda: iter(frames), start)

    with MaskStore(available_memory_bytes() // 2, recompute=again) as store, timer("all"):
        segment_clip(model, lambda: iter(frames), out_size=None, store=store, timer=timer)
    benchmark.extra_info.update(
        what=f"clip of {count} frames, {name}, {height}x{width}", threads=2, stages=dict(timer.seconds)
    )
    benchmark.pedantic(lambda: None, rounds=1)
