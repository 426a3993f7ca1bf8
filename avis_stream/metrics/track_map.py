"""TrackMAP, video mAP: average precision of whole tracks by their overlap in space and time.

Source: YouTube-VIS evaluation (Yang et al., 2019) as TrackEval has it, with the area ranges of the official AVISeg
evaluator; COCO's rules for ignored tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avis_stream.metrics.alignment import EPS
from avis_stream.metrics.pairs import BoolArray, FloatArray, IntArray, VideoPair

THRESHOLDS: FloatArray = np.arange(0.5, 0.96, 0.05)
"""The 10 track overlaps at which precision is measured."""

AREA_RANGES = {"all": (0.0, np.inf), "s": (0.0, 128.0**2), "m": (128.0**2, 256.0**2), "l": (256.0**2, 1e10)}
"""Mean pixels per frame, both ends included."""

_RECALLS = np.linspace(0.0, 1.0, 101)

_NONE = -1.0
"""Stands for a score without ground truth, as in the official tables."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackMatches:
    """Predicted tracks of one class in one video, best score first, and what became of them in each area range."""

    score: FloatArray
    """[P]."""
    matched: BoolArray
    """[4, 10, P]."""
    ignored: BoolArray
    """[4, 10, P], counts neither as right nor as wrong."""
    wanted: BoolArray
    """[4, G], ground truth tracks that count."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackCurves:
    """Average precision and recall of one class, -1 where no ground truth counts."""

    precision: FloatArray
    """[4, 10], by area range and threshold."""
    recall: FloatArray
    """[4, 10]."""


def match_tracks(pair: VideoPair, *, official: bool) -> TrackMatches:
    """Matches one video's tracks of one class, greedily by score, in each area range.

    Args:
        pair: The video, tracks of one class only.
        official: Let the first track of the data set take an object without blocking it for others: official code takes
            id 0 for "not matched yet" (quirk Q26). And let crowds be matched as single objects are, by one track each;
            otherwise as many tracks as lie on one are ignored.
    """
    order = np.argsort(-pair.predicted.score, kind="mergesort")
    overlaps = pair.track_iou(crowds_hold_many=not official).T[order]  # [P, G]
    blocks = np.ones((len(order), len(pair.truth)), bool)
    blocks &= pair.predicted.id[order, None] > 0 if official else ~pair.truth.crowd
    shape = (len(AREA_RANGES), len(THRESHOLDS), len(order))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    wanted = np.zeros((len(AREA_RANGES), len(pair.truth)), bool)
    for n, (low, high) in enumerate(AREA_RANGES.values()):
        wanted[n] = _within(pair.truth.mean_area, low, high) & ~pair.truth.crowd
        out_of_range = ~_within(pair.predicted.mean_area[order], low, high)
        last = np.argsort(~wanted[n], kind="mergesort")  # tracks that do not count come last
        for k, threshold in enumerate(THRESHOLDS):
            found = _greedy(overlaps[:, last], wanted[n][last], blocks[:, last], threshold)
            matched[n, k] = found >= 0
            ignored[n, k] = np.where(found >= 0, ~np.append(wanted[n][last], False)[found], out_of_range)
    return TrackMatches(pair.predicted.score[order], matched, ignored, wanted)


def _greedy(overlaps: FloatArray, wanted: BoolArray, blocks: BoolArray, threshold: float) -> IntArray:
    """Column matched by each row [P], -1 for none: each row takes the best free column, wanted ones before others.

    Whether it is free no more says `blocks` [P, G].
    """
    found = np.full(len(overlaps), -1)
    taken = np.zeros(len(wanted), bool)
    for row, own in enumerate(overlaps):
        best = min(threshold, 1 - 1e-10)
        for column in np.flatnonzero(~taken & (own >= best - EPS)):
            if found[row] >= 0 and wanted[found[row]] and not wanted[column]:
                break
            if own[column] >= best - EPS:
                best, found[row] = own[column], column
        if found[row] >= 0:
            taken[found[row]] = blocks[row, found[row]]
    return found


def track_curves(videos: Sequence[TrackMatches]) -> TrackCurves:
    """Precision and recall of one class over all videos, tracks ranked by score."""
    shape = (len(AREA_RANGES), len(THRESHOLDS))
    precision, recall = np.full(shape, _NONE), np.full(shape, _NONE)
    if not videos:
        return TrackCurves(precision, recall)
    order = np.argsort(-np.concatenate([video.score for video in videos]), kind="mergesort")
    matched = np.concatenate([video.matched for video in videos], axis=2)[..., order]
    ignored = np.concatenate([video.ignored for video in videos], axis=2)[..., order]
    right = (matched & ~ignored).cumsum(axis=2)
    wrong = (~matched & ~ignored).cumsum(axis=2)
    for n, objects in enumerate(sum(video.wanted.sum(axis=1) for video in videos)):
        if not objects:
            continue
        for k in range(len(THRESHOLDS)):
            precision[n, k] = interpolated_precision(right[n, k], wrong[n, k], objects)
            recall[n, k] = right[n, k, -1] / objects if right.shape[2] else 0.0
    return TrackCurves(precision, recall)


def interpolated_precision(right: IntArray, wrong: IntArray, wanted: int) -> float:
    """Mean over 101 recalls of the best precision that is reached there or later.

    Args:
        right: [D], right answers among the best d.
        wrong: [D], wrong ones.
        wanted: Objects there are, at least 1.
    """
    precision = right / (right + wrong + np.spacing(1))
    best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best_from_here[np.searchsorted(right / wanted, _RECALLS, side="left")].mean())


def average_over_classes(classes: Sequence[TrackCurves]) -> dict[str, float | None]:
    """AP_all, AP_s, AP_m, AP_l and AR_all in [0, 1]: mean over classes with ground truth, then over thresholds."""
    scores = {
        f"AP_{name}": _mean(np.array([curves.precision[n] for curves in classes])) for n, name in enumerate(AREA_RANGES)
    }
    return scores | {"AR_all": _mean(np.array([curves.recall[0] for curves in classes]))}


def _mean(curves: FloatArray) -> float | None:
    """Mean of [classes, 10] without classes that have no ground truth; None if none has."""
    counts = curves[(curves > _NONE).all(axis=1)] if curves.size else curves
    return float(counts.mean(axis=0).mean()) if len(counts) else None


def _within(area: FloatArray, low: float, high: float) -> BoolArray:
    return np.asarray((area >= low - EPS) & (area <= high + EPS))
