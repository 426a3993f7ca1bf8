#!/usr/bin/env python3
"""What each kind of sink keeps of the frames that left the ring: error of the decoder's output against full history.

    python benchmarks/online_sinks.py [--lengths 96,276,996] [--sharpness 1] [--rho 0.95]

Random weights, tokens that change slowly (`rho` from frame to frame), the released tracker's layers at a small width.
The error is that of the mask embeddings, relative to their norm. `--sharpness` multiplies the decoder's queries.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

from avis_stream.config import AudioConfig, AVISMConfig, LocalizerConfig, TrackerConfig
from avis_stream.models.tracker import Tracker
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.tracking import Arrival, StreamTracker

CONFIG = AVISMConfig(
    channels=48,
    mask_channels=48,
    audio=AudioConfig(encoder="none", feature_dim=16),
    localizer=LocalizerConfig(queries=8),
    tracker=TrackerConfig(queries=10, ffn_channels=96),
)
KINDS = ("per_query", "first", "none")


def tokens(frames: int, rho: float) -> tuple[Tensor, Tensor]:
    """Frame queries [T, N, C] and sound [T, A] that change slowly."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(frames, CONFIG.localizer.queries, CONFIG.channels, generator=generator)
    for t in range(1, frames):
        queries[t] = rho * queries[t - 1] + (1 - rho**2) ** 0.5 * queries[t]
    return queries, torch.randn(frames, CONFIG.audio.feature_dim, generator=generator)


def sharpen(tracker: Tracker, factor: float) -> None:
    """Multiplies the queries of the decoder's cross-attention, that is its scores."""
    for layer in tracker.decoder:
        attn = layer.cross_attn.attn  # type: ignore[union-attr]
        attn.in_proj_weight[: CONFIG.channels] *= factor  # type: ignore[union-attr,index]
        attn.in_proj_bias[: CONFIG.channels] *= factor  # type: ignore[union-attr,index]


@torch.no_grad()
def errors(lengths: list[int], rho: float, sharpness: float) -> dict[str, dict[int, float]]:
    """Relative errors by kind of sink and by length."""
    torch.manual_seed(0)
    tracker = Tracker(CONFIG).eval().requires_grad_(False)
    sharpen(tracker, sharpness)
    queries, sound = tokens(max(lengths), rho)
    expected = {t: tracker(queries[None, :t], sound[:t])[0][-1].mask_embed for t in lengths}
    found: dict[str, dict[int, float]] = {}
    for kind in KINDS:
        tracking = StreamTracker(tracker, OnlineConfig(sinks=kind, max_anchors=0))  # type: ignore[arg-type]
        memory = TrackerMemory.empty(CONFIG, tracking.geometry, True, queries)
        found[kind] = {}
        for t in range(max(lengths)):
            plans = tracking.push([memory], [Arrival(queries[t : t + 1], sound[t : t + 1])])
            if t + 1 in expected or plans[0].fold:
                answer = tracking.answer([memory], plans).mask_embed
            if t + 1 in expected:
                found[kind][t + 1] = float((answer - expected[t + 1]).norm() / expected[t + 1].norm())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="96,276,996")
    parser.add_argument("--sharpness", type=float, default=1.0)
    parser.add_argument("--rho", type=float, default=0.95)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = errors([int(length) for length in options.lengths.split(",")], options.rho, options.sharpness)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
