"""Masks as COCO run lengths, through pycocotools: the one place that knows its formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from avis_stream.errors import DataError

_AT_ONCE = 255
"""Masks that pycocotools counts the pixels of together."""

_FARTHEST_PX = 1e6
"""From the picture's corner to a point of a polygon: pycocotools walks edges pixel by pixel, and keeps every one."""


class Rle(TypedDict):
    """A mask as it stands in JSON."""

    size: list[int]
    """[H, W]."""
    counts: str


def encode(mask: Tensor | NDArray[Any]) -> Rle:
    """Run lengths of a mask, bool [H, W]."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
    if array.ndim != 2:
        raise DataError(f"a mask must be [H, W], got {list(array.shape)}; encode one mask at a time")
    encoded = coco.encode(np.asfortranarray(array, dtype=np.uint8))
    return Rle(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def decode(segmentation: Any, height: int | None = None, width: int | None = None) -> Tensor:
    """Bool [H, W] of run lengths (compressed or lists of counts) or of polygons, which need `height` and `width`."""
    rle = as_rle(segmentation, height, width)
    return torch.from_numpy(coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool))


def as_rle(segmentation: Any, height: int | None = None, width: int | None = None) -> Rle:
    """Brings any of COCO's forms to compressed run lengths: `{"size","counts"}` either way, or a list of polygons.

    Raises:
        DataError: It is none of them, or its runs do not fill the picture.
    """
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        counts, size = segmentation["counts"], [int(side) for side in segmentation["size"]]
        text = counts if isinstance(counts, list) else counts.encode() if isinstance(counts, str) else bytes(counts)
        runs = np.asarray(text, np.int64) if isinstance(text, list) else _runs(text)
        # pycocotools trusts runs blindly: with wrong ones it never returns, or reads what is not its own.
        if not len(runs) or runs.min() < 0 or runs.sum() != size[0] * size[1]:
            raise DataError(f"run lengths {str(counts)[:40]!r} do not fill a picture of {size[1]}x{size[0]}")
        if isinstance(text, list):
            text = coco.frPyObjects({"size": size, "counts": text}, *size)["counts"]
        return Rle(size=size, counts=text.decode("ascii"))
    if isinstance(segmentation, list) and height is not None and width is not None:
        return from_polygons(segmentation, height, width)
    raise DataError(
        f"a segmentation must be run lengths {{size, counts}}, or polygons of a picture of known size, "
        f"got {str(segmentation)[:60]!r}"
    )


def _runs(text: bytes) -> NDArray[np.int64]:
    """Lengths of the runs in COCO's text form; empty if it is none.

    Characters from 48 on carry 6 bits: 5 of a number, lowest first, and whether more follow. From the third number on
    each is the difference to the one two before. Source: `rleFrString` of pycocotools.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 7:
        return np.zeros(0, np.int64)  # 35 bits: no picture has as many pixels
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, digits))
    values = np.add.reduceat((codes & 31) << place, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)  # the sign
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return np.asarray(values, np.int64)


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """Fills polygons [[x, y, x, y, ...], ...] in pixels and joins them.

    Raises:
        DataError: A number is not finite, or farther away than any outline goes.
    """
    # Fewer than three points enclose nothing, and pycocotools takes four numbers for a box.
    flat = [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6]
    far = [value for polygon in flat for value in polygon if not abs(value) <= _FARTHEST_PX]  # NaN is not, either
    if far:
        raise DataError(
            f"a polygon's points must be finite and within {_FARTHEST_PX:.0f} pixels of the corner, got {far[0]:g}; "
            "outline the object again or take it away"
        )
    if not flat:
        return encode(np.zeros((height, width), bool))
    merged = coco.merge(coco.frPyObjects(flat, height, width))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def area(rle: Rle) -> int:
    """Pixels in a mask."""
    return int(coco.area(_for_coco(rle)))


def areas(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """Pixels in each of N masks, int64 [N]."""
    # pycocotools puts their number into eight bits: with NumPy 2 it refuses more at once.
    parts = [coco.area([_for_coco(rle) for rle in rles[n : n + _AT_ONCE]]) for n in range(0, len(rles), _AT_ONCE)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def box(rle: Rle) -> list[float]:
    """[x, y, width, height] in pixels; zeros for an empty mask."""
    if not area(rle):  # of none that ends in a run of no pixels pycocotools makes a box of 2^32
        return [0.0] * 4
    return [float(value) for value in coco.toBbox(_for_coco(rle))]


def intersections(masks: Sequence[Rle]) -> NDArray[np.float64]:
    """Pixels that each two of N masks of one picture have in common, [N, N]; their areas on the diagonal."""
    given = [_for_coco(mask) for mask in masks]
    pixels = areas(masks).astype(np.float64)
    iou = np.asarray(coco.iou(given, given, [0] * len(given)), np.float64).reshape(len(given), len(given))
    # i / (a + b - i) gives i back exactly: it is a whole number far below 2^52.
    return np.rint(iou * (pixels[:, None] + pixels[None, :]) / (1 + iou))


def _for_coco(rle: Rle) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
