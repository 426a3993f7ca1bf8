"""COCO's JSON: one document for all videos, in either of the two ways in which it is used for them.

*YTVIS*: `videos` with `file_names`, annotations with one mask a frame in `segmentations`; AVISeg's own form, with the
two fields of ours (`docs/formats.md`).
*COCO*: `images`, each with its annotations. What makes images a video is `video_id` with `frame_id` (COCO-VID, TAO), or
else the folder that they lie in; what makes annotations an object is `track_id` or `instance_id`, or else nothing does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from avis_stream.data import rle
from avis_stream.data.annotations import read_json
from avis_stream.data.aviseg import number_of
from avis_stream.data.labels.video import (
    LabelledObject,
    LabelledVideo,
    TrackBook,
    field_of,
    folder_names,
)
from avis_stream.data.rle import Rle
from avis_stream.errors import DataError


def read_ytvis(path: Path) -> Iterator[LabelledVideo]:
    """Videos of a YTVIS, OVIS or AVISeg document.

    Raises:
        DataError: The file is broken or of another form.
    """
    document = read_json(path)
    names = _categories(document, path)
    tracks, never_heard = (_by_video(document, kind, path) for kind in ("annotations", "silent_annotations"))
    videos = field_of(document, "videos", path, "the document")
    images = [_image_files(video, path, f"videos[{index}]") for index, video in enumerate(videos)]
    called = folder_names([files[0].rpartition("/")[0] for files in images])
    for index, (video, files, own_name) in enumerate(zip(videos, images, called, strict=True)):
        where = f"videos[{index}]"
        width, height = (int(field_of(video, side, path, where)) for side in ("width", "height"))
        number, of = field_of(video, "id", path, where), f"an annotation of {where}"
        objects, silent = [], []
        for entry in tracks[number]:
            masks = _masks(field_of(entry, "segmentations", path, of), height, width)
            name = _name(names, field_of(entry, "category_id", path, of), path, of)
            objects.append(LabelledObject(name, masks, *_crowd_and_visible(entry, height, width)))
        for entry in never_heard[number]:
            name = _name(names, field_of(entry, "category_id", path, of), path, of)
            silent.append(LabelledObject(name, {}, *_crowd_and_visible(entry, height, width)))
        own_name = own_name or str(number)
        yield LabelledVideo(own_name, width, height, files, tuple(objects), tuple(silent), tuple(names.values()))


def _crowd_and_visible(entry: Mapping[str, Any], height: int, width: int) -> tuple[bool, dict[int, Rle] | None]:
    visible = entry.get("visible_segmentations")
    return bool(entry.get("iscrowd", 0)), None if visible is None else _masks(visible, height, width)


def _by_video(document: Mapping[str, Any], kind: str, path: Path) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(document.get(kind) or ()):
        found[field_of(entry, "video_id", path, f"{kind}[{index}]")].append(entry)
    return found


def _masks(stored: Sequence[Any], height: int, width: int) -> dict[int, Rle]:
    """By frame, those that have pixels: without any it is silence."""
    outlined = {t: rle.as_rle(mask, height, width) for t, mask in enumerate(stored) if mask}
    return {t: mask for t, mask in outlined.items() if rle.area(mask)}


def _image_files(video: Mapping[str, Any], path: Path, where: str) -> tuple[str, ...]:
    files = tuple(_slashes(str(name)) for name in field_of(video, "file_names", path, where))
    if not files:
        raise DataError(f"{path}: {where}.file_names is empty; a video needs images")
    return files


def read_coco(path: Path) -> Iterator[LabelledVideo]:
    """Videos of a document whose annotations belong to images.

    Raises:
        DataError: The file is broken or of another form, or images of one video differ in size or leave frames out.
    """
    document = read_json(path)
    names = _categories(document, path)
    named = {entry["id"]: str(entry.get("name", entry["id"])) for entry in document.get("videos") or ()}
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    paths: dict[Any, str] = {}
    for index, image in enumerate(field_of(document, "images", path, "the document")):
        folder = _slashes(str(field_of(image, "file_name", path, f"images[{index}]"))).rpartition("/")[0]
        video = image.get("video_id")
        key = ("folder", folder) if video is None else ("video", video)
        groups[key].append(image)
        paths[key] = folder if video is None else named.get(video, str(video))
    by_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(document.get("annotations") or ()):
        by_image[field_of(entry, "image_id", path, f"annotations[{index}]")].append(entry)
    for images, name in zip(groups.values(), folder_names(list(paths.values())), strict=True):
        images.sort(key=_order)
        _require_every_frame(images, name, path)
        sizes = {(int(image["width"]), int(image["height"])) for image in images}
        if len(sizes) > 1:
            raise DataError(f"{path}: images of {name or 'one folder'} differ in size ({sorted(sizes)[:3]}, ...)")
        ((width, height),) = sizes
        book = TrackBook()
        for t, image in enumerate(images):
            for entry in by_image[image["id"]]:
                where = f"annotation {entry.get('id')}"
                key = entry.get("track_id", entry.get("instance_id"))
                mask = rle.as_rle(field_of(entry, "segmentation", path, where), height, width)
                label = _name(names, field_of(entry, "category_id", path, where), path, where)
                alone = ("alone", entry.get("id"), t)
                book.add(alone if key is None else key, label, t, mask, crowd=bool(entry.get("iscrowd", 0)))
        files = tuple(_slashes(str(image["file_name"])) for image in images)
        classes = tuple(names.values())
        yield LabelledVideo(name or path.stem, width, height, files, book.objects(), classes=classes)


def _require_every_frame(images: Sequence[Mapping[str, Any]], name: str, path: Path) -> None:
    """Each picture is a second: one that is left out would move all after it against the sound."""
    numbers = [image.get("frame_id", image.get("frame_index")) for image in images]
    if None in numbers:
        return
    steps = [(int(after) - int(before), before, after) for before, after in pairwise(numbers)]
    usual = min((step for step, *_ in steps), default=0)
    longest, before, after = max(steps, default=(0, 0, 0))
    if usual > 0 and longest > 1.5 * usual:  # TAO's seconds are 29 or 30 frames of film
        raise DataError(
            f"{path}: {name or 'one folder'} has frame {after} after {before}, others follow by {usual}; list every "
            "frame, also those without objects, or the sound would belong to other pictures"
        )


def ytvis_document(videos: Sequence[LabelledVideo], categories: Mapping[int, str]) -> dict[str, Any]:
    """Videos as one document, ids from 1; `categories`: names of all classes there are by id."""
    numbers = {name: number for number, name in categories.items()}
    document: dict[str, Any] = {
        "info": {"description": "labels of sounding objects"},
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "videos": [],
        "annotations": [],
    }
    for number, video in enumerate(videos, 1):
        length = len(video.images)
        document["videos"].append(
            {"id": number, "width": video.width, "height": video.height, "length": length,
             "file_names": list(video.images)}
        )  # fmt: skip
        for own in video.objects:
            masks = [own.masks.get(t) for t in range(length)]
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    **_common(number, video, own, numbers),
                    "segmentations": masks,
                    "bboxes": [None if mask is None else rle.box(mask) for mask in masks],
                    "areas": [None if mask is None else rle.area(mask) for mask in masks],
                    **_visible(own, length),
                }
            )
        for own in video.silent:
            entry = {**_common(number, video, own, numbers), **_visible(own, length)}
            document.setdefault("silent_annotations", []).append(entry)
    return document


def _common(number: int, video: LabelledVideo, own: LabelledObject, categories: Mapping[str, int]) -> dict[str, Any]:
    return {
        "video_id": number, "category_id": categories[own.class_name], "iscrowd": int(own.crowd),
        "width": video.width, "height": video.height,
    }  # fmt: skip


def _visible(own: LabelledObject, length: int) -> dict[str, Any]:
    return {} if own.visible is None else {"visible_segmentations": [own.visible.get(t) for t in range(length)]}


def _categories(document: Any, path: Path) -> dict[Any, str]:
    entries = field_of(document, "categories", path, "the document")
    return {field_of(e, "id", path, f"categories[{n}]"): str(e.get("name", e["id"])) for n, e in enumerate(entries)}


def _name(names: Mapping[Any, str], category: Any, path: Path, where: str) -> str:
    if category not in names:
        raise DataError(f"{path}: {where} is of category {category!r}, which the document does not list")
    return names[category]


def _slashes(name: str) -> str:
    """A path as it is written everywhere but on Windows."""
    return name.replace("\\", "/")


def _order(image: Mapping[str, Any]) -> tuple[int, str]:
    file = Path(_slashes(str(image["file_name"])))
    frame = image.get("frame_id", image.get("frame_index", number_of(file)))
    return (0 if frame is None else int(frame), file.name)
