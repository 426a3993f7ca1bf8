"""What is wrong with a file in AVISeg's form: every problem, with the field it is in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a data set."""

    path: Path
    field: str
    """Where in the file, e.g. `annotations[3].segmentations`; empty: the file as a whole."""
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.field + ' ' if self.field else ''}{self.text}"


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
    yield from _duplicates(path, "categories", lists["categories"], "name")  # scores are told by it
    known: set[Any] = set()
    for index, category in enumerate(lists["categories"]):
        missing = _wrong_fields(category, {"id": int, "name": str})
        if missing:
            yield Problem(path, f"categories[{index}]", missing)
            continue
        if category["id"] < 1:
            text = f"must be at least 1, got {category['id']}: 0 is no class; `import --from ytvis` counts them anew"
            yield Problem(path, f"categories[{index}].id", text)
        known.add(category["id"])
    for index, entry in enumerate(lists["annotations"]):
        yield from _track_problems(path, f"annotations[{index}]", entry, lengths, known)
    silent = document.get("silent_annotations", [])
    if not isinstance(silent, list):
        yield Problem(path, "silent_annotations", f"must be a list or left out, got {_kind(silent)}")
        return
    for index, entry in enumerate(silent):
        where = f"silent_annotations[{index}]"
        yield from _track_problems(path, where, entry, lengths, known, "visible_segmentations")


def prediction_problems(
    path: Path, document: Any, lengths: Mapping[int, int], categories: Iterable[int]
) -> Iterator[Problem]:
    """Everything that keeps a predictions document from being scored against a truth.

    Args:
        path: Of the document, to name it.
        document: As parsed.
        lengths: Frames by video id of the truth.
        categories: Ids of the truth.
    """
    if not isinstance(document, list):
        yield Problem(path, "", f"must be a list of predictions, got {_kind(document)}")
        return
    known = set(categories)
    for index, entry in enumerate(document):
        yield from _track_problems(path, f"[{index}]", entry, lengths, known)
        score = entry.get("score") if isinstance(entry, dict) else 0.0
        if not isinstance(score, int | float) or not math.isfinite(score):
            yield Problem(path, f"[{index}].score", f"must be a finite number, got {_kind(score)}")
        by_frame = entry.get("frame_scores") if isinstance(entry, dict) else None
        for frame, score in enumerate(by_frame if isinstance(by_frame, list) else ()):
            if not isinstance(score, int | float) or not math.isfinite(score):
                yield Problem(path, f"[{index}].frame_scores[{frame}]", f"must be a finite number, got {_kind(score)}")


def _track_problems(
    path: Path,
    where: str,
    entry: Any,
    lengths: Mapping[Any, int],
    categories: set[Any],
    masks: str = "segmentations",
) -> Iterator[Problem]:
    """What is wrong with one object; `masks` is the field that must be there."""
    missing = _wrong_fields(entry, {"video_id": int, "category_id": int, masks: list})
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
    for name in ("segmentations", "areas", "bboxes", "visible_segmentations", "frame_scores"):
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


def _duplicates(path: Path, name: str, entries: list[Any], field: str = "id") -> Iterator[Problem]:
    values = (entry.get(field) for entry in entries if isinstance(entry, dict))
    for value, count in Counter(value for value in values if isinstance(value, int | str)).items():
        if count > 1:
            yield Problem(path, name, f"{field} {value} occurs {count} times")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:30]!r}"


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 8 else f"{values[0]} to {values[-1]}"
