"""Outlines of a mask as polygons, through contourpy (matplotlib's own contour library)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

Polygon = list[tuple[float, float]]


def outlines(mask: Tensor) -> list[tuple[bool, Polygon]]:
    """(is a hole, [(x, y), ...]) of each outline of bool [H, W], in pixels; a hole follows what it is in."""
    from contourpy import FillType, contour_generator

    # A pixel's centre lies half a pixel inside it; the border makes outlines close at the picture's edge.
    padded = np.pad(mask.numpy().astype(float), 1)
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    found = []
    for points, offsets in zip(*filled, strict=True):
        for part, (begin, end) in enumerate(pairwise(offsets)):
            corners = points[begin : end - 1] - 0.5
            if len(corners) >= 3:
                found.append((part > 0, [(float(x), float(y)) for x, y in corners]))
    return found
