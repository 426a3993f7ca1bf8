"""How well two tracks go together over a video: the score that HOTA and FSLA match by."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from avis_stream.metrics.pairs import BoolArray, FloatArray, IntArray

ALPHAS: FloatArray = np.arange(0.05, 0.99, 0.05)
"""The 19 localisation thresholds of HOTA and FSLA."""

EPS = float(np.finfo(np.float64).eps)


def alignment(iou: FloatArray, truth_present: BoolArray, predicted_present: BoolArray) -> FloatArray:
    """HOTA's global alignment score [G, P] in [0, 1].

    A frame adds each pair's IoU as a share of all overlaps the two have in it; the sum is set against the frames in
    which either is there (a Jaccard index of frames).

    Args:
        iou: [T, G, P].
        truth_present: [T, G].
        predicted_present: [T, P].
    Source: Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking", IJCV 2021, section 5.
    """
    others = iou.sum(axis=2, keepdims=True) + iou.sum(axis=1, keepdims=True) - iou  # [T, G, P]
    together = np.divide(iou, others, out=np.zeros_like(iou), where=others > EPS).sum(axis=0)  # [G, P]
    frames = truth_present.sum(axis=0)[:, None] + predicted_present.sum(axis=0)[None, :] - together
    score: FloatArray = np.divide(together, frames, out=np.zeros_like(together), where=frames > 0)
    return score


def assign(score: FloatArray) -> tuple[IntArray, IntArray]:
    """One-to-one pairs (rows, columns) of the largest total score."""
    rows, columns = linear_sum_assignment(-score)
    return rows.astype(np.int64), columns.astype(np.int64)
