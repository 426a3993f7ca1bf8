"""What the model says of a frame, as frames of a pipeline carry it: rows, an id map, a layer to blend in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.types import OnlineResult
from avis_stream.writers.draw import draw_result


@dataclass(frozen=True, slots=True)
class Layer:
    """A result drawn for blending: `picture * keep + paint`, inside a rectangle."""

    top: int
    left: int
    keep: NDArray[np.uint16]
    """[h, w, 3], 256 for 1."""
    paint: NDArray[np.uint16]
    """[h, w, 3], 0 to 255 times 256."""

    def blend(self, picture: NDArray[np.uint8]) -> None:
        """Draws it onto uint8 [H, W, 3], in place."""
        height, width = self.keep.shape[:2]
        part = picture[self.top : self.top + height, self.left : self.left + width]
        part[:] = (part * self.keep + self.paint) >> 8


def layer_of(result: OnlineResult, classes: Sequence[str]) -> Layer | None:
    """A result drawn once, for any number of frames; None if there is nothing to see.

    Drawing blends, so what it does to black and to white says what it does to everything in between.
    """
    if not bool(result.mask.any()):
        return None
    height, width = result.mask.shape[1:]
    black = draw_result(np.zeros((height, width, 3), np.uint8), result, classes).astype(np.int32)
    white = draw_result(np.full((height, width, 3), 255, np.uint8), result, classes).astype(np.int32)
    keep = (white - black).clip(0, 255)
    changed = (keep.min(axis=2) < 255) | (black.max(axis=2) > 0)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    if not len(rows):
        return None
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = (keep[part] * 256 + 127) // 255
    return Layer(int(rows[0]), int(columns[0]), scaled.astype(np.uint16), (black[part] * 256).astype(np.uint16))


@dataclass(frozen=True, slots=True)
class Row:
    """One sounding identity, in plain values, for metadata of any kind."""

    track_id: int
    label: str
    score: float
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels."""

    @staticmethod
    def all_of(result: OnlineResult, classes: Sequence[str]) -> list[Row]:
        """The identities that sound and are seen, best first."""
        rows = []
        for n in range(len(result)):
            if bool(result.sounding[n]) and bool(result.mask[n].any()):
                x, y, width, height = (round(float(v)) for v in result.box[n])
                label = classes[int(result.class_id[n])]
                box = (max(0, x), max(0, y), max(1, width), max(1, height))
                rows.append(Row(int(result.track_id[n]), label, round(float(result.score[n]), 4), box))
        return rows


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's newest result."""

    result: OnlineResult
    number: int
    """Counts answers from 1; 0: it has not been told yet."""
    layer: Layer | None
    """Drawn, if that is wanted and there is anything to see."""
    rows: tuple[Row, ...] = ()
    """The identities that sound and are seen, best first."""
    size: tuple[int, int] = field(init=False)
    """(width, height) of the frames it belongs to."""

    def __post_init__(self) -> None:
        height, width = self.result.mask.shape[1:]
        object.__setattr__(self, "size", (int(width), int(height)))

    def id_map(self, kind: type[np.uint8] | type[np.uint16] = np.uint8) -> NDArray[Any]:
        """[H, W]: 0 where nothing sounds, else the identity's id (if `kind` is too small for it: modulo, plus 1)."""
        result = self.result
        ids = np.zeros(tuple(result.mask.shape[1:]), kind)
        for row in reversed(range(len(result))):  # best last, so on top
            ids[result.mask[row].numpy()] = (int(result.track_id[row]) - 1) % int(np.iinfo(kind).max) + 1
        return ids
