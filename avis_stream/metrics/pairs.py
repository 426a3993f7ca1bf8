"""Truth and predictions of a video as numbers: who is there, how large, how well they overlap.

All scores read these and never see a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from avis_stream.data.annotations import Annotations, Predictions, Track, Video
from avis_stream.data.rle import Rle, areas
from avis_stream.errors import DataError

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_EMPTY_AT_720P = "PPTl0"
"""The run lengths of an all-zero mask of 1280x720: how the official FSLA knows an empty mask (quirk Q6)."""

_HALF = 0.5
"""A mask is a crowd's by more than this share of its pixels, unless it is an object's by at least this IoU."""


def is_on_crowd(on_crowds: FloatArray, with_objects: FloatArray) -> BoolArray:
    """What of P masks or boxes is shown on a crowd [..., P].

    Args:
        on_crowds: Share of each that lies on each of C crowds of its class [..., C, P].
        with_objects: IoU of each with each of G objects of its class [..., G, P].
    """
    crowds, objects = on_crowds > _HALF, with_objects >= _HALF
    return np.asarray(crowds.any(axis=-2) & ~objects.any(axis=-2))


@dataclass(frozen=True, slots=True, eq=False)
class TrackTable:
    """N tracks of one video of T frames."""

    id: IntArray
    """[N], counts tracks over the whole data set in the order of evaluation, from 0."""
    category: IntArray
    """[N]."""
    score: FloatArray
    """[N]."""
    frame_score: FloatArray
    """[T, N], of each mask: the track's own where the file says no more."""
    crowd: BoolArray
    """[N]."""
    present: BoolArray
    """[T, N], the file gives a mask."""
    area: IntArray
    """[T, N], pixels; 0 where there is no mask."""
    mean_area: FloatArray
    """[N], over the frames with a mask that is not empty; as annotated, where it is."""
    looks_empty: BoolArray
    """[T, N], no mask, or the text the official FSLA takes for an empty one."""

    def __len__(self) -> int:
        return len(self.category)

    def take(self, which: BoolArray) -> TrackTable:
        """Those of the tracks [N] that are marked."""
        return TrackTable(
            id=self.id[which],
            category=self.category[which],
            score=self.score[which],
            frame_score=self.frame_score[:, which],
            crowd=self.crowd[which],
            present=self.present[:, which],
            area=self.area[:, which],
            mean_area=self.mean_area[which],
            looks_empty=self.looks_empty[:, which],
        )


@dataclass(frozen=True, slots=True, eq=False)
class VideoPair:
    """One video: G tracks of the truth, P predicted, over T frames."""

    name: str
    truth: TrackTable
    predicted: TrackTable
    iou: FloatArray
    """[T, G, P], 0 where either is absent or empty."""

    def of_category(self, category: int) -> VideoPair:
        """The same video with the tracks of one category only."""
        truth, predicted = self.truth.category == category, self.predicted.category == category
        return VideoPair(
            self.name, self.truth.take(truth), self.predicted.take(predicted), self.iou[:, truth][:, :, predicted]
        )

    def without_empty_masks(self) -> VideoPair:
        """The same video where an empty mask is no mask, and a track without any mask no track: silence is no find."""
        sides = [replace(side, present=side.area > 0) for side in (self.truth, self.predicted)]
        seen: list[BoolArray] = [np.asarray(side.present.any(axis=0)) for side in sides]
        truth, predicted = (side.take(those) for side, those in zip(sides, seen, strict=True))
        return VideoPair(self.name, truth, predicted, self.iou[:, seen[0]][:, :, seen[1]])

    def without_crowds(self) -> VideoPair:
        """The same video without crowds, and without what is shown on them: who of many sounds there is not asked.

        A mask goes that lies with more than half of its pixels on a crowd of its class, unless it is an object's of
        that class, by an IoU of 0.5. Source: COCO's ignored regions, frame by frame as TrackEval has them.
        """
        crowd = self.truth.crowd
        if not crowd.any():
            return self
        same = self.truth.category[:, None] == self.predicted.category[None, :]  # [G, P]
        own = self.predicted.area[:, None, :]
        share = np.divide(self._common(), own, out=np.zeros_like(self.iou), where=own > 0)
        gone = is_on_crowd((share * same)[:, crowd], (self.iou * same)[:, ~crowd])  # [T, P]
        shown = replace(self.predicted, area=np.where(gone, 0, self.predicted.area))
        iou = np.where(gone[:, None, :], 0.0, self.iou)[:, ~crowd]
        return VideoPair(self.name, self.truth.take(~crowd), shown, iou).without_empty_masks()

    def track_iou(self, *, crowds_hold_many: bool = False) -> FloatArray:
        """Overlap of whole tracks [G, P]: pixels in common through pixels of either, summed over the video.

        Args:
            crowds_hold_many: Of a crowd and a track through pixels of the track alone, which is one of many in it.
        """
        own = self.predicted.area.sum(axis=0)[None, :]
        common = self._common().sum(axis=0)
        union = self.truth.area.sum(axis=0)[:, None] + own - common
        if crowds_hold_many:
            union = np.where(self.truth.crowd[:, None], own, union)
        share: FloatArray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
        return share

    def _common(self) -> FloatArray:
        """Pixels in common [T, G, P]."""
        both = self.truth.area[:, :, None] + self.predicted.area[:, None, :]
        # The per-frame ratio i / (a + b - i) gives i back exactly: it is a whole number far below 2^52.
        return np.rint(self.iou * both / (1 + self.iou))


