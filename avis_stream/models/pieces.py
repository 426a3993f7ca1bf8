"""Masks in pieces: the one object that a query is meant to be, where it draws two alike at once.

A query that has not learnt where it is draws every object that looks like its own. Of pieces of comparable size the one
with most of the mask stays, and what shows beside something in front. Crumbs go: a few pixels on another object would
stretch the box over both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_RIVAL = 0.3
"""Share of the best piece's area from which on another piece is a thing of its own."""

_CRUMB = 0.05
"""The same, below which a piece is noise. On 24 videos of val FSLA is 49.4 and HOTA 58.3 with it and 58.4 without."""

_GONE = -10.0
"""Logit of what is taken away."""


def best_pieces(logits: Tensor) -> Tensor:
    """Mask logits [..., h, w] without crumbs and what rivals each mask's best piece; themselves where nothing goes."""
    from scipy import ndimage  # only where masks are drawn: importing the package stays light

    flat = logits.flatten(0, -3)
    kept = flat.float().cpu().numpy()
    gone = np.zeros(kept.shape, bool)
    for mask, away in zip(kept, gone, strict=True):
        label, count = ndimage.label(mask > 0)
        if count < 2:
            continue
        pieces = np.arange(1, count + 1)
        area = ndimage.sum_labels(np.ones_like(mask), label, pieces)
        certain = ndimage.sum_labels(1 / (1 + np.exp(-mask.clip(-50, 50))), label, pieces)
        best = int(certain.argmax())
        share = area / area[best]
        others = ((share >= _RIVAL) | (share < _CRUMB)) & (pieces != pieces[best])
        away |= np.isin(label, pieces[others])
    if not gone.any():
        return logits
    return flat.masked_fill(torch.from_numpy(gone).to(flat.device), _GONE).view_as(logits)
