"""Masks as COCO run-length codes: pycocotools does the coding, this file the types and the doors.

An RLE here is COCO's compressed form, `{"size": [H, W], "counts": text}`, with text instead of bytes so that it goes
into JSON as it is. Readers also take COCO's uncompressed form (`counts` a list of numbers) and polygons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from avis_stream.checks import describe
from avis_stream.errors import DataError, ShapeError


class RLE(TypedDict):
    """COCO's compressed run-length code of one mask."""

    size: list[int]
    """[H, W]."""
    counts: str


def encode_masks(masks: Tensor | NDArray[np.bool_]) -> list[RLE]:
    """One RLE for each mask of bool [I, H, W]."""
    array = masks.numpy(force=True) if isinstance(masks, Tensor) else masks
    if array.ndim != 3 or array.dtype != np.bool_:
        raise ShapeError(f"masks must be bool [I, H, W], got {describe(masks)}")
    if not len(array):
        return []
    codes = coco.encode(np.asfortranarray(array.transpose(1, 2, 0).view(np.uint8)))
    return [RLE(size=list(code["size"]), counts=code["counts"].decode("ascii")) for code in codes]


def encode_mask(mask: Tensor | NDArray[np.bool_]) -> RLE:
    """The RLE of one mask, bool [H, W]."""
    return encode_masks(mask[None])[0]


def decode_mask(rle: RLE) -> Tensor:
    """The mask of an RLE, bool [H, W].

    Raises:
        DataError: `rle` is no RLE.
    """
    try:
        array = coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"a mask must be an RLE with size and counts, got {describe(rle)}") from error
    return torch.from_numpy(array.view(np.bool_))


def rle_from_segmentation(segmentation: Any, height: int, width: int) -> RLE:
    """An RLE from any form that annotation files use: RLE of either kind, or a list of polygons `[x, y, x, y, ...]`.

    Raises:
        DataError: It is none of them.
    """
    try:
        if isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
            code = coco.merge(coco.frPyObjects([list(p) for p in segmentation], height, width))
        elif isinstance(segmentation["counts"], list):
            code = coco.frPyObjects(segmentation, height, width)
        else:
            return RLE(size=list(segmentation["size"]), counts=segmentation["counts"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"a segmentation must be an RLE or a list of polygons, got {describe(segmentation)}") from error
    return RLE(size=list(code["size"]), counts=code["counts"].decode("ascii"))


def rle_area(rle: RLE) -> int:
    """Number of pixels of the mask."""
    return int(coco.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))


def rle_box(rle: RLE) -> list[float]:
    """Box around the mask as [x, y, width, height] in pixels; zeros for an empty mask."""
    return [float(v) for v in coco.toBbox({"size": rle["size"], "counts": rle["counts"].encode("ascii")})]
