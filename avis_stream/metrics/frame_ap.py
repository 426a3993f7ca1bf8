"""Frame AP: average precision of single masks, every frame a picture of its own. It says nothing about identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avis_stream.metrics.pairs import BoolArray, FloatArray, VideoPair
from avis_stream.metrics.track_map import interpolated_precision

IOU_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class MaskMatches:
    """D masks predicted in one video, all of one class."""

    score: FloatArray
    """[D]."""
    right: BoolArray
    """[D]."""
    wanted: int
    """Masks of the truth."""


def match_masks(pair: VideoPair) -> MaskMatches:
    """Matches masks frame by frame, best score first, each to the free object it overlaps most."""
    scores: list[float] = []
    right: list[bool] = []
    for t, (present, score) in enumerate(zip(pair.predicted.present, pair.predicted.frame_score, strict=True)):
        order = np.argsort(-score, kind="mergesort")
        free = pair.truth.present[t].copy()
        for p in order[present[order]]:
            overlap = np.where(free, pair.iou[t, :, p], 0.0)
            found = overlap.size > 0 and overlap.max() >= IOU_THRESHOLD
            if found:
                free[overlap.argmax()] = False
            scores.append(score[p])
            right.append(bool(found))
    return MaskMatches(np.array(scores), np.array(right, bool), int(pair.truth.present.sum()))


def average_precision(videos: Sequence[MaskMatches]) -> float | None:
    """Average precision of one class, in [0, 1]; None without truth."""
    wanted = sum(video.wanted for video in videos)
    if not wanted:
        return None
    order = np.argsort(-np.concatenate([video.score for video in videos]), kind="mergesort")
    right = np.concatenate([video.right for video in videos])[order]
    return interpolated_precision(right.cumsum(), (~right).cumsum(), wanted)
