#!/usr/bin/env python3
"""A day of streaming: memory, step time and state size must stay flat.

    python benchmarks/online_soak.py --out out/soak                                a day at 1 Hz, `avism_mini` sizes
    python benchmarks/online_soak.py --model avism_r50_in --steps 3600 --out ...    an hour at R50 sizes

Everything of a step runs but the localizer, whose place a generator takes: tracker, identity table, gates and masks.
Weights are random. Where frame queries are the objects (`avism_mini`), identities come, fall silent, return and die all
the time; video queries with random weights see one and the same in all. Written are `soak.json` and `soak.png`.
Memory is RssAnon. With `--check` the exit status says whether all is flat.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

import avis_stream as avs
from avis_stream.models.avism import AVISM, FrameTokens
from avis_stream.online import OnlineConfig, OnlineSegmenter

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZES = {"avism_mini": (64, 96), "avism_r50_in": (360, 640)}
"""Of the pictures; small where a day is to pass, since masks are drawn on them."""
POOL = 997
"""Frames of noise that the generator knows; a prime, so that they meet every phase of every window."""
TURN_SECONDS = 7
FORGET_SECONDS = 600.0
WARM_UP = 0.1
"""Share of the run after which nothing may grow."""
MOST_GROWTH_BYTES = 4 << 20
MOST_TIME_GROWTH = 0.1
"""Of the median step time, from the first half after the warm-up to the second."""


class Cast:
    """Who is in the picture when: actors who come and go, each with a period of its own: no two hours are alike.

    An actor is seen for a third of its period and sounds in every other stretch of `TURN_SECONDS` of it. Absences last
    from two minutes to half an hour, on both sides of `FORGET_SECONDS`: some actors return, others are dead by then.
    """

    PERIODS = (181, 263, 397, 541, 677, 811, 1103, 1301, 1511, 1801, 2203, 2707)
    """Steps; primes."""
    CLASSES = 4
    """Between them, so that each has look-alikes."""

    def visible(self, actor: int, t: int) -> bool:
        period = self.PERIODS[actor]
        return 3 * ((t + period // 2) % period) < period

    def sounds(self, actor: int, t: int) -> bool:
        return self.visible(actor, t) and (t // TURN_SECONDS + actor) % 2 == 0

    def __len__(self) -> int:
        return len(self.PERIODS)


class Generator:
    """In the place of the localizer and the audio encoder: what they would make of a cast.

    A frame query that shows nobody says so where frame queries are the objects. Where video queries are, weights are
    random and so are their classes, whatever frames show: there frame queries are noise around the actors' looks.
    """

    def __init__(self, model: AVISM, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        config, slots = model.config, model.config.localizer.queries
        self.cast, self.head = Cast(), config.localizer.sounding_head
        self.looks = torch.randn(len(self.cast), config.channels, generator=generator)
        self.noise = torch.randn(POOL, slots, config.channels, generator=generator)
        self.sound = torch.randn(POOL, config.audio.feature_dim, generator=generator)
        self.features = torch.randn(16, config.drawn_channels, height // 4, width // 4, generator=generator)
        own = config.tracker.masks == "frame"
        self.outlines = torch.randn(slots, config.drawn_channels, generator=generator) if own else None
        self.nobody = torch.full((slots, len(config.classes) + 1), -4.0)
        self.nobody[:, -1] = 4.0
        self.step = 0

    def hear(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        return self.sound[self.step % POOL][None]

    def localize(self, images: Tensor, audio: Tensor, previous: Tensor | None = None) -> FrameTokens:
        t, n = self.step, self.step % POOL
        self.step += 1
        queries, logits = self.noise[n].clone(), self.nobody.clone()
        sounding = torch.full((len(queries),), 0.02)
        for actor in range(len(self.cast)):
            if self.cast.visible(actor, t):
                queries[actor] = self.looks[actor] + 0.2 * self.noise[n, actor]
                logits[actor, -1], logits[actor, actor % self.cast.CLASSES] = -4.0, 4.0
                sounding[actor] = 0.98 if self.cast.sounds(actor, t) else 0.02
        outlines = None if self.outlines is None else self.outlines[None]
        features = self.features[n % 16][None]
        return FrameTokens(queries[None], logits[None], features, sounding[None] if self.head else None, outlines)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def settings_of(model: AVISM) -> OnlineConfig:
    """The model's own where frame queries are the objects; open ones where video queries with random weights are."""
    if model.config.tracker.objects == "frame":
        return OnlineConfig.of(model.config, forget_s=FORGET_SECONDS)
    opened = {"candidate_score": 0.04, "birth_score": 0.03, "show_score": 0.01, "learn_score": 0.04}
    opened |= {"match_same": 0.9, "match_same_slot": 0.7, "match_dormant": 0.95}
    return OnlineConfig(**opened, forget_s=FORGET_SECONDS, presence_threshold=0.3)


