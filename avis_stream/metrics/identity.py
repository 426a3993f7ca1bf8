"""IDF1 (one identity per object over the whole video) and identity switches.

Source: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016; switches as
in CLEAR MOT (Bernardin and Stiefelhagen, 2008). Both as TrackEval counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avis_stream.metrics.alignment import EPS, assign
from avis_stream.metrics.pairs import VideoPair

IOU_THRESHOLD = 0.5
"""Overlap from which a detection is the object."""

_STAY = 1000.0
"""Weight of a pair that was matched in the frame before: above any sum of overlaps in a frame."""


@dataclass(frozen=True, slots=True)
class IdentityCounts:
    """Detections by identity; counts of several videos add up."""

    idtp: int = 0
    idfn: int = 0
    idfp: int = 0
    switches: int = 0

    def __add__(self, other: IdentityCounts) -> IdentityCounts:
        return IdentityCounts(
            self.idtp + other.idtp, self.idfn + other.idfn, self.idfp + other.idfp, self.switches + other.switches
        )

    @property
    def idf1(self) -> float | None:
        """2 IDTP / (2 IDTP + IDFP + IDFN); None where there is nothing on either side."""
        total = self.idtp + 0.5 * self.idfp + 0.5 * self.idfn
        return self.idtp / total if total else None


def identity_counts(pair: VideoPair) -> IdentityCounts:
    """Counts of one video, all of whose tracks are taken to be of one class."""
    truth, predicted = int(pair.truth.present.sum()), int(pair.predicted.present.sum())
    # A pair of tracks is worth the frames they share. Leaving both unmatched instead costs as many misses and as many
    # false alarms, so the best assignment is the one that shares most, and pairs that share nothing change no count.
    together = (pair.iou >= IOU_THRESHOLD).sum(axis=0).astype(np.float64)  # [G, P]
    idtp = int(together[assign(together)].sum())
    return IdentityCounts(idtp, truth - idtp, predicted - idtp, _switches(pair))


def _switches(pair: VideoPair) -> int:
    """How often an object is taken up by another track than the last one that had it."""
    length, objects, _ = pair.iou.shape
    last = np.full(objects, -1)  # the track that had the object last, however long ago
    before = np.full(objects, -1)  # the track that had it in the frame before; matching prefers to stay with it
    switches = 0
    for t in range(length):
        g, p = np.flatnonzero(pair.truth.present[t]), np.flatnonzero(pair.predicted.present[t])
        if not len(g) or not len(p):
            continue  # as in TrackEval: such a frame does not end a match
        iou = pair.iou[t][np.ix_(g, p)]
        stays = p[None, :] == before[g][:, None]
        score = np.where(iou >= IOU_THRESHOLD - EPS, _STAY * stays + iou, 0.0)
        rows, columns = assign(score)
        real = score[rows, columns] > EPS
        rows, columns = g[rows[real]], p[columns[real]]
        switches += int(((last[rows] >= 0) & (last[rows] != columns)).sum())
        last[rows] = columns
        before[:] = -1
        before[rows] = columns
    return switches
