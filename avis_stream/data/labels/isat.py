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
from avis_stream.data.aviseg import number_of, numbered_images
from avis_stream.data.labels.outlines import outlines
from avis_stream.data.labels.video import LabelledVideo, TrackBook, field_of
from avis_stream.errors import DataError

BACKGROUND = "__background__"


def read_isat(folder: Path, images: Path | None = None) -> Iterator[LabelledVideo]:
    """Videos of a folder of folders of JSON files; a folder that holds JSON files itself is one video.

    An object is one over the frames of its video in which `group` and `category` are the same. A numbered picture
    without a JSON is a frame without objects: ISAT writes none for what nobody opened and saved.

    Args:
        folder: That ISAT saves to.
        images: Where the pictures lie, in the same folders; None: beside the JSON files.
    Raises:
        DataError: There is no such file, one is broken, or sizes differ within a video.
    """
    files = defaultdict(list)
    for path in sorted(folder.rglob("*.json")):
        files[path.parent].append(path)
    if not files:
        raise DataError(f"{folder}: no .json file in it or below; give the folder that ISAT saves to")
    for parent, paths in files.items():
        book, sizes, place = TrackBook(), set(), parent.relative_to(folder)
        files_of = _frames(paths, (folder if images is None else images) / place)
        for t, (_, path, document) in enumerate(files_of):
            if document is None:
                continue
            info = field_of(document, "info", path, "the document")
            width, height = (int(field_of(info, side, path, "info")) for side in ("width", "height"))
            sizes.add((width, height))
            for key, label, mask, crowd in _objects(document, path, (width, height)):
                book.add(key, label, t, rle.encode(mask), crowd=crowd)
        if len(sizes) > 1:
            raise DataError(f"{parent}: images differ in size ({sorted(sizes)[:3]}, ...); one folder must be one video")
        ((width, height),) = sizes
        pictures = tuple(str(place / name) for name, *_ in files_of)
        yield LabelledVideo(parent.name, width, height, pictures, book.objects())


def _frames(paths: Sequence[Path], pictures: Path) -> list[tuple[str, Path, Mapping[str, Any] | None]]:
    """A video's frames in order: the picture's name, its JSON and what that holds, or else the picture and None."""
    frames: list[tuple[str, Path, Mapping[str, Any] | None]] = []
    for path in paths:
        document = read_json(path)
        info = field_of(document, "info", path, "the document")
        frames.append((str(field_of(info, "name", path, "info")), path, document))
    labelled = {number_of(path) for path in paths}
    there = numbered_images(pictures) if pictures.is_dir() else ()
    frames += [(picture.name, picture, None) for picture in there if number_of(picture) not in labelled]
    return sorted(frames, key=lambda frame: (number_of(frame[1]) or 0, frame[1].name))


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
