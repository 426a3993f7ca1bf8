"""Scores of masks without identity: which pixels sound (binary), and as what (semantic). mIoU and F-score.

Source: the AVSBench code (Zhou et al., ECCV 2022 and "Audio-Visual Segmentation with Semantics", 2023), whose habits
are kept so that published figures compare: precision weighs more than recall (beta^2 = 0.3), scores are means over
frames, and in a frame without truth the IoU is that of the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Predictions, Track, Video
from avis_stream.errors import DataError
from avis_stream.metrics.pairs import BoolArray, pair_video

BETA_SQUARED = 0.3

LabelMap = NDArray[np.integer[Any]]
"""[H, W]: 0 where nothing sounds, else the class."""


@dataclass(frozen=True, slots=True)
class BinaryScores:
    """In [0, 1]; None without frames to measure on."""

    miou: float | None
    """Mean over all frames."""
    fscore: float | None
    """Mean over the frames in which something sounds."""


@dataclass(frozen=True, slots=True, eq=False)
class SemanticScores:
    """In [0, 1]; means over the classes that occur on either side, background among them."""

    miou: float | None
    fscore: float | None
    miou_of_class: dict[int, float]
    """0 is the background. A class' mean is over the frames in which truth or prediction have it."""
    fscore_of_class: dict[int, float]


def binary_scores(frames: Iterable[tuple[BoolArray, BoolArray]]) -> BinaryScores:
    """Scores pairs (truth, prediction) of masks [H, W]; what is not 0 belongs to a mask.

    Raises:
        DataError: Two masks of a pair differ in size, or have none.
    Example:
        >>> binary_scores([(np.array([[1, 1, 0]], bool), np.array([[1, 0, 0]], bool))]).miou
        0.5
    """
    ious, fscores = [], []
    for pair in frames:
        truth, predicted = (mask != 0 for mask in _same_size(pair))
        common = int((truth & predicted).sum())
        if truth.any():
            ious.append(common / int((truth | predicted).sum()))
            fscores.append(_fscore(common, int(predicted.sum()), int(truth.sum())))
        else:
            ious.append(1.0 - float(predicted.mean()))
    return BinaryScores(float(np.mean(ious)) if ious else None, float(np.mean(fscores)) if fscores else None)


def semantic_scores(frames: Iterable[tuple[LabelMap, LabelMap]]) -> SemanticScores:
    """Scores pairs (truth, prediction) of class maps [H, W].

    Raises:
        DataError: Two maps of a pair differ in size, or have none.
    """
    ious: dict[int, list[float]] = {}
    fscores: dict[int, list[float]] = {}
    for truth, predicted in map(_same_size, frames):
        size = int(max(truth.max(initial=0), predicted.max(initial=0))) + 1
        wanted, shown = np.bincount(truth.ravel(), minlength=size), np.bincount(predicted.ravel(), minlength=size)
        common = np.bincount(truth[truth == predicted].ravel(), minlength=size)
        for label in np.flatnonzero(wanted + shown).tolist():
            ious.setdefault(label, []).append(common[label] / (wanted[label] + shown[label] - common[label]))
            fscores.setdefault(label, []).append(_fscore(common[label], shown[label], wanted[label]))
    iou = {label: float(np.mean(values)) for label, values in sorted(ious.items())}
    fscore = {label: float(np.mean(values)) for label, values in sorted(fscores.items())}
    return SemanticScores(
        miou=float(np.mean(list(iou.values()))) if iou else None,
        fscore=float(np.mean(list(fscore.values()))) if fscore else None,
        miou_of_class=iou,
        fscore_of_class=fscore,
    )


def label_maps(truth: Annotations, predictions: Predictions) -> Iterator[tuple[LabelMap, LabelMap]]:
    """Class maps (truth, prediction) of every frame of a data set; where masks overlap the better score is on top.

    Crowds are on neither map, nor is what is shown on them (`VideoPair.without_crowds`). `map > 0` gives the masks for
    `binary_scores`.
    """
    for video in truth.videos:
        objects = [track for track in truth.tracks[video.id] if not track.crowd]
        shown = _off_crowds(video, truth.tracks[video.id], predictions.get(video.id, ()))
        sides = [_by_rank(objects), _by_rank(shown)]
        for t in range(video.length):
            maps = [_label_map(video, tracks, t) for tracks in sides]
            yield maps[0], maps[1]


def segmentation_summary(frames: Iterable[tuple[LabelMap, LabelMap]]) -> dict[str, float | None]:
    """Both kinds of scores in one pass, in percent with two decimals: binary_mIoU binary_F semantic_mIoU semantic_F."""
    pairs: list[tuple[float, float | None]] = []

    def counted() -> Iterator[tuple[LabelMap, LabelMap]]:
        for truth, predicted in frames:
            own = binary_scores([(truth > 0, predicted > 0)])
            pairs.append((own.miou or 0.0, own.fscore))
            yield truth, predicted

    semantic = semantic_scores(counted())
    fscores = [fscore for _, fscore in pairs if fscore is not None]
    scores = {
        "binary_mIoU": float(np.mean([miou for miou, _ in pairs])) if pairs else None,
        "binary_F": float(np.mean(fscores)) if fscores else None,
        "semantic_mIoU": semantic.miou,
        "semantic_F": semantic.fscore,
    }
    return {name: None if value is None else round(100 * value, 2) for name, value in scores.items()}


def _same_size(pair: tuple[Any, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    truth, predicted = (np.asarray(one) for one in pair)
    if truth.shape != predicted.shape or not truth.size:
        raise DataError(
            f"truth and prediction must be [H, W] of one size, got {list(truth.shape)} and {list(predicted.shape)}; "
            "resize the prediction to the size of the truth"
        )
    return truth, predicted


def _fscore(common: int, shown: int, wanted: int) -> float:
    """(1 + b) P R / (b P + R), 0 where nothing is in common."""
    if not common:
        return 0.0
    precision, recall = common / shown, common / wanted
    return float((1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall))


def _off_crowds(video: Video, truth: Sequence[Track], predicted: Sequence[Track]) -> Sequence[Track]:
    """Predicted tracks without the masks that are shown on a crowd."""
    if not any(track.crowd for track in truth):
        return predicted
    left = pair_video(video, truth, predicted).without_crowds().predicted
    kept = np.zeros((video.length, len(predicted)), bool)
    kept[:, left.id] = left.present
    return [
        replace(track, segmentations=tuple(m if k else None for m, k in zip(track.segmentations, own, strict=True)))
        for track, own in zip(predicted, kept.T, strict=True)
    ]


def _by_rank(tracks: Iterable[Track]) -> list[Track]:
    """Worst first, so that the best is painted last."""
    return sorted(tracks, key=lambda track: track.score)


def _label_map(video: Video, tracks: Iterable[Track], t: int) -> LabelMap:
    canvas = np.zeros((video.height, video.width), np.int64)
    for track in tracks:
        if track.segmentations[t] is not None:
            mask = rle.decode(track.segmentations[t], video.height, video.width).numpy()
            if mask.shape != canvas.shape:
                raise DataError(f"video {video.name!r}, frame {t}: a mask of another size than the video")
            canvas[mask] = track.category_id
    return canvas
