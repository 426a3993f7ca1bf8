"""Annotation and prediction files in AVISeg's form: tracks of one mask or None per second.

Reads what the official code reads (avism-reference.md section 12) and says what is wrong with a file:
`structure_problems` lists it all, the readers raise the first. Masks stay as they stand in the file until `Track.rles`
is asked for them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avis_stream.data.rle import Rle, as_rle
from avis_stream.errors import DataError


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a data set."""

    id: int
    name: str
    """The folder of its images, `video` of `video/0.jpg`; the official evaluator calls it the sequence."""
    height: int
    width: int
    length: int
    """Frames, one a second."""
    file_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One object of the truth, or one predicted, through its video."""

    video_id: int
    category_id: int
    """From 1."""
    segmentations: tuple[Any, ...]
    """[T], a mask in any of COCO's forms, or None: silent, hidden or absent."""
    score: float = 1.0
    id: int | None = None
    crowd: bool = False
    areas: tuple[float | None, ...] | None = None
    """[T], pixels as annotated; None: count them."""
    visible: tuple[Any, ...] | None = None
    """[T], masks of silent seconds too, in sets that have them (contract, "Training sets")."""

    def rles(self, height: int, width: int) -> list[Rle | None]:
        """The masks as compressed run lengths [T]."""
        return [None if mask is None else as_rle(mask, height, width) for mask in self.segmentations]


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """The truth about a data set."""

    path: Path
    videos: tuple[Video, ...]
    categories: Mapping[int, str]
    """Name by category id, in order of the file."""
    tracks: Mapping[int, tuple[Track, ...]]
    """By video id, in order of the file; every video has an entry."""


Predictions = Mapping[int, tuple[Track, ...]]
"""Predicted tracks by video id, in order of the file; videos without any are absent."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a data set."""

    path: Path
    field: str
    """Where in the file, e.g. `annotations[3].segmentations`; empty: the file as a whole."""
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.field + ' ' if self.field else ''}{self.text}"


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file.

    Raises:
        DataError: There is no such file, or it breaks off or is no JSON; the message says where.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of a JSON file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; give the path of a JSON file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8, so no JSON either; check which file this is") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no whole JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "write or copy the file again"
        ) from None


def read_annotations(path: str | Path) -> Annotations:
    """Reads a ground truth file.

    Raises:
        DataError: The file is missing, broken or contradicts itself; the message names the field.
    """
    path = Path(path)
    document = read_json(path)
    _refuse(path, structure_problems(path, document))
    return parse_annotations(path, document)


def parse_annotations(path: Path, document: Mapping[str, Any]) -> Annotations:
    """Builds the tracks of a document that `structure_problems` has nothing against."""
    videos = tuple(_video(entry) for entry in document["videos"])
    tracks: dict[int, list[Track]] = {video.id: [] for video in videos}
    for entry in document["annotations"]:
        tracks[entry["video_id"]].append(_track(entry))
    return Annotations(
        path=path,
        videos=videos,
        categories={entry["id"]: entry["name"] for entry in document["categories"]},
        tracks={video: tuple(own) for video, own in tracks.items()},
    )


def read_predictions(path: str | Path, truth: Annotations) -> Predictions:
    """Reads a predictions file and holds it against the truth it belongs to.

    Raises:
        DataError: The file is missing or broken, or speaks of videos, classes or frames that the truth does not know.
    """
    return parse_predictions(Path(path), read_json(path), truth)


def parse_predictions(path: Path, document: Any, truth: Annotations) -> Predictions:
    """The same from a document at hand; `path` names it in errors."""
    _refuse(path, prediction_problems(path, document, truth))
    tracks: dict[int, list[Track]] = defaultdict(list)
    for entry in document:
        tracks[entry["video_id"]].append(_track(entry))
    return {video: tuple(own) for video, own in tracks.items()}


def structure_problems(path: Path, document: Any) -> Iterator[Problem]:
    """Everything that keeps a ground truth document from being read: missing fields, wrong types, loose ends."""
    if not isinstance(document, dict):
        yield Problem(path, "", f"must be an object with videos, categories and annotations, got {_kind(document)}")
        return
    lists: dict[str, list[Any]] = {}
    for name in ("videos", "categories", "annotations"):
        if isinstance(document.get(name), list):
            lists[name] = document[name]
        else:
            yield Problem(path, name, f"must be a list, got {_kind(document.get(name))}; is this the right file?")
    if len(lists) < 3:
        return
    if not lists["videos"]:
        yield Problem(path, "videos", "is empty: there is nothing in this split")
    lengths: dict[Any, int] = {}
    for index, video in enumerate(lists["videos"]):
        where = f"videos[{index}]"
        missing = _wrong_fields(video, {"id": int, "height": int, "width": int, "length": int})
        if missing:
            yield Problem(path, where, missing)
            continue
        if min(video["height"], video["width"], video["length"]) < 1:
            yield Problem(path, where, "height, width and length must be at least 1")
        names = video.get("file_names")
        if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
            yield Problem(path, f"{where}.file_names", "must be a list of strings")
        elif names is not None and len(names) != video["length"]:
            yield Problem(path, f"{where}.file_names", f"has {len(names)} entries, length says {video['length']}")
        lengths[video["id"]] = video["length"]
    yield from _duplicates(path, "videos", lists["videos"])
    yield from _duplicates(path, "categories", lists["categories"])
    known: set[Any] = set()
    for index, category in enumerate(lists["categories"]):
        missing = _wrong_fields(category, {"id": int, "name": str})
        if missing:
            yield Problem(path, f"categories[{index}]", missing)
        else:
            known.add(category["id"])
    for index, entry in enumerate(lists["annotations"]):
        yield from _track_problems(path, f"annotations[{index}]", entry, lengths, known)


