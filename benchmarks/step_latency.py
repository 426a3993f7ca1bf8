#!/usr/bin/env python3
"""How long a step of a stream takes, sound included, by stage and over time; and how many streams a machine holds.

    python benchmarks/step_latency.py [--model avism_mini] [--steps 240] [--threads 2] [--streams 1 2 4 8] [--json FILE]

Pictures are noise of 360x640, weights are those that come with the model, else random: neither changes the work. Rates
are of what a viewer gets: a mask refresh is a new picture of known objects, a step is a new second of sound as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.ops import info
from avis_stream.weights import load
from avis_stream.weights.bundled import bundled_weights

_DIFFERENT = 16
"""Pictures and seconds of sound that are used in turn."""


def spread(seconds: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in ms, rate, and how the second half compares with the first."""
    p50, p95, p99 = (round(1000 * float(np.quantile(seconds, q)), 2) for q in (0.5, 0.95, 0.99))
    half = len(seconds) // 2
    growth = float(np.median(seconds[half:]) / np.median(seconds[:half]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "per_second": round(1000 / p50, 2), "growth": round(growth, 3)}


def timed(run: Callable[[int], object], count: int, warm: int) -> dict[str, float]:
    for n in range(warm):
        run(n)
    seconds = []
    for n in range(count):
        begin = time.perf_counter()
        run(warm + n)
        seconds.append(time.perf_counter() - begin)
    return spread(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avism_mini")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, None if bundled_weights(options.model) else "random")
    online = OnlineSegmenter(model, OnlineConfig(silence_dbfs=None))
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (_DIFFERENT, 3, 360, 640), dtype=torch.uint8, generator=generator)
    sounds = torch.rand(_DIFFERENT, 16_000, generator=generator) - 0.5
    features_dim = model.config.audio.feature_dim
    hears = model.audio_encoder is not None
    if not hears:
        model.hear = lambda seconds, valid=None: torch.zeros(len(seconds), features_dim)  # type: ignore[method-assign]
    states = [online.init_state() for _ in range(max([1, *options.streams]))]

    def step(n: int) -> None:
        k = n % _DIFFERENT
        _, states[0] = online.step(pictures[k], sounds[k], states[0], previous=pictures[k - 1])

    def refresh(n: int) -> None:
        online.refresh(pictures[n % _DIFFERENT], states[0])

    def refresh_hearing(n: int) -> None:
        k = n % _DIFFERENT
        online.refresh(pictures[k], states[0], states[0].pts_ns, sounds[k], pictures[k - 1])

    def hear(n: int) -> None:
        model.hear(sounds[n % _DIFFERENT][None])

    warm = min(60, options.steps)
    report: dict[str, Any] = {
        "model": options.model,
        "threads": options.threads,
        "isa": info().isa,
        "hears": hears,
        "step": timed(step, options.steps, warm),
        "mask refresh": timed(refresh, options.steps, 8),
        "mask refresh, who sounds asked again": timed(refresh_hearing, options.steps, 8),
        "sound": timed(hear, min(60, options.steps), 8),
        "streams": {},
    }
    for count in options.streams:

        def many(n: int, count: int = count) -> None:
            ks = [(n + s) % _DIFFERENT for s in range(count)]
            _, states[:count] = online.step_many(
                [pictures[k] for k in ks], [sounds[k] for k in ks], states[:count], None, [pictures[k - 1] for k in ks]
            )

        found = timed(many, max(8, options.steps // 8), 4)
        report["streams"][count] = found | {"streams_at_1_hz": round(count * 1000 / found["p50_ms"], 1)}
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
