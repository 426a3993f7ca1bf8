"""Masks in the layouts of AVSBench: which pixels sound (objects) or as what (semantic), as PNG files.

    gt_masks/<split>/<class>/<video>/<video>_<k>.png     single source (S4): 0 and 255
    gt_masks/<video>/<video>_<k>.png                     several sources (MS3): 0 and 255
    <video>/labels_semantic/<k>.png                      semantic (AVSS): a palette, or the palette's colours

Predictions in the same layout under another folder are compared file by file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avis_stream.errors import DataError

SEMANTIC_CLASSES = 71
"""Of AVSBench-semantic, background among them."""


def mask_files(root: str | Path) -> list[Path]:
    """The mask files of a folder in order of their names, relative to it; of AVSS only `labels_semantic`.

    Raises:
        DataError: There is no such folder, or no mask in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds the masks of AVSBench")
    files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    semantic = [path for path in files if path.parent.name == "labels_semantic"]
    if not files:
        raise DataError(f"{root} holds no .png file; give the folder of the masks, e.g. gt_masks")
    return semantic or files


def mask_pairs(truth: str | Path, predicted: str | Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields label maps (truth, prediction) [H, W] of all files of `truth`; `map > 0` are the binary masks.

    Raises:
        DataError: A prediction is missing or of another size, or a file cannot be read.
    """
    for name in mask_files(truth):
        pair = [read_labels(Path(root) / name) for root in (truth, predicted)]
        if pair[0].shape != pair[1].shape:
            sizes = [f"{labels.shape[1]}x{labels.shape[0]}" for labels in pair]
            raise DataError(f"{Path(predicted) / name} is {sizes[1]}, the truth {sizes[0]}; write masks at its size")
        yield pair[0], pair[1]


def read_labels(path: Path) -> NDArray[np.int64]:
    """Labels [H, W] of a mask file: 0 nothing; the index for palettes and their colours; 1 where a grey mask is set.

    Raises:
        DataError: The file is missing, broken, or in colours that are not of the palette.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            array = np.array(picture if mode in {"P", "L", "1"} else picture.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such mask; there must be one for every mask of the truth") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); copy it again") from error
    if array.ndim == 3:
        return _labels_of_colors(path, array)
    is_grey_mask = mode == "L" and array.max(initial=0) == 255
    return (array > 127).astype(np.int64) if is_grey_mask else array.astype(np.int64)


def _labels_of_colors(path: Path, array: NDArray[np.uint8]) -> NDArray[np.int64]:
    palette = voc_palette(SEMANTIC_CLASSES).astype(np.int64)
    white = (array == 255).all(axis=2)
    if (white | (array == 0).all(axis=2)).all():
        return np.asarray(white, np.int64)
    keys = palette @ np.array([65536, 256, 1])
    table = np.full(1 << 24, -1, np.int8)
    table[keys] = np.arange(len(keys))
    labels = table[array.astype(np.int64) @ np.array([65536, 256, 1])].astype(np.int64)
    if (labels < 0).any():
        color = array[labels < 0][0].tolist()
        raise DataError(f"{path} has the colour {color}, which is none of the {len(keys)} of AVSBench's palette")
    return np.asarray(labels)


def voc_palette(count: int) -> NDArray[np.uint8]:
    """PASCAL VOC's colours [count, 3], which AVSBench uses: the bits of the index, dealt to red, green and blue."""
    index = np.arange(count)
    palette = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return palette.astype(np.uint8)