def pair_videos(truth: Annotations, predictions: Predictions) -> Iterator[VideoPair]:
    """Yields the videos of a data set one by one, in order of the truth; masks of one video are in memory at a time."""
    counted = 0
    for video in truth.videos:
        predicted = predictions.get(video.id, ())
        yield pair_video(video, truth.tracks[video.id], predicted, first_id=counted)
        counted += len(predicted)


def pair_video(video: Video, truth: Sequence[Track], predicted: Sequence[Track], first_id: int = 0) -> VideoPair:
    """Measures the areas and overlaps of one video.

    Raises:
        DataError: A mask has another size than the video, or cannot be read.
    """
    sides = [[_rles(video, track) for track in tracks] for tracks in (truth, predicted)]
    iou = np.zeros((video.length, len(truth), len(predicted)))
    for t in range(video.length):
        rows, columns = ([n for n, masks in enumerate(side) if masks[t] is not None] for side in sides)
        if rows and columns:
            # pycocotools reads the second list as the one that may hold crowds; none is treated as one here.
            found = coco.iou([sides[0][n][t] for n in rows], [sides[1][n][t] for n in columns], [0] * len(columns))
            iou[t][np.ix_(rows, columns)] = found
    return VideoPair(
        video.name,
        _table(video, truth, sides[0], first_id=0),
        _table(video, predicted, sides[1], first_id),
        iou,
    )


def _rles(video: Video, track: Track) -> list[Rle | None]:
    try:
        masks = track.rles(video.height, video.width)
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"video {video.name!r}, a track of category {track.category_id}: {error}") from error
    for t, mask in enumerate(masks):
        if mask is not None and mask["size"] != [video.height, video.width]:
            raise DataError(
                f"video {video.name!r}, frame {t}: a mask of {mask['size'][1]}x{mask['size'][0]} in a video of "
                f"{video.width}x{video.height}; write masks at the size of the video"
            )
    return masks


def _table(video: Video, tracks: Sequence[Track], masks: Sequence[Sequence[Rle | None]], first_id: int) -> TrackTable:
    shape = (video.length, len(tracks))
    present, area, frame_score = np.zeros(shape, bool), np.zeros(shape, np.int64), np.zeros(shape)
    looks_empty = np.ones(shape, bool)
    for n, (track, own) in enumerate(zip(tracks, masks, strict=True)):
        frame_score[:, n] = track.score if track.frame_scores is None else track.frame_scores
        where = [t for t, mask in enumerate(own) if mask is not None]
        found: list[Any] = [own[t] for t in where]
        present[where, n] = True
        looks_empty[where, n] = [mask["counts"] == _EMPTY_AT_720P for mask in found]
        if found:
            area[where, n] = areas(found)
    return TrackTable(
        id=np.arange(first_id, first_id + len(tracks)),
        category=np.array([track.category_id for track in tracks], np.int64),
        score=np.array([track.score for track in tracks], np.float64),
        frame_score=frame_score,
        crowd=np.array([track.crowd for track in tracks], bool),
        present=present,
        area=area,
        mean_area=np.array([_mean_area(track, area[:, n]) for n, track in enumerate(tracks)], np.float64),
        looks_empty=looks_empty,
    )


def _mean_area(track: Track, counted: IntArray) -> float:
    areas = [value for value in (counted.tolist() if track.areas is None else track.areas) if value]
    return float(np.mean(areas)) if areas else 0.0