def soak(name: str, steps: int, every: int) -> dict[str, Any]:
    """Runs the steps; one sample of each curve every so many."""
    torch.manual_seed(0)
    height, width = SIZES[name]
    settings = [f"input.short_side_px={height}"] + ["audio.encoder=none"] * (name != "avism_mini")
    model = avs.load(name, "random", settings=settings)
    generator = Generator(model, (height + 31) // 32 * 32, (width + 31) // 32 * 32)
    model.hear, model.localize = generator.hear, generator.localize  # type: ignore[method-assign]
    online = OnlineSegmenter(model, settings_of(model))
    state = online.init_state()
    # On one thread the time is the process's own: a wall time would mostly measure the neighbours.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    frame, audio = torch.full((3, height, width), 100, dtype=torch.uint8), 0.1 * torch.randn(16_000)
    size, kinds = state.nbytes, dict.fromkeys(("born", "silent", "dormant", "returned", "dead"), 0)
    seconds, memory, taken = [], [], np.zeros(every)
    for t in range(steps):
        start = clock()
        result, state = online.step(frame, audio, state)
        taken[t % every] = clock() - start
        for event in result.events:
            if event.kind in kinds:
                kinds[event.kind] += 1
        if (t + 1) % every == 0:
            seconds.append([float(np.median(taken)), float(np.quantile(taken, 0.99))])
            memory.append(anonymous_bytes())
            if state.nbytes != size:
                raise AssertionError(f"the state grew from {size} to {state.nbytes} bytes at step {t}")
    cache = sum(0 if x is None else x.nbytes for x in (state.body.memory.keys, state.body.memory.values))
    return {
        "model": name, "steps": steps, "every": every, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(), "native": avs.ops.info().operators["range_attn"]["cpu"],
        "state_bytes": size, "cache_bytes": cache, "events": kinds, "live_identities": len(state.body.table.live),
        "step_seconds_median_p99": seconds, "rss_anon_bytes": memory,
    }  # fmt: skip


def verdict(run: dict[str, Any]) -> dict[str, Any]:
    """How much memory and time grew after the warm-up."""
    first = max(1, round(WARM_UP * len(run["rss_anon_bytes"])))
    memory, median = np.array(run["rss_anon_bytes"][first:]), np.array(run["step_seconds_median_p99"])[first:, 0]
    half = len(median) // 2
    growth = int(memory[-len(memory) // 10 :].mean() - memory[: max(1, len(memory) // 10)].mean())
    slower = float(np.median(median[half:]) / np.median(median[:half]) - 1)
    return {
        "memory_growth_bytes": growth,
        "memory_range_bytes": int(memory.max() - memory.min()),
        "time_growth": slower,
        "step_ms_median": 1000 * float(np.median(median)),
        "flat": growth <= MOST_GROWTH_BYTES and slower <= MOST_TIME_GROWTH,
    }


def plot(run: dict[str, Any], path: Path) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6), sharex=True)
    steps = run["every"] * np.arange(1, len(run["rss_anon_bytes"]) + 1)
    above.plot(steps, np.array(run["rss_anon_bytes"]) / 2**20)
    above.set_ylabel("resident memory, MiB (RssAnon)")
    above.set_ylim(bottom=0)
    times = 1000 * np.array(run["step_seconds_median_p99"])
    below.plot(steps, times[:, 0], label="median")
    below.plot(steps, times[:, 1], label="99th percentile", linewidth=0.5)
    below.set_ylabel("step, ms (without localizer)")
    below.set_ylim(bottom=0)
    below.set_xlabel("steps")
    below.legend()
    figure.suptitle(f"{run['model']} sizes, {run['steps']} steps, state {run['state_bytes'] / 1e6:.1f} MB")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="avism_mini")
    parser.add_argument("--steps", type=int, default=86_400)
    parser.add_argument("--every", type=int, default=60, help="steps a sample")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = soak(options.model, options.steps, options.every)
    run["verdict"] = verdict(run)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(run) + "\n")
    plot(run, options.out / "soak.png")
    said = {key: run[key] for key in ("model", "steps", "state_bytes", "cache_bytes", "events", "live_identities")}
    sys.stdout.write(json.dumps(said | run["verdict"], indent=2) + "\n")
    if options.check and not run["verdict"]["flat"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
