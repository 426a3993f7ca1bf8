"""A tiny data set in AVISeg's layout, with everything that can be in one."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH, LENGTH = 24, 32, 4

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
SQUARE_RLE = {"size": [HEIGHT, WIDTH], "counts": [50] + [10, 14] * 9 + [10, HEIGHT * WIDTH - 50 - 24 * 9 - 10]}
"""The same as uncompressed run lengths, column by column."""


def truth() -> dict[str, Any]:
    """Two videos: a dog that barks in seconds 0 and 1, and a person over a piano; never the same list twice."""
    document = {
        "videos": [
            {"id": n, "height": HEIGHT, "width": WIDTH, "length": LENGTH,
             "file_names": [f"{name}/{t}.jpg" for t in range(LENGTH)]}
            for n, name in ((1, "yard"), (2, "hall"))
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 6, "name": "piano"}, {"id": 14, "name": "dog"}],
        "annotations": [
            {"id": 1, "video_id": 1, "category_id": 14, "iscrowd": 0, "height": HEIGHT, "width": WIDTH,
             "segmentations": [SQUARE, SQUARE_RLE, None, None], "areas": [100, 100, None, None],
             "bboxes": [[2, 2, 10, 10], [2, 2, 10, 10], None, None],
             "visible_segmentations": [SQUARE, SQUARE, SQUARE, None]},
            {"id": 2, "video_id": 2, "category_id": 6, "iscrowd": 0, "segmentations": [SQUARE] * 4},
            {"id": 3, "video_id": 2, "category_id": 1, "iscrowd": 0, "segmentations": [None, SQUARE, SQUARE, None]},
        ],
    }  # fmt: skip
    copied: dict[str, Any] = json.loads(json.dumps(document))
    return copied


def write_set(root: Path, split: str = "test", document: Any = None) -> Path:
    """Writes annotations, images, sound, features of the first video and earlier images of the second."""
    folder = root / split
    document = truth() if document is None else document
    folder.mkdir(parents=True, exist_ok=True)
    (root / f"{split}.json").write_text(json.dumps(document))
    for number, name in enumerate(("yard", "hall")):
        for kind in ("JPEGImages", "PrevImages")[: number + 1]:
            (folder / kind / name).mkdir(parents=True)
            for t in range(LENGTH):
                shade = (40 * t, 100 * number, 200 if kind == "PrevImages" else 0)
                Image.new("RGB", (WIDTH, HEIGHT), shade).save(folder / kind / name / f"{t}.jpg")
        write_wav(folder / "WAVAudios" / f"{name}.wav", LENGTH)
    (folder / "FEATAudios").mkdir()
    np.save(folder / "FEATAudios" / "yard.npy", np.ones((LENGTH, 128), np.float32))
    return root


def write_wav(path: Path, seconds: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.zeros(int(seconds * rate), np.int16).tobytes())


def predictions() -> list[dict[str, Any]]:
    """The dog found, the piano found without the person."""
    return [
        {"video_id": 1, "category_id": 14, "score": 0.9, "segmentations": [SQUARE_RLE, SQUARE_RLE, None, None]},
        {"video_id": 2, "category_id": 6, "score": 0.8, "segmentations": [SQUARE_RLE] * 4},
    ]
