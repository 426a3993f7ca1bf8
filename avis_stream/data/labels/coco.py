"""COCO's JSON: one document for all videos, in either of the two ways in which it is used for them.

*YTVIS*: `videos` with `file_names`, annotations with one mask a frame in `segmentations`; AVISeg's own form.
*COCO*: `images`, each with its annotations. What makes images a video is `video_id` with `frame_id` (COCO-VID, TAO), or
else the folder that they lie in; what makes annotations an object is `track_id` or `instance_id`, or else nothing does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avis_stream.data import rle
from avis_stream.data.annotations import read_json
from avis_stream.data.aviseg import number_of
from avis_stream.data.labels.video import (
    LabelledObject,
    LabelledVideo,
    TrackBook,
    class_names,
    field_of,
    folder_names,
)
from avis_stream.errors import DataError


def read_ytvis(path: Path) -> Iterator[LabelledVideo]:
    """Videos of a YTVIS, OVIS or AVISeg document.

    Raises:
        DataError: The file is broken or of another form.
    """
    document = read_json(path)
    names = _categories(document, path)
    tracks: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(document.get("annotations") or ()):
        tracks[field_of(entry, "video_id", path, f"annotations[{index}]")].append(entry)
    videos = field_of(document, "videos", path, "the document")
    images = [_image_files(video, path, f"videos[{index}]") for index, video in enumerate(videos)]
    called = folder_names([files[0].rpartition("/")[0] for files in images])
    for index, (video, files, own_name) in enumerate(zip(videos, images, called, strict=True)):
        where = f"videos[{index}]"
        width, height = (int(field_of(video, side, path, where)) for side in ("width", "height"))
        objects = []
        for entry in tracks[field_of(video, "id", path, where)]:
            of = f"an annotation of {where}"
            stored = field_of(entry, "segmentations", path, of)
            outlined = {t: rle.as_rle(mask, height, width) for t, mask in enumerate(stored) if mask}
            masks = {t: mask for t, mask in outlined.items() if rle.area(mask)}  # without pixels it is silence
            name = _name(names, field_of(entry, "category_id", path, of), path, of)
            objects.append(LabelledObject(name, masks, bool(entry.get("iscrowd", 0))))
        yield LabelledVideo(own_name or str(video["id"]), width, height, files, tuple(objects))


def _image_files(video: Mapping[str, Any], path: Path, where: str) -> tuple[str, ...]:
    files = tuple(_slashes(str(name)) for name in field_of(video, "file_names", path, where))
    if not files:
        raise DataError(f"{path}: {where}.file_names is empty; a video needs images")
    return files


def read_coco(path: Path) -> Iterator[LabelledVideo]:
    """Videos of a document whose annotations belong to images.

    Raises:
        DataError: The file is broken or of another form, or images of one video differ in size.
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
        yield LabelledVideo(name or path.stem, width, height, files, book.objects())


def ytvis_document(videos: Sequence[LabelledVideo], classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Videos as one document, ids from 1; `classes`: all there are, in order (None: those that occur)."""
    names = list(class_names(videos) if classes is None else classes)
    document: dict[str, Any] = {
        "info": {"description": "labels of sounding objects"},
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
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
                    "video_id": number,
                    "category_id": names.index(own.class_name) + 1,
                    "iscrowd": int(own.crowd),
                    "width": video.width,
                    "height": video.height,
                    "segmentations": masks,
                    "bboxes": [None if mask is None else rle.box(mask) for mask in masks],
                    "areas": [None if mask is None else rle.area(mask) for mask in masks],
                }
            )
    return document


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
