"""Draws results onto a picture: masks, outlines and label chips that read on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from avis_stream.types import OnlineResult
from avis_stream.writers.colors import identity_color, text_color

FILL = 0.34
"""Share of the identity's colour in the pixels of its mask: enough to see, little enough to see through."""

_CASING = 0.72  # darkness of the thin rim on both sides of the outline, which keeps it visible on its own colour

Rect = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def draw_result(image: NDArray[np.uint8], result: OnlineResult, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Returns a copy of uint8 [H, W, 3] with every sounding object filled, outlined and labelled; others left alone."""
    canvas = image.astype(np.float32)
    height, width = canvas.shape[:2]
    stroke = max(2.0, min(height, width) / 160)
    rows = [row for row in range(len(result)) if bool(result.sounding[row]) and bool(result.mask[row].any())]
    masks = {row: _at_size(result.mask[row], height, width) for row in rows}
    for row in reversed(rows):  # best last, so on top
        _paint(canvas, masks[row], identity_color(int(result.track_id[row])), stroke)
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    taken: list[Rect] = []
    for row in rows:
        track_id, label = int(result.track_id[row]), classes[int(result.class_id[row])]
        text = f"#{track_id} {label.replace('_', ' ')} {float(result.score[row]):.2f}"
        taken.append(_chip(picture, text, _box_of(masks[row]), identity_color(track_id), taken))
    return np.array(picture)


def _at_size(mask: torch.Tensor, height: int, width: int) -> NDArray[np.bool_]:
    """The mask as bool [height, width], scaled where the picture was."""
    if tuple(mask.shape) != (height, width):
        scaled = torch.nn.functional.interpolate(mask[None, None].float().cpu(), (height, width), mode="area")
        mask = scaled[0, 0] >= 0.5
    array: NDArray[np.bool_] = mask.cpu().numpy()
    return array


def _box_of(mask: NDArray[np.bool_]) -> Rect:
    """Left, top, right, bottom (exclusive) of a mask; all zero when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _paint(canvas: NDArray[np.float32], mask: NDArray[np.bool_], color: tuple[int, int, int], stroke: float) -> None:
    """Blends fill and outline into float32 [H, W, 3]; works on the object's surroundings only."""
    left, top, right, bottom = _box_of(mask)
    if right == 0:
        return
    pad = int(stroke) + 4
    window = np.s_[max(0, top - pad) : bottom + pad, max(0, left - pad) : right + pad]
    inside = mask[window]
    # Distance to the mask's edge, negative inside. Outside the picture counts as inside: no outline along its border.
    edge = distance_transform_edt(~inside) - distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1]
    edge = edge - np.sign(edge) * 0.5
    tint = np.array(color, np.float32)
    area = canvas[window]
    _blend(area, tint, np.where(inside, FILL, 0.0))
    _blend(area, np.zeros(3, np.float32), _CASING * np.clip(stroke / 2 + 1.5 - np.abs(edge), 0.0, 1.0))
    _blend(area, tint, np.clip(stroke / 2 + 0.5 - np.abs(edge), 0.0, 1.0))


def _blend(area: NDArray[np.float32], color: NDArray[np.float32], share: NDArray[np.float64]) -> None:
    area += (color - area) * share[..., None].astype(np.float32)


def _chip(picture: Image.Image, text: str, box: Rect, color: tuple[int, int, int], taken: Sequence[Rect]) -> Rect:
    """Draws a label at an object's box, inside the picture and clear of the labels drawn before; returns its place."""
    width, height = picture.size
    font = label_font(max(10, round(min(width, height) * 0.042)))
    pen = ImageDraw.Draw(picture)
    text_left, _, text_right, _ = pen.textbbox((0, 0), text, font=font)
    ascent, descent = font.getmetrics()
    pad = max(2, round(font.size * 0.3))
    chip_width, chip_height = round(text_right - text_left) + 2 * pad, ascent + descent + pad // 2
    left = max(0, min(box[0], width - chip_width))
    top = box[1] - chip_height - 2  # above the object, or inside it where there is no room
    top = max(0, min(top if top >= 0 else box[1] + 2, height - chip_height))
    place = _free_place((left, top, left + chip_width, top + chip_height), taken, height)
    pen.rounded_rectangle(
        (place[0], place[1], place[2] - 1, place[3] - 1), radius=chip_height * 0.28, fill=color, outline=(16, 16, 16)
    )
    pen.text((place[0] + pad - text_left, place[1] + pad // 4), text, font=font, fill=text_color(color))
    return place


def _free_place(wanted: Rect, taken: Sequence[Rect], height: int) -> Rect:
    """The nearest place straight below or above `wanted` that covers no other label; `wanted` if none is free."""
    left, top, right, bottom = wanted
    size = bottom - top
    for shift in sorted(range(-height, height + 1, max(1, size // 2)), key=abs):
        moved = (left, top + shift, right, bottom + shift)
        if moved[1] >= 0 and moved[3] <= height and not any(_overlap(moved, other) for other in taken):
            return moved
    return wanted


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@lru_cache(maxsize=8)
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold at a size in pixels. matplotlib brings it along, so it is there on every machine."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), size)
