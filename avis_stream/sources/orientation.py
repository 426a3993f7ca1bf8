"""How a stored picture must be turned to stand upright: phones write it beside the picture, not into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Orientation:
    """First swap the axes, then mirror: the eight ways to stand."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a stored picture once it is upright; the same again takes it back."""
        return (height, width) if self.swap else (width, height)

    def upright(self, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turns uint8 [H, W, 3] upright."""
        array = stored.swapaxes(0, 1) if self.swap else stored
        array = array[:, ::-1] if self.mirror_x else array
        return array[::-1] if self.mirror_y else array


_QUARTER_TURNS = (
    Orientation(),
    Orientation(swap=True, mirror_y=True),
    Orientation(mirror_x=True, mirror_y=True),
    Orientation(swap=True, mirror_x=True),
)
"""By how many quarter turns, to the left, a picture is turned to stand upright."""


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Reads a frame's display matrix; without one it stands as it is. Odd angles snap to the nearest quarter turn.

    The matrix [a b u, c d v, x y w] maps stored (p, q) to shown (a p + c q, b p + d q).
    """
    try:
        side_data: Any = frame.side_data  # PyAV's stubs name only some of the kinds
    except ValueError:  # nor does PyAV itself know all that FFmpeg gives, such as a picture's EXIF
        return _QUARTER_TURNS[round(frame.rotation / 90) % 4]
    try:
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)
    except KeyError:
        return Orientation()
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
