"""Data sets so small that their scores can be worked out by hand: rectangles on a picture of 10x10."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avis_stream.data import rle
from avis_stream.metrics import evaluate
from avis_stream.metrics.fsla import Mode

SIZE = 10

CATEGORIES = {"person": 1, "dog": 2, "cat": 3}

Box = tuple[int, int, int, int]
Tracks = Sequence[tuple[str, Sequence[Box | None]]]
"""Class, and a rectangle (x, y, width, height) or None for every second."""

EMPTY: Box = (0, 0, 0, 0)
"""An all-zero mask, which is not the same as none."""


def mask(box: Box | None) -> rle.Rle | None:
    if box is None:
        return None
    x, y, width, height = box
    picture = np.zeros((SIZE, SIZE), bool)
    picture[y : y + height, x : x + width] = True
    return rle.encode(picture)


def write(folder: Path, videos: Sequence[tuple[int, Tracks, Tracks]]) -> tuple[Path, Path]:
    """Writes truth and predictions of videos (length, truth, predicted); scores fall from 0.9 in order of the list."""
    truth: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for number, (length, objects, answers) in enumerate(videos, 1):
        for label, boxes in objects:
            assert len(boxes) == length
            truth.append(_entry(number, label, boxes) | {"id": len(truth) + 1, "iscrowd": 0})
        for label, boxes in answers:
            predicted.append(_entry(number, label, boxes) | {"score": round(0.9 - 0.01 * len(predicted), 2)})
    document = {
        "videos": [
            {"id": n, "height": SIZE, "width": SIZE, "length": length,
             "file_names": [f"video{n}/{t}.jpg" for t in range(length)]}
            for n, (length, _, _) in enumerate(videos, 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
        "annotations": truth,
    }  # fmt: skip
    paths = folder / "truth.json", folder / "predictions.json"
    for path, content in zip(paths, (document, predicted), strict=True):
        path.write_text(json.dumps(content))
    return paths


def make_crowds(truth: Path, *places: int) -> None:
    """Marks objects as crowds, by their places in the list of all videos'."""
    document = json.loads(truth.read_text())
    for place in places:
        document["annotations"][place]["iscrowd"] = 1
    truth.write_text(json.dumps(document))


def score(folder: Path, mode: Mode, *videos: tuple[int, Tracks, Tracks]) -> dict[str, Any]:
    """Scores of videos (length, truth, predicted)."""
    return evaluate(*write(folder, videos), mode=mode)


def percent(share: float) -> float:
    return round(100 * share, 2)


def _entry(video: int, label: str, boxes: Sequence[Box | None]) -> dict[str, Any]:
    return {"video_id": video, "category_id": CATEGORIES[label], "segmentations": [mask(box) for box in boxes]}
