"""Everything that is wrong with a data set: annotations, masks, images, sound; each problem with file and field."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.data.annotations import Track, Video, parse_annotations, read_json
from avis_stream.data.aviseg import numbered_images
from avis_stream.data.dataset import DataSplit, annotation_file, set_categories, splits
from avis_stream.data.images import read_image
from avis_stream.data.problems import Problem, structure_problems
from avis_stream.errors import DataError

_AREA_SLACK = 0.02
"""Annotated areas may differ from the mask by this share: polygons are filled in more than one way."""

_BOX_SLACK_PX = 2.0

_SOUND_SLACK_SECONDS = 1.0
"""The last second of a recording may be missing: the official front end fills it with zeros. One that is longer by more
has seconds without a picture, and then perhaps others than the labels mean."""


def data_set_problems(root: str | Path) -> Iterator[Problem]:
    """Looks at every file of every split.

    Raises:
        DataError: `root` is no folder, or has no split.
    """
    root = Path(root)
    names = splits(root)
    if not names:
        annotation_file(root, "train")
    for name in names:
        yield from split_problems(root, name)
    yield from set_categories(root)[1]


def split_problems(root: Path, name: str) -> Iterator[Problem]:
    """Looks at every file of one split."""
    path = annotation_file(root, name)
    try:
        document = read_json(path)
    except DataError as error:
        yield Problem(path, "", str(error).removeprefix(f"{path} ").removeprefix(f"{path}: "))
        return
    broken = list(structure_problems(path, document))
    yield from broken
    if broken:
        return  # the rest would only repeat it
    split = DataSplit(root, name, parse_annotations(path, document))
    yield from _class_problems(path, document)
    where = {entry["id"]: f"videos[{n}]" for n, entry in enumerate(document["videos"])}
    numbers: dict[int, list[int]] = {}
    for n, entry in enumerate(document["annotations"]):
        numbers.setdefault(entry["video_id"], []).append(n)
    for video in split.annotations.videos:
        for n, track in zip(numbers.get(video.id, []), split.annotations.tracks[video.id], strict=True):
            boxes = document["annotations"][n].get("bboxes")
            yield from _mask_problems(path, f"annotations[{n}]", video, track, boxes)
        yield from _image_problems(split, video, where[video.id])
        yield from _sound_problems(split, video)


def _class_problems(path: Path, document: Any) -> Iterator[Problem]:
    """Other classes are allowed; the 26 under other numbers would be scored and trained as the wrong thing."""
    for n, entry in enumerate(document["categories"]):
        official = AVISEG_CLASSES.index(entry["name"]) + 1 if entry["name"] in AVISEG_CLASSES else None
        if official is not None and official != entry["id"] and len(document["categories"]) == len(AVISEG_CLASSES):
            yield Problem(path, f"categories[{n}].id", f"{entry['name']} is {entry['id']}, in AVISeg {official}")


def _mask_problems(path: Path, where: str, video: Video, track: Track, boxes: Any) -> Iterator[Problem]:
    for name, masks in (("segmentations", track.segmentations), ("visible_segmentations", track.visible or ())):
        for t, mask in enumerate(masks):
            if mask is None:
                continue
            found = _wrong_mask(mask, video)
            if found:
                yield Problem(path, f"{where}.{name}[{t}]", found)
            elif name == "segmentations":
                own = rle.as_rle(mask, video.height, video.width)
                area = track.areas[t] if track.areas is not None else None
                if area is not None and abs(area - rle.area(own)) > max(20, _AREA_SLACK * rle.area(own)):
                    yield Problem(path, f"{where}.areas[{t}]", f"is {area}, the mask has {rle.area(own)} pixels")
                box = boxes[t] if boxes is not None else None
                if box is not None and not np.allclose(box, rle.box(own), atol=_BOX_SLACK_PX):
                    yield Problem(path, f"{where}.bboxes[{t}]", f"is {box}, the mask spans {rle.box(own)}")


def _wrong_mask(mask: Any, video: Video) -> str:
    """What is wrong with one mask, as a sentence; empty if nothing."""
    if isinstance(mask, list):
        flat = [value for polygon in mask for value in polygon]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            return "a polygon needs at least three points [x, y, x, y, x, y]"
        if not all(isinstance(value, int | float) for value in flat):
            return "a polygon must be numbers"
        x, y = np.array(flat[::2]), np.array(flat[1::2])
        if min(x.min(), y.min()) < -1 or x.max() > video.width + 1 or y.max() > video.height + 1:
            return f"a polygon leaves the picture of {video.width}x{video.height}"
    elif [int(side) for side in mask["size"]] != [video.height, video.width]:
        return f"size is {mask['size']}, the video's [{video.height}, {video.width}]"
    try:
        own = rle.as_rle(mask, video.height, video.width)
        decoded = coco.decode({"size": own["size"], "counts": own["counts"].encode("ascii")})
    except (DataError, ValueError, TypeError, UnicodeError) as error:
        return f"cannot be read ({error})"
    return "" if decoded.any() else "is a mask without a pixel; silence is null"


def _image_problems(split: DataSplit, video: Video, where: str) -> Iterator[Problem]:
    folder = split.folder / "JPEGImages" / video.name
    if not folder.is_dir():
        yield Problem(folder, "", f"is missing: the images of {where} of {split.annotations.path.name}")
        return
    files = split.files(video)
    if len(files.images) < video.length:
        yield Problem(folder, "", f"has {len(files.images)} images, the annotations say {video.length}")
    for image in (*files.images, *(path for path in files.previous if path is not None)):
        if not image.is_file():
            yield Problem(image, "", f"is missing; {where}.file_names lists it")
            continue
        try:
            _, height, width = read_image(image).shape
        except DataError as error:
            yield Problem(image, "", f"cannot be read as an image ({error.__cause__})")
            continue
        if (width, height) != (video.width, video.height):
            yield Problem(image, "", f"is {width}x{height}, {where} says {video.width}x{video.height}")
    extra = len(numbered_images(folder)) - len(files.images)
    if extra > 0:
        yield Problem(folder, "", f"has {extra} images that {where}.file_names does not list")


def _sound_problems(split: DataSplit, video: Video) -> Iterator[Problem]:
    wav = split.files(video).wav
    features = split.features_file(video)
    if wav is None and features is None:
        expected = split.folder / "WAVAudios" / f"{video.name}.wav"
        yield Problem(expected, "", "is missing, and FEATAudios has no features either: the video has no sound")
    if wav is not None:
        try:
            with wave.open(str(wav)) as sound:
                seconds = sound.getnframes() / sound.getframerate()
        except (wave.Error, EOFError, OSError, ZeroDivisionError) as error:
            yield Problem(wav, "", f"is no WAV of plain samples ({error})")
        else:
            if abs(seconds - video.length) > _SOUND_SLACK_SECONDS:
                yield Problem(wav, "", f"lasts {seconds:.1f} s, its video has {video.length} frames, one a second")
    if features is not None:
        try:
            split.features(video)
        except DataError as error:
            yield Problem(features, "", str(error).removeprefix(f"{features} "))
