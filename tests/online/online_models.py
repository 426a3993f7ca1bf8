"""Trackers with random weights, and streams for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avis_stream.config import AudioConfig, AVISMConfig, LocalizerConfig, TrackerConfig
from avis_stream.models.tracker import ClipPrediction, Tracker
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.schedule import PushPlan, windows_of
from avis_stream.online.tracking import Arrival, StreamTracker

SOUND = 7
"""Width of audio features."""


def tracker_config(window: int = 6, layers: int = 6, *, audio_fusion: bool = True) -> AVISMConfig:
    return AVISMConfig(
        channels=32,
        mask_channels=16,
        audio=AudioConfig(encoder="none", feature_dim=SOUND),
        localizer=LocalizerConfig(queries=3),
        tracker=TrackerConfig(
            queries=5,
            heads=4,
            ffn_channels=48,
            encoder_layers=layers,
            decoder_layers=3,
            token_window=window,
            audio_fusion=audio_fusion,
        ),
    )


def random_tracker(config: AVISMConfig, seed: int = 0) -> Tracker:
    torch.manual_seed(seed)
    return Tracker(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Stream:
    """What a stream's localizer says: slowly changing tokens, as of one place."""

    frame_queries: Tensor
    """[T, N, C]."""
    audio: Tensor
    """[T, A]."""

    @staticmethod
    def random(frames: int, config: AVISMConfig, seed: int = 1, rho: float = 0.95) -> Stream:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(frames, config.localizer.queries, config.channels, generator=generator)
        queries = [noise[0]]
        for fresh in noise[1:]:
            queries.append(rho * queries[-1] + (1 - rho**2) ** 0.5 * fresh)
        return Stream(torch.stack(queries), torch.randn(frames, config.audio.feature_dim, generator=generator))

    def __len__(self) -> int:
        return len(self.frame_queries)

    def arrival(self, first: int, count: int = 1) -> Arrival:
        return Arrival(self.frame_queries[first : first + count], self.audio[first : first + count])

    def to(self, dtype: torch.dtype) -> Stream:
        return Stream(self.frame_queries.to(dtype), self.audio.to(dtype))


class Runner:
    """One stream through a `StreamTracker`, frame by frame or in chunks."""

    def __init__(self, tracker: Tracker, config: AVISMConfig, online: OnlineConfig | None = None) -> None:
        self.tracking = StreamTracker(tracker, online or OnlineConfig())
        self.memory = TrackerMemory.empty(
            config, self.tracking.geometry, self.tracking.config.kv_cache, tracker.query_feat.weight
        )
        self.plan: PushPlan | None = None

    def push(self, stream: Stream, count: int = 1) -> ClipPrediction:
        """Pushes the next frames; the answer after the last."""
        answer = None
        for size in windows_of(self.memory.seen, count, self.tracking.geometry.window):
            (self.plan,) = self.tracking.push([self.memory], [stream.arrival(self.memory.seen, size)])
            answer = self.tracking.answer([self.memory], [self.plan])
        assert answer is not None
        return answer

    def held(self) -> tuple[int, Tensor]:
        """First frame and tokens [n, N, C] of all frames in the ring."""
        assert self.plan is not None
        ring, slots = self.tracking.geometry.ring, self.tracking.geometry.slots
        tokens = self.memory.tokens[: ring * slots].unflatten(0, (ring, slots))[: self.plan.newest + 1]
        count = min(self.memory.seen, len(tokens))
        return self.memory.seen - count, tokens[len(tokens) - count :]


def offline(tracker: Tracker, stream: Stream, frames: int) -> tuple[ClipPrediction, Tensor]:
    """The offline tracker on a prefix: its answer, and tokens [T, N, C]."""
    with torch.no_grad():
        predictions, tokens = tracker(stream.frame_queries[None, :frames], stream.audio[:frames])
    return predictions[-1], tokens[0]
