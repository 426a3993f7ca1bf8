"""Scores answers of other systems: what sounds, where, from when to when. Seconds, not tracks.

A file is a JSON list of answers, each about an interval of one video:

    {"video": "v12" or "video_id": 12, "label": "dog" or "category_id": 14, "interval": [3, 7],
     "box": [x, y, width, height] or "segmentation": {...} or neither}

A second counts as answered if the interval covers more than half of it. Systems like these know no identity, so objects
are matched second by second; scored this way our own predictions are the fair comparison (`answers_of_predictions`).
Crowds are no objects, and answers on them do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Predictions, Track, Video
from avis_stream.errors import DataError
from avis_stream.metrics.alignment import ALPHAS, assign
from avis_stream.metrics.fsla import MULTI, FrameVerdicts, pooled_fsla
from avis_stream.metrics.pairs import BoolArray, FloatArray, is_on_crowd

_AT_HALF = 9
"""Index of the threshold 0.5."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Something that is said to sound in one second."""

    category: int
    """0: a label that the data set does not have; never right."""
    place: Any = None
    """Run lengths, or a box [x, y, width, height]; None: not said."""


Answers = Mapping[int, Sequence[Sequence[Answer]]]
"""By video id, then by second."""


def is_answers(document: Any) -> bool:
    """Whether a parsed file holds such answers, not predictions in AVISeg's form."""
    return isinstance(document, list) and any(isinstance(entry, dict) and "interval" in entry for entry in document)


def parse_answers(path: Path, document: Any, truth: Annotations) -> Answers:
    """Sorts answers by video and second; `path` names the file in errors.

    Raises:
        DataError: An answer lacks something or speaks of a video that is not there; the message names it.
    """
    videos = {video.id: video for video in truth.videos}
    names = {video.name: video for video in truth.videos}
    categories = {_plain(name): category for category, name in truth.categories.items()}
    found: dict[int, list[list[Answer]]] = {v.id: [[] for _ in range(v.length)] for v in truth.videos}
    for n, entry in enumerate(document):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: [{n}] must be an object, got {str(entry)[:40]!r}")
        video = names.get(str(entry.get("video"))) or videos.get(_number(path, n, entry, "video_id"))
        if video is None:
            raise DataError(f"{path}: [{n}] must name a video of {truth.path.name} by video or video_id")
        category = categories.get(_plain(str(entry.get("label", "")))) or _number(path, n, entry, "category_id")
        answer = Answer(int(category) if category in truth.categories else 0, _place(path, n, entry, video))
        for t in _seconds(path, n, entry, video.length):
            found[video.id][t].append(answer)
    return found


def _number(path: Path, n: int, entry: Mapping[str, Any], name: str) -> Any:
    """An id of an answer; None where it gives none."""
    value = entry.get(name)
    if value is not None and not isinstance(value, int | float):
        raise DataError(f"{path}: [{n}].{name} must be a number, got {str(value)[:40]!r}")
    return value


def _plain(label: str) -> str:
    """A class's name as it is compared: "Lawn Mower" is `lawn_mower`."""
    return label.strip().lower().replace(" ", "_")


def answers_of_predictions(truth: Annotations, predictions: Predictions) -> Answers:
    """Our own predictions in the same form: every mask that is not empty is an answer about its second."""
    return {video.id: _by_second(video, predictions.get(video.id, ())) for video in truth.videos}


def _by_second(video: Video, tracks: Iterable[Track]) -> list[list[Answer]]:
    seconds: list[list[Answer]] = [[] for _ in range(video.length)]
    for track in tracks:
        for t, mask in enumerate(track.rles(video.height, video.width)):
            if mask is not None and rle.area(mask):
                seconds[t].append(Answer(track.category_id, mask))
    return seconds


def score_answers(truth: Annotations, answers: Answers, *, boxes: bool | None = None) -> dict[str, float | int | None]:
    """Scores answers second by second.

    Args:
        truth: What sounds.
        answers: What is said to.
        boxes: Compare the boxes around masks instead of the masks. None: if any answer has a box only.
    Returns:
        In percent with two decimals: FA FAn FAs FAm and their counts, as in FSLA but matched within each second;
        `labels`: seconds with the right classes, as many of each as sound, wherever they are said to be; `precision`
        and `recall` of single answers at IoU 0.5.
    """
    if boxes is None:
        boxes = any(_is_box(a.place) for video in answers.values() for second in video for a in second)
    verdicts, labels = [], []
    hits = shown = wanted = 0
    for video in truth.videos:
        own = truth.tracks[video.id]
        objects, crowds = (_by_second(video, [t for t in own if t.crowd == many]) for many in (False, True))
        asked = [_asked_about(*second, boxes) for second in zip(objects, crowds, answers[video.id], strict=True)]
        right = np.zeros((video.length, len(ALPHAS)), bool)
        for t, (real, said) in enumerate(zip(objects, asked, strict=True)):
            iou = _overlaps(real, said, boxes)  # [G, P], 0 between classes
            rows, columns = assign(iou)
            passes = iou[rows, columns][:, None] > ALPHAS  # [pairs, 19]
            right[t] = (passes.sum(axis=0) == len(real)) & (len(said) == len(real))
            labels.append(sorted(a.category for a in real) == sorted(a.category for a in said))
            hits += int(passes[:, _AT_HALF].sum())
            shown += len(said)
            wanted += len(real)
        verdicts.append(_verdicts(video, objects, asked, right))
    scores: dict[str, float | int | None] = {
        key: _percent(value) if isinstance(value, float) else value
        for key, value in pooled_fsla(verdicts).summary().items()
    }
    scores["labels"] = _percent(float(np.mean(labels)))
    scores["precision"] = _percent(hits / shown if shown else None)
    scores["recall"] = _percent(hits / wanted if wanted else None)
    return scores


