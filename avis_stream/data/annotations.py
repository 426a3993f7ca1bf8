"""Annotation and prediction files in AVISeg's form: tracks of one mask or None per second.

Reads what the official code reads (`docs/formats.md`). Of what `problems.py` has against a file the readers
raise the first. Masks stay as they stand in the file until `Track.rles` is asked for them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avis_stream.data.problems import Problem, prediction_problems, structure_problems
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
    frame_scores: tuple[float, ...] | None = None
    """[T], of each mask, where a predictions file says more than one score a track; None: `score` holds for all."""
    id: int | None = None
    crowd: bool = False
    areas: tuple[float | None, ...] | None = None
    """[T], pixels as annotated; None: count them."""
    visible: tuple[Any, ...] | None = None
    """[T], masks of silent seconds too, in sets that have them."""

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
    silent: Mapping[int, tuple[Track, ...]] = field(default_factory=dict)
    """By video id, objects that are seen and never sound, in sets that have them (`silent_annotations`)."""


Predictions = Mapping[int, tuple[Track, ...]]
"""Predicted tracks by video id, in order of the file; videos without any are absent."""


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
    silent: dict[int, list[Track]] = defaultdict(list)
    for entry in document.get("silent_annotations", ()):
        silent[entry["video_id"]].append(
            _track({**entry, "segmentations": [None] * len(entry["visible_segmentations"])})
        )
    return Annotations(
        path=path,
        videos=videos,
        categories={entry["id"]: entry["name"] for entry in document["categories"]},
        tracks={video: tuple(own) for video, own in tracks.items()},
        silent={video: tuple(own) for video, own in silent.items()},
    )


def read_predictions(path: str | Path, truth: Annotations) -> Predictions:
    """Reads a predictions file and holds it against the truth it belongs to.

    Raises:
        DataError: The file is missing or broken, or speaks of videos, classes or frames that the truth does not know.
    """
    return parse_predictions(Path(path), read_json(path), truth)


def parse_predictions(path: Path, document: Any, truth: Annotations) -> Predictions:
    """The same from a document at hand; `path` names it in errors."""
    _refuse(
        path, prediction_problems(path, document, {video.id: video.length for video in truth.videos}, truth.categories)
    )
    tracks: dict[int, list[Track]] = defaultdict(list)
    for entry in document:
        tracks[entry["video_id"]].append(_track(entry))
    return {video: tuple(own) for video, own in tracks.items()}


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
    areas, visible, by_frame = entry.get("areas"), entry.get("visible_segmentations"), entry.get("frame_scores")
    return Track(
        video_id=entry["video_id"],
        category_id=entry["category_id"],
        segmentations=tuple(mask or None for mask in entry["segmentations"]),  # [] and {} are nothing, as officially
        score=float(entry.get("score", 1.0)),
        frame_scores=None if by_frame is None else tuple(float(score) for score in by_frame),
        id=entry.get("id"),
        crowd=bool(entry.get("iscrowd", 0)),
        areas=None if areas is None else tuple(areas),
        visible=None if visible is None else tuple(mask or None for mask in visible),
    )