def prediction_problems(path: Path, document: Any, truth: Annotations) -> Iterator[Problem]:
    """Everything that keeps a predictions document from being scored against `truth`."""
    if not isinstance(document, list):
        yield Problem(path, "", f"must be a list of predictions, got {_kind(document)}")
        return
    lengths = {video.id: video.length for video in truth.videos}
    for index, entry in enumerate(document):
        yield from _track_problems(path, f"[{index}]", entry, lengths, set(truth.categories))
        if isinstance(entry, dict) and not isinstance(entry.get("score"), int | float):
            yield Problem(path, f"[{index}].score", f"must be a number, got {_kind(entry.get('score'))}")


def _track_problems(
    path: Path, where: str, entry: Any, lengths: Mapping[Any, int], categories: set[Any]
) -> Iterator[Problem]:
    missing = _wrong_fields(entry, {"video_id": int, "category_id": int, "segmentations": list})
    if missing:
        yield Problem(path, where, missing)
        return
    if entry["video_id"] not in lengths:
        yield Problem(path, f"{where}.video_id", f"{entry['video_id']} is no video of this set")
    if entry["category_id"] not in categories:
        yield Problem(
            path,
            f"{where}.category_id",
            f"{entry['category_id']} is no category of this set, which has {_some(sorted(categories))}",
        )
    wanted = lengths.get(entry["video_id"])
    for name in ("segmentations", "areas", "bboxes", "visible_segmentations"):
        values = entry.get(name)
        if values is not None and not isinstance(values, list):
            yield Problem(path, f"{where}.{name}", f"must be a list, got {_kind(values)}")
        elif values is not None and wanted is not None and len(values) != wanted:
            yield Problem(path, f"{where}.{name}", f"has {len(values)} entries, its video {wanted} frames")
    for name in ("segmentations", "visible_segmentations"):
        for frame, mask in enumerate(entry.get(name) or ()):
            if not _is_mask(mask):
                yield Problem(
                    path,
                    f"{where}.{name}[{frame}]",
                    f"must be null, run lengths {{size, counts}} or a list of polygons, got {str(mask)[:40]!r}",
                )


def _is_mask(mask: Any) -> bool:
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        return isinstance(size, list) and len(size) == 2 and isinstance(counts, str | list)
    return mask is None or (isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask))


def _wrong_fields(entry: Any, wanted: Mapping[str, type]) -> str:
    """What a record lacks, as a sentence; empty if nothing."""
    if not isinstance(entry, dict):
        return f"must be an object, got {_kind(entry)}"
    wrong = [
        f"{name} must be {kind.__name__}, got {_kind(entry.get(name))}"
        for name, kind in wanted.items()
        if not isinstance(entry.get(name), kind) or isinstance(entry.get(name), bool)
    ]
    return ", ".join(wrong)


def _duplicates(path: Path, name: str, entries: list[Any]) -> Iterator[Problem]:
    ids = Counter(entry.get("id") for entry in entries if isinstance(entry, dict))
    for value, count in ids.items():
        if count > 1 and value is not None:
            yield Problem(path, name, f"id {value} occurs {count} times")


def _refuse(path: Path, problems: Iterator[Problem]) -> None:
    first = next(problems, None)
    if first is not None:
        more = sum(1 for _ in problems)
        rest = f" (and {more} more {'problem' if more == 1 else 'problems'})" if more else ""
        raise DataError(f"{first}{rest}; correct the file or write it again")


def _video(entry: Mapping[str, Any]) -> Video:
    names = tuple(entry.get("file_names") or ())
    name = names[0].replace("\\", "/").split("/")[0] if names and "/" in names[0].replace("\\", "/") else ""
    return Video(
        id=entry["id"],
        name=name or str(entry["id"]),
        height=entry["height"],
        width=entry["width"],
        length=entry["length"],
        file_names=names,
    )


def _track(entry: Mapping[str, Any]) -> Track:
    areas, visible = entry.get("areas"), entry.get("visible_segmentations")
    return Track(
        video_id=entry["video_id"],
        category_id=entry["category_id"],
        segmentations=tuple(mask or None for mask in entry["segmentations"]),  # [] and {} are nothing, as officially
        score=float(entry.get("score", 1.0)),
        id=entry.get("id"),
        crowd=bool(entry.get("iscrowd", 0)),
        areas=None if areas is None else tuple(areas),
        visible=None if visible is None else tuple(mask or None for mask in visible),
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:30]!r}"


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 8 else f"{values[0]} to {values[-1]}"
