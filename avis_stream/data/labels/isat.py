"""ISAT's files, one JSON an image: polygons in layers, `group` says which polygons are one object.

Source: files of the ISAT annotation tool (https://github.com/yatengLG/ISAT_with_segment_anything).
A polygon of the class `__background__` cuts what lies in layers below it; of two objects the upper one has the pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avis_stream.data import rle
from avis_stream.data.annotations import read_json
from avis_stream.data.aviseg import number_of
from avis_stream.data.labels.outlines import outlines
from avis_stream.data.labels.video import LabelledVideo, TrackBook, field_of
from avis_stream.errors import DataError

BACKGROUND = "__background__"


def read_isat(folder: Path) -> Iterator[LabelledVideo]:
    """Videos of a folder of folders of JSON files; a folder that holds JSON files itself is one video.

    An object is one over the frames of its video in which `group` and `category` are the same.

    Raises:
        DataError: There is no such file, one is broken, or sizes differ within a video.
    """
    files = defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        files[path.parent].append(path)
    if not files:
        raise DataError(f"{folder}: no .json file in it or below; give the folder that ISAT saves to")
    for parent, paths in files.items():
        paths.sort(key=lambda path: (number_of(path) or 0, path.name))
        book, images, sizes = TrackBook(), [], set()
        for t, path in enumerate(paths):
            document = read_json(path)
            info = field_of(document, "info", path, "the document")
            width, height = (int(field_of(info, side, path, "info")) for side in ("width", "height"))
            sizes.add((width, height))
            images.append(str(Path(parent.relative_to(folder), field_of(info, "name", path, "info"))))
            for key, label, mask, crowd in _objects(document, path, (width, height)):
                book.add(key, label, t, rle.encode(mask), crowd=crowd)
        if len(sizes) > 1:
            raise DataError(f"{parent}: images differ in size ({sorted(sizes)[:3]}, ...); one folder must be one video")
        ((width, height),) = sizes
        yield LabelledVideo(parent.name, width, height, tuple(images), book.objects())


def _objects(
    document: Mapping[str, Any], path: Path, size: tuple[int, int]
) -> Iterator[tuple[tuple[str, int], str, np.ndarray[Any, np.dtype[np.bool_]], bool]]:
    width, height = size
    entries = list(field_of(document, "objects", path, "the document"))
    owner = np.full((height, width), -1, np.int32)
    kinds: list[tuple[str, int]] = []
    crowds: set[tuple[str, int]] = set()
    for index, entry in sorted(enumerate(entries), key=lambda pair: float(pair[1].get("layer", 0))):
        where = f"objects[{index}]"
        points = field_of(entry, "segmentation", path, where)
        if len(points) < 3:
            continue
        flat = [float(value) for point in points for value in point]
        inside = rle.decode(rle.from_polygons([flat], height, width)).numpy()
        label = str(field_of(entry, "category", path, where))
        if label == BACKGROUND:
            owner[inside] = -1
            continue
        kind = (label, int(entry.get("group") or 0))
        if kind not in kinds:
            kinds.append(kind)
        if entry.get("iscrowd"):
            crowds.add(kind)
        owner[inside] = kinds.index(kind)
    for number, kind in enumerate(kinds):
        mask = owner == number
        if mask.any():
            yield kind, kind[0], mask, kind in crowds


def write_isat(folder: Path, video: LabelledVideo) -> None:
    """Writes one JSON an image into an existing folder, named like the image; groups count objects from 1."""
    for t, image in enumerate(video.images):
        objects: list[dict[str, Any]] = []
        for group, own in enumerate(video.objects, 1):
            for hole, polygon in outlines(rle.decode(own.masks[t])) if t in own.masks else ():
                objects.append(_entry(BACKGROUND if hole else own.class_name, group, polygon, len(objects), own.crowd))
        info = {
            "description": "ISAT", "folder": "", "name": Path(image).name,
            "width": video.width, "height": video.height, "depth": 3, "note": "",
        }  # fmt: skip
        (folder / Path(image).with_suffix(".json").name).write_text(
            json.dumps({"info": info, "objects": objects}, indent=1) + "\n", encoding="utf-8"
        )


def _entry(label: str, group: int, polygon: Sequence[tuple[float, float]], layer: int, crowd: bool) -> dict[str, Any]:
    x, y = np.array(polygon).T
    return {
        "category": label,
        "group": group,
        "segmentation": [[round(a, 2), round(b, 2)] for a, b in polygon],
        "area": round(float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2), 2),
        "layer": float(layer + 1),
        "bbox": [round(float(value), 2) for value in (x.min(), y.min(), x.max(), y.max())],
        "iscrowd": int(crowd),
        "note": "",
    }
