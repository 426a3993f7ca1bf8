#!/usr/bin/env python3
"""The offline path at `avism_r50_in` sizes: our form against the literal official one, and clips of any length.

    python benchmarks/offline_clip.py compare [--frames 30] [--rounds 2]   time and peak memory, ours / literal
    python benchmarks/offline_clip.py long --frames 3000                   localizer replaced by a generator
    python benchmarks/offline_clip.py long --frames 600 --real             the real network

Weights are random, and a bias on one class lets exactly eight (query, class) pairs pass the threshold with masks that
are not empty. Both forms run in processes of their own, in turns; memory is the peak of anonymous pages (RssAnon),
sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import avis_stream as avs
from avis_stream.memory import available_disk_bytes
from avis_stream.models.avism import AVISM, FrameTokens, Tracks
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip
from avis_stream.stages import StageTimer

THREADS = 2
HEIGHT, WIDTH = 360, 640
OUT_SIZE = (720, 1280)
PAIRS = 8


class PeakMemory:
    """Samples this process's anonymous memory in a thread of its own."""

    def __init__(self) -> None:
        self.peak_kb = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak_kb = max(self.peak_kb, int(line.split()[1]))


def clip(frames: int) -> Iterator[ClipFrame]:
    """Pictures and sound features from a fixed seed, made as they are asked for."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(frames):
        coarse = torch.rand(1, 3, 9, 16, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0]
        yield ClipFrame((image * 255).byte(), torch.rand(128, generator=generator))


def let_pairs_pass(model: AVISM) -> None:
    """Sets the bias of class 0 so that exactly `PAIRS` queries pass, whatever the frames say.

    The tracker's answer is taken from a clip of six frames; then only the classes of those queries are kept apart from
    the rest by their rank, so the number is exact for every length.
    """
    track = model.track

    def tracked(*frames: Any) -> Tracks:
        tracks = track(*frames)
        ranked = tracks.logits[:, 0].argsort(descending=True)
        logits = torch.full_like(tracks.logits, -10.0)
        logits[:, -1] = 0.0
        logits[ranked[:PAIRS], 0] = 10.0
        return replace(tracks, logits=logits)

    model.track = tracked  # type: ignore[method-assign]


def generated(images: Tensor, audio_features: Tensor, previous: Tensor | None = None) -> FrameTokens:
    """Random tokens of the real shapes, smooth enough that masks look like masks."""
    count = len(images)
    smooth = torch.nn.functional.interpolate(torch.randn(count, 256, 3, 5), size=(96, 160), mode="bilinear")
    return FrameTokens(torch.randn(count, 100, 256), torch.zeros(count, 100, 27), smooth)


def run(options: argparse.Namespace) -> dict[str, object]:
    """One clip through the model; what it took."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    model = avs.load("avism_r50_in", "random", reference=options.reference, settings=["audio.encoder=none"])
    let_pairs_pass(model)
    if options.generator:
        model.localize = generated  # type: ignore[method-assign]
    timer = StageTimer()

    def frames() -> Iterator[ClipFrame]:
        return clip(options.frames)

    budget = int(options.memory_gib * 2**30)
    again = lambda start: mask_features_again(model, frames, start)  # noqa: E731
    with PeakMemory() as memory, MaskStore(budget, available_disk_bytes() // 2, recompute=again) as store:
        begin = time.perf_counter()
        result = segment_clip(model, frames, out_size=OUT_SIZE, store=store, timer=timer)
        seconds = time.perf_counter() - begin
        homes = store.homes
    areas = [sum(avs_area(rle) for rle in result.rle(i)) for i in range(len(result))]
    return {
        "form": "literal" if options.reference else "ours",
        "frames": options.frames,
        "seconds": round(seconds, 2),
        "seconds_per_frame": round(seconds / options.frames, 4),
        "stages": {k: round(v, 2) for k, v in timer.seconds.items()},
        "peak_anonymous_gib": round(memory.peak_kb / 2**20, 3),
        "homes": homes,
        "instances": len(result),
        "mean_mask_pixels": round(sum(areas) / max(1, len(areas)) / options.frames),
    }


def avs_area(code: object) -> int:
    """Pixels of a mask."""
    from avis_stream.data import rle

    return rle.area(code)  # type: ignore[arg-type]


def compare(options: argparse.Namespace) -> dict[str, object]:
    """Runs the two forms in turns, each in a process of its own, and takes the ratio of the best times."""
    runs: dict[str, list[dict[str, object]]] = {"literal": [], "ours": []}
    for _ in range(options.rounds):
        for form, flag in (("literal", ["--reference"]), ("ours", [])):
            command = [sys.executable, __file__, "one", "--frames", str(options.frames), *flag]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs[form].append(json.loads(printed))
    best = {form: min(float(str(r["seconds"])) for r in done) for form, done in runs.items()}
    peak = {form: max(float(str(r["peak_anonymous_gib"])) for r in done) for form, done in runs.items()}
    return {
        "speedup": round(best["literal"] / best["ours"], 2),
        "memory_ratio": round(peak["ours"] / peak["literal"], 3),
        "seconds": best,
        "peak_anonymous_gib": peak,
        "runs": runs,
    }


def main() -> None:
    """Command line, as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "long", "one"])
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory-gib", type=float, default=1.0)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--real", action="store_true")
    options = parser.parse_args()
    options.generator = options.what == "long" and not options.real
    json.dump(compare(options) if options.what == "compare" else run(options), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
