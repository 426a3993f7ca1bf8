"""Who comes back under the same name: identities across absences, by the length of the absence.

For each object of the truth and each two of its appearances with a gap between them, the identity that most of the last
matched frames before the gap had must be that of most of the first ones after it. The matching of a frame is that
of identity switches (`identity.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from avis_stream.checks import require
from avis_stream.metrics.alignment import assign
from avis_stream.metrics.identity import IOU_THRESHOLD
from avis_stream.metrics.pairs import BoolArray, IntArray, VideoPair

MATCHED_FRAMES = 3
"""Frames of each side of a gap that vote for the identity there."""


@dataclass(frozen=True, slots=True)
class ReturnCounts:
    """Returns after gaps of one range of lengths; counts of several videos add up."""

    returns: int = 0
    """Appearances of objects after such a gap."""
    covered: int = 0
    """Of these, those with a prediction on the object before and after."""
    same: int = 0
    """Of the covered, those with the same identity."""

    def __add__(self, other: ReturnCounts) -> ReturnCounts:
        return ReturnCounts(self.returns + other.returns, self.covered + other.covered, self.same + other.same)

    @property
    def reid(self) -> float | None:
        """Share of the covered returns under the same identity; None where there is none."""
        return self.same / self.covered if self.covered else None

    @property
    def coverage(self) -> float | None:
        """Share of the returns that are covered; None where there is none."""
        return self.covered / self.returns if self.returns else None


@dataclass(frozen=True, slots=True)
class Reappearance:
    """Returns by the length of their gap, and new objects that were taken for old ones."""

    by_gap: tuple[ReturnCounts, ...]
    """One for each range of gaps."""
    newcomers: int = 0
    """Objects that appear for the first time with a prediction on them, while others are known already."""
    false_returns: int = 0
    """Of the newcomers, those under the identity of an object that is not to be seen then."""

    def __add__(self, other: Reappearance) -> Reappearance:
        gaps = tuple(a + b for a, b in zip(self.by_gap, other.by_gap, strict=True))
        return Reappearance(gaps, self.newcomers + other.newcomers, self.false_returns + other.false_returns)

    @property
    def false_return_rate(self) -> float | None:
        """Share of the newcomers that were taken for someone else; None without newcomers."""
        return self.false_returns / self.newcomers if self.newcomers else None


def gap_edges(window: int, ring: int) -> tuple[int, ...]:
    """Edges in frames of the ranges of gaps: [1, W), [W, R), [R, 2R), [2R, 4R), and 4R or more.

    Args:
        window: Frames of the tracker's window, W >= 2.
        ring: Frames that it holds, R > W.
    """
    require(1 < window < ring, "window", window, f"> 1 and < the ring's {ring} frames")
    return 1, window, ring, 2 * ring, 4 * ring


def reappearance(pair: VideoPair, edges: Sequence[int]) -> Reappearance:
    """Returns and false returns in one video, whatever the classes; crowds, which are nobody, are left out.

    Args:
        pair: The video.
        edges: Ascending first frames of each range of gaps; the last range has no end.
    """
    pair = pair.without_crowds()
    matched = matches(pair)
    counts = [ReturnCounts() for _ in edges]
    newcomers = false_returns = 0
    owners: dict[int, list[int]] = {}
    seen = pair.truth.present & (pair.truth.area > 0)
    debuts = sorted((int(np.flatnonzero(seen[:, g])[0]), g) for g in range(seen.shape[1]) if seen[:, g].any())
    for g in range(seen.shape[1]):
        for before, after in _gaps(seen[:, g]):
            kind = int(np.searchsorted(edges, after[0] - before[-1] - 1, side="right")) - 1
            if kind >= 0:
                left = majority(matched[before, g][::-1])
                right = majority(matched[after, g])
                covered = left is not None and right is not None
                counts[kind] += ReturnCounts(1, int(covered), int(covered and left == right))
        for track in np.unique(matched[matched[:, g] >= 0, g]).tolist():
            owners.setdefault(track, []).append(g)
    for debut, g in debuts:
        name = majority(matched[debut : _end(seen[:, g], debut), g])
        if name is None or debut == debuts[0][0]:
            continue
        newcomers += 1
        others = [other for other in owners[name] if other != g and (matched[:debut, other] == name).any()]
        false_returns += any(not seen[debut, other] for other in others)
    return Reappearance(tuple(counts), newcomers, false_returns)


def matches(pair: VideoPair) -> IntArray:
    """Which predicted track each object has in each frame, [T, G]; -1: none."""
    found = np.full(pair.iou.shape[:2], -1, np.int64)
    for t, iou in enumerate(pair.iou):
        rows, columns = assign(np.where(iou >= IOU_THRESHOLD, iou, 0.0))
        real = iou[rows, columns] >= IOU_THRESHOLD
        found[t, rows[real]] = columns[real]
    return found


def _gaps(seen: BoolArray) -> list[tuple[IntArray, IntArray]]:
    """The frames of each two appearances with a gap between them, in order of time."""
    frames = np.flatnonzero(seen)
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    return list(pairwise(runs))


def _end(seen: BoolArray, start: int) -> int:
    """First frame after `start` in which an object is not there."""
    absent = np.flatnonzero(~seen[start:])
    return start + int(absent[0]) if len(absent) else len(seen)


def majority(tracks: IntArray) -> int | None:
    """The track that most of the first matched frames have, the earlier at a tie; None without a match."""
    first = tracks[tracks >= 0][:MATCHED_FRAMES].tolist()
    return max(first, key=lambda track: (first.count(track), -first.index(track))) if first else None
