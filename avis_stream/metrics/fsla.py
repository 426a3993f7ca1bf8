"""FSLA, frame-level sound localisation accuracy: the share of seconds in which everything that sounds is found, and
nothing else is shown. Three readings of it: as the official code computes it, as it was meant, and as the paper says.

Source: official `compute_av_loc`, quirks Q6, Q7 and Q23; the paper's Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avis_stream.metrics.alignment import ALPHAS, alignment, assign
from avis_stream.metrics.pairs import BoolArray, FloatArray, IntArray, VideoPair

Mode = Literal["official", "fixed", "paper"]

SILENT, SINGLE, MULTI = 0, 1, 2
"""Kinds of frames by the number of objects that sound: none, one, several."""

SUFFIXES = {SILENT: "n", SINGLE: "s", MULTI: "m"}


@dataclass(frozen=True, slots=True, eq=False)
class FrameVerdicts:
    """Which frames of one video are right."""

    name: str
    kind: IntArray
    """[T], SILENT, SINGLE or MULTI."""
    right: BoolArray
    """[T, 19], at each threshold."""
    categories: tuple[frozenset[int], ...]
    """[T], what sounds."""
    sounding: IntArray
    """[T], how many objects sound."""
    shown: IntArray
    """[T], how many masks are shown."""

    def counts(self, kind: int) -> tuple[IntArray, int]:
        """Right frames of a kind at each threshold [19], and all frames of it."""
        of_kind = self.kind == kind
        return self.right[of_kind].sum(axis=0).astype(np.int64), int(of_kind.sum())


def judge_frames(pair: VideoPair, mode: Mode) -> FrameVerdicts:
    """Says for every frame of a video whether it is right.

    Args:
        pair: The video. `fixed` and `paper` take it `without_empty_masks()`.
        mode: How to judge.
    """
    judge: dict[str, Callable[[VideoPair], BoolArray]] = {
        "official": _official,
        "fixed": _fixed,
        "paper": _paper,
    }
    present, category = pair.truth.present, pair.truth.category
    return FrameVerdicts(
        name=pair.name,
        kind=np.minimum(present.sum(axis=1), MULTI),
        right=judge[mode](pair),
        categories=tuple(frozenset(category[sounding].tolist()) for sounding in present),
        sounding=present.sum(axis=1),
        shown=pair.predicted.present.sum(axis=1),
    )


def _fixed(pair: VideoPair) -> BoolArray:
    """Right: as many masks as objects, and each object overlaps the track that goes with it over the whole video.

    Tracks go together within their class: what is predicted as another class neither helps nor disturbs.
    """
    same = pair.truth.category[:, None] == pair.predicted.category[None, :]  # [G, P]
    return _matched_frames(pair, pair.iou * same)


def _paper(pair: VideoPair) -> BoolArray:
    """As `_fixed`, but tracks go together whatever their class; a frame with a pair of two classes is then wrong."""
    same = pair.truth.category[:, None] == pair.predicted.category[None, :]
    return _matched_frames(pair, pair.iou, allowed=same)


def _matched_frames(pair: VideoPair, iou: FloatArray, allowed: BoolArray | None = None) -> BoolArray:
    truth, predicted = pair.truth.present, pair.predicted.present  # [T, G], [T, P]
    rows, columns = assign(alignment(iou, truth, predicted))
    own = np.zeros(truth.shape)  # overlap of each object with its track
    own[:, rows] = iou[:, rows, columns]
    if allowed is not None:
        own[:, rows] *= allowed[rows, columns]
    found = (own[:, :, None] > ALPHAS) | ~truth[:, :, None]  # [T, G, 19]
    as_many = truth.sum(axis=1) == predicted.sum(axis=1)
    return np.asarray(found.all(axis=1) & as_many[:, None])


def _official(pair: VideoPair) -> BoolArray:
    """The official `compute_av_loc`, oddities included; the numbers of its published results come from here."""
    truth, predicted = pair.truth, pair.predicted
    # Tracks without a single mask are not in the matching, whose numbers are then used on all tracks (below).
    rows_known = np.flatnonzero(truth.present.any(axis=0))
    columns_known = np.flatnonzero(predicted.present.any(axis=0))
    score = alignment(
        pair.iou[:, rows_known][:, :, columns_known], truth.present[:, rows_known], predicted.present[:, columns_known]
    )
    rows, columns = assign(score)
    shown = (~predicted.looks_empty).sum(axis=1)  # [T]; at other sizes than 1280x720 empty masks count as shown
    predicted_classes = set(predicted.category.tolist())  # of the whole video, also of what is empty in this frame
    right = np.zeros((len(shown), len(ALPHAS)), bool)
    for t, sounding in enumerate(truth.present):
        if set(truth.category[sounding].tolist()) != predicted_classes or sounding.sum() != shown[t]:
            continue
        if not sounding.any():
            right[t] = True
        elif sounding.sum() == 1:
            # Rows and columns are swapped: the number of the prediction is the *position* of the object among the
            # columns, which is right only while the permutation is its own inverse.
            g = int(np.flatnonzero(sounding)[0])
            swapped = np.flatnonzero(columns == g)
            if len(swapped):
                right[t] = pair.iou[t, g, columns_known[swapped[0]]] > ALPHAS
        else:
            # `rows` count the tracks that have masks, but are used to number all tracks of the video.
            p = columns_known[columns]
            agree = truth.category[rows] == predicted.category[p]
            both_silent = ~truth.present[t, rows] & predicted.looks_empty[t, p]
            overlap = pair.iou[t, rows, p][:, None] > ALPHAS  # [pairs, 19]
            right[t] = (agree[:, None] & (both_silent[:, None] | overlap)).all(axis=0)
    return right


@dataclass(frozen=True, slots=True)
class FslaScores:
    """FSLA of a data set, in [0, 1]; None where there is no such frame."""

    total: float | None
    by_kind: tuple[float | None, float | None, float | None]
    """Silent, single, multi."""
    right: tuple[int, int, int]
    """Right frames of each kind, mean over thresholds, rounded down."""
    frames: tuple[int, int, int]

    def summary(self) -> dict[str, float | int | None]:
        """Under the names of the official evaluator: FA, FAn, FAn_count, FAn_all, FAs, ..."""
        values: dict[str, float | int | None] = {"FA": self.total}
        for kind, suffix in SUFFIXES.items():
            values[f"FA{suffix}"] = self.by_kind[kind]
            values[f"FA{suffix}_count"] = self.right[kind]
            values[f"FA{suffix}_all"] = self.frames[kind]
        return values


def pooled_fsla(videos: Iterable[FrameVerdicts]) -> FslaScores:
    """FSLA over all frames of all videos alike, then the mean over thresholds. `official` and `fixed`."""
    right = np.zeros((3, len(ALPHAS)))
    frames = np.zeros(3, np.int64)
    for video in videos:
        for kind in SUFFIXES:
            found, there = video.counts(kind)
            right[kind] += found
            frames[kind] += there
    total = float((right.sum(axis=0) / frames.sum()).mean()) if frames.any() else None
    return _scores(
        total, [float((right[k] / frames[k]).mean()) if frames[k] else None for k in SUFFIXES], right, frames
    )


def paper_fsla(videos: Iterable[FrameVerdicts]) -> FslaScores:
    """FSLA of each video, then the mean over the videos of each class, then over classes, then over thresholds.

    A video belongs to every class that sounds in it; videos in which nothing ever sounds are a class of their own.
    """
    videos = list(videos)
    pooled = pooled_fsla(videos)
    kinds: list[float | None] = [_class_mean(videos, {kind}) for kind in SUFFIXES]
    right = np.zeros((3, 1))
    right[:, 0] = pooled.right
    return _scores(_class_mean(videos, set(SUFFIXES)), kinds, right, np.array(pooled.frames))


def _class_mean(videos: list[FrameVerdicts], kinds: set[int]) -> float | None:
    by_class: dict[int | None, list[FloatArray]] = {}
    for video in videos:
        frames = np.isin(video.kind, list(kinds))
        if frames.any():
            classes: frozenset[int | None] = frozenset().union(*video.categories)
            for category in classes or {None}:
                by_class.setdefault(category, []).append(video.right[frames].mean(axis=0))
    if not by_class:
        return None
    return float(np.mean([np.mean(scores, axis=0) for scores in by_class.values()]))


def _scores(total: float | None, by_kind: list[float | None], right: FloatArray, frames: IntArray) -> FslaScores:
    counts = [int(value) for value in right.mean(axis=1)]
    return FslaScores(
        total,
        (by_kind[0], by_kind[1], by_kind[2]),
        (counts[0], counts[1], counts[2]),
        (int(frames[0]), int(frames[1]), int(frames[2])),
    )