def _asked_about(
    objects: Sequence[Answer], crowds: Sequence[Answer], said: Sequence[Answer], boxes: bool
) -> Sequence[Answer]:
    """The answers of a second that are asked about, where who of many sounds is not.

    One goes that is shown on a crowd (`is_on_crowd`). Of those without a place so many of a crowd's class go as there
    are more than objects of it.
    """
    many = {crowd.category for crowd in crowds}
    if not many:
        return said
    gone = is_on_crowd(_overlaps(crowds, said, boxes, of_answer=True), _overlaps(objects, said, boxes))
    kept = [answer for answer, is_gone in zip(said, gone, strict=True) if answer.place is not None and not is_gone]
    missing = Counter(own.category for own in objects) - Counter(answer.category for answer in kept)
    for answer in said:
        if answer.place is None and (answer.category not in many or missing[answer.category] > 0):
            kept.append(answer)
            missing[answer.category] -= 1
    return kept


def _verdicts(
    video: Video, objects: Sequence[Sequence[Answer]], said: Sequence[Sequence[Answer]], right: BoolArray
) -> FrameVerdicts:
    sounding = np.array([len(real) for real in objects], np.int64)
    return FrameVerdicts(
        name=video.name,
        kind=np.minimum(sounding, MULTI),
        right=right,
        categories=tuple(frozenset(a.category for a in real) for real in objects),
        sounding=sounding,
        shown=np.array([len(second) for second in said], np.int64),
    )


def _overlaps(real: Sequence[Answer], said: Sequence[Answer], boxes: bool, *, of_answer: bool = False) -> FloatArray:
    """IoU [G, P], 0 between classes and where an answer has no place; or the share of the answer that is in common."""
    iou = np.zeros((len(real), len(said)))
    for p, answer in enumerate(said):
        rows = [g for g, own in enumerate(real) if own.category == answer.category]
        if answer.place is None or not rows:
            continue
        places = [real[g].place for g in rows]
        if boxes:
            places, place = [_box(place) for place in places], _box(answer.place)
        else:
            place = answer.place
        # The second list may be of crowds; the first is then measured by itself.
        iou[rows, p] = coco.iou([place], places, [int(of_answer)] * len(places))[0]
    return iou


def _seconds(path: Path, n: int, entry: Mapping[str, Any], length: int) -> Iterable[int]:
    interval = entry.get("interval")
    if (
        not isinstance(interval, list)
        or len(interval) != 2
        or not all(isinstance(end, int | float) for end in interval)
        or not interval[0] < interval[1]
    ):
        raise DataError(f"{path}: [{n}].interval must be [begin, end] in seconds, got {str(interval)[:40]!r}")
    return [t for t in range(length) if min(t + 1, interval[1]) - max(t, interval[0]) > 0.5]


def _place(path: Path, n: int, entry: Mapping[str, Any], video: Video) -> Any:
    mask, box = entry.get("segmentation"), entry.get("box")
    if mask is not None:
        try:
            own = rle.as_rle(mask, video.height, video.width)
        except (DataError, ValueError, TypeError) as error:
            raise DataError(f"{path}: [{n}].segmentation: {error}") from error
        if own["size"] != [video.height, video.width]:
            raise DataError(f"{path}: [{n}].segmentation is {own['size']}, its video [{video.height}, {video.width}]")
        return own
    if box is None:
        return None
    if not _is_box(box):
        raise DataError(f"{path}: [{n}].box must be [x, y, width, height] in pixels, got {str(box)[:40]!r}")
    return box


def _is_box(place: Any) -> bool:
    return isinstance(place, list) and len(place) == 4 and all(isinstance(value, int | float) for value in place)


def _box(place: Any) -> list[float]:
    return [float(value) for value in place] if isinstance(place, list) else rle.box(place)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
