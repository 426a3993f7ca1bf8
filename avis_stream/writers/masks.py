"""`run --save-masks`: every mask of a sounding object, as pictures or as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from avis_stream.data import rle
from avis_stream.types import AVPair, OnlineResult
from avis_stream.writers.base import Pending


class PngMaskWriter:
    """A folder `id_0001/000012.png`, identity by frame: 255 on the object, 0 elsewhere; silent frames have no file."""

    def __init__(self, folder: str | Path) -> None:
        self._pending = Pending(folder)
        self._pending.path.mkdir()

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Writes one picture per sounding identity."""
        for row, track_id in enumerate(result.track_id.tolist()):
            if result.sounding[row] and result.mask[row].any():
                folder = self._pending.path / f"id_{track_id:04d}"
                folder.mkdir(exist_ok=True)
                picture = Image.fromarray(result.mask[row].cpu().numpy()).convert("1")
                picture.save(folder / f"{result.frame_id:06d}.png")

    def close(self) -> None:
        """Gives the folder its name."""
        self._pending.commit()

    def abort(self) -> None:
        """Removes the folder."""
        self._pending.discard()


class RleMaskWriter:
    """One COCO file: frames as `images`, masks as `annotations` with `track_id`; opens in COCO tools as it is."""

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        self._pending = Pending(path)
        self._classes = classes
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame."""
        height, width = pair.frame.image.shape[1:]
        image_id = len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "file_name": f"{result.frame_id:06d}",
                "width": int(width),
                "height": int(height),
                "pts": round(result.pts_seconds, 6),
            }
        )
        for row, track_id in enumerate(result.track_id.tolist()):
            if result.sounding[row] and result.mask[row].any():
                encoded = rle.encode(result.mask[row])
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": image_id,
                        "track_id": track_id,
                        "category_id": int(result.class_id[row]) + 1,
                        "score": round(float(result.score[row]), 4),
                        "segmentation": encoded,
                        "area": rle.area(encoded),
                        "bbox": rle.box(encoded),
                        "iscrowd": 0,
                    }
                )

    def close(self) -> None:
        """Writes the file."""
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(self._classes)]
        document = {"images": self._images, "annotations": self._annotations, "categories": categories}
        self._pending.path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        self._pending.discard()
