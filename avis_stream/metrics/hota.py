"""HOTA: detection, association and localisation of tracks, over 19 localisation thresholds.

Source: Luiten et al., IJCV 2021; the sums over sequences and the roundings are those of TrackEval, which the official
AVISeg evaluator is built on.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from avis_stream.metrics.alignment import ALPHAS, EPS, alignment, assign
from avis_stream.metrics.pairs import FloatArray, VideoPair

HOTA_KEYS = ("HOTA", "DetA", "DetRe", "DetPr", "AssA", "AssRe", "AssPr", "LocA")


@dataclass(frozen=True, slots=True, eq=False)
class HotaSums:
    """What HOTA adds up, each [19]; sums of several videos are the sums of all of them."""

    tp: FloatArray
    fn: FloatArray
    fp: FloatArray
    similarity: FloatArray
    """IoU over all true positives."""
    ass_a: FloatArray
    """Association accuracy over all true positives; the next two alike."""
    ass_re: FloatArray
    ass_pr: FloatArray

    @classmethod
    def zero(cls) -> HotaSums:
        """Nothing seen yet."""
        return cls(*(np.zeros(len(ALPHAS)) for _ in range(7)))

    def __add__(self, other: HotaSums) -> HotaSums:
        return HotaSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def seen(self) -> bool:
        """Whether there was anything to find, or anything found."""
        return bool((self.tp + self.fn + self.fp).any())

    def scores(self) -> dict[str, FloatArray]:
        """The eight scores, [19] each, in [0, 1].

        Without true positives DetA and AssA are 0 and LocA is 1, as in TrackEval.
        """
        found = np.maximum(1, self.tp)
        scores = {
            "DetA": self.tp / np.maximum(1, self.tp + self.fn + self.fp),
            "DetRe": self.tp / np.maximum(1, self.tp + self.fn),
            "DetPr": self.tp / np.maximum(1, self.tp + self.fp),
            "AssA": self.ass_a / found,
            "AssRe": self.ass_re / found,
            "AssPr": self.ass_pr / found,
            "LocA": np.maximum(1e-10, self.similarity) / np.maximum(1e-10, self.tp),
        }
        return {"HOTA": np.sqrt(scores["DetA"] * scores["AssA"])} | scores


def hota_sums(pair: VideoPair) -> HotaSums:
    """Sums of one video, all of whose tracks are taken to be of one class."""
    truth, predicted = pair.truth.present, pair.predicted.present  # [T, G], [T, P]
    align = alignment(pair.iou, truth, predicted)
    matched = np.zeros((len(ALPHAS), *align.shape))  # frames in which two tracks are matched, at each threshold
    similarity = np.zeros(len(ALPHAS))
    for t in np.flatnonzero(truth.any(axis=1) & predicted.any(axis=1)):
        g, p = np.flatnonzero(truth[t]), np.flatnonzero(predicted[t])
        iou = pair.iou[t][np.ix_(g, p)]
        rows, columns = assign(align[np.ix_(g, p)] * iou)
        iou = iou[rows, columns]
        passes = iou >= ALPHAS[:, None] - EPS  # [19, pairs]
        matched[:, g[rows], p[columns]] += passes
        similarity += (iou * passes).sum(axis=1)
    tp = matched.sum(axis=(1, 2))
    frames_g, frames_p = truth.sum(axis=0)[:, None], predicted.sum(axis=0)[None, :]  # [G, 1], [1, P]

    def associated(frames: FloatArray) -> FloatArray:
        return np.asarray((matched * matched / np.maximum(1, frames)).sum(axis=(1, 2)))

    return HotaSums(
        tp=tp,
        fn=truth.sum() - tp,
        fp=predicted.sum() - tp,
        similarity=similarity,
        ass_a=associated(frames_g + frames_p - matched),
        ass_re=associated(np.broadcast_to(frames_g, align.shape)),
        ass_pr=associated(np.broadcast_to(frames_p, align.shape)),
    )
