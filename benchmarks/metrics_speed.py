"""Time and memory of scoring a data set of AVISeg's test size: 205 videos x 61 frames x 8 tracks at 720x1280.

    python benchmarks/metrics_speed.py [--videos N] [--mode official|fixed|paper]

Truth as polygons, as AVISeg has it, predictions as run lengths of a model with somewhat noisy outlines. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.metrics import evaluate

HEIGHT, WIDTH = 720, 1280
SECONDS_BAR, BYTES_BAR = 60.0, 2e9


def outline(random: np.random.Generator, center: np.ndarray, radius: float, points: int = 60) -> list[float]:
    """A blob with a few bays and some noise, [x, y, x, y, ...]."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius * (1 + 0.2 * np.sin(3 * angle + random.uniform(0, 6)) + 0.04 * random.standard_normal(points))
    path = center[:, None] + radii * np.stack([np.cos(angle), np.sin(angle)])
    return [round(float(value), 1) for value in np.clip(path, 0, [[WIDTH], [HEIGHT]]).T.ravel()]


def write_set(folder: Path, videos: int, frames: int, tracks: int) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    truth, predicted = [], []
    for video in range(1, videos + 1):
        for _ in range(tracks):
            category = int(random.integers(1, 27))
            center, radius = random.uniform([100, 100], [WIDTH - 100, HEIGHT - 100]), random.uniform(50, 200)
            path = center + np.cumsum(random.normal(0, 6, (frames, 2)), axis=0)
            truth.append(
                {"video_id": video, "category_id": category, "iscrowd": 0, "id": len(truth) + 1,
                 "segmentations": [[outline(random, at, radius)] if random.random() < 0.7 else None for at in path]}
            )  # fmt: skip
            masks = [
                rle.from_polygons([outline(random, at, radius)] if random.random() < 0.7 else [], HEIGHT, WIDTH)
                for at in path
            ]
            predicted.append(
                {"video_id": video, "category_id": category, "score": float(random.random()), "segmentations": masks}
            )
    document = {
        "videos": [
            {"id": n, "height": HEIGHT, "width": WIDTH, "length": frames,
             "file_names": [f"v{n}/{t}.jpg" for t in range(frames)]}
            for n in range(1, videos + 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(AVISEG_CLASSES, 1)],
        "annotations": truth,
    }  # fmt: skip
    paths = folder / "truth.json", folder / "predictions.json"
    for path, content in zip(paths, (document, predicted), strict=True):
        path.write_text(json.dumps(content))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=205)
    parser.add_argument("--frames", type=int, default=61)
    parser.add_argument("--tracks", type=int, default=8)
    parser.add_argument("--mode", default="fixed")
    parser.add_argument("--score", nargs=2, metavar=("TRUTH", "PREDICTIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score is None:  # memory is a peak of the whole process, so the scoring gets one of its own
        with tempfile.TemporaryDirectory() as folder:
            paths = write_set(Path(folder), options.videos, options.frames, options.tracks)
            command = [sys.executable, __file__, "--mode", options.mode, "--score", *map(str, paths)]
            sys.exit(subprocess.run(command, check=False).returncode)
    start = time.perf_counter()
    scores = evaluate(*options.score, mode=options.mode)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {
        "mode": options.mode,
        "seconds": round(seconds, 1),
        "peak_megabytes": round(peak / 1e6),
        "bars": {"seconds": SECONDS_BAR, "peak_megabytes": BYTES_BAR / 1e6},
        "met": seconds < SECONDS_BAR and peak < BYTES_BAR,
        "files_megabytes": [round(Path(path).stat().st_size / 1e6) for path in options.score],
        "machine": f"{platform.machine()}, numpy {np.__version__}, Python {platform.python_version()}",
        "scores": scores,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
