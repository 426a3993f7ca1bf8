"""Changes to training clips that keep the truth true: resize, crop, flip; alike in all frames but for where they crop.

Source: the official data loader, quirk Q19 (frames may repeat) included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.config import AugmentConfig
from avis_stream.models.preprocess import network_size, resize_images

Rng = np.random.Generator


def draw_frames(length: int, count: int, config: AugmentConfig, rng: Rng) -> list[int]:
    """Frames of a training clip: one anywhere, the rest near it, drawn with replacement; in order of time."""
    reference = int(rng.integers(length))
    low, high = max(0, reference - config.frame_range), min(length, reference + config.frame_range + 1)
    near = [t for t in range(low, high) if t != reference] or [reference]
    return sorted([reference, *(int(t) for t in rng.choice(near, count - 1))])


@dataclass(frozen=True, slots=True)
class Geometry:
    """What happens to the pictures of one clip."""

    first_side: int | None
    """Shorter side before cropping; None: no crop."""
    crop: tuple[int, int]
    """Height and width of the crop."""
    corners: tuple[tuple[int, int], ...]
    """Top and left of the crop in each frame."""
    side: int
    """Shorter side in the end."""
    flip: bool


def draw_geometry(height: int, width: int, frames: int, config: AugmentConfig, rng: Rng) -> Geometry:
    """Draws the geometry of a clip of pictures of one size."""
    side = int(rng.choice(config.short_sides_px))
    flip = bool(rng.random() < config.flip_share)
    if rng.random() >= config.crop_share:
        return Geometry(None, (0, 0), (), side, flip)
    first = int(rng.choice(config.crop_first_sides_px))
    size = network_size(height, width, config.limits(first, crop=True))
    low, high = config.crop_range_px
    crop = tuple(int(rng.integers(min(s, low), min(s, high) + 1)) for s in size)
    room = [s - c for s, c in zip(size, crop, strict=True)]
    begin = np.array([rng.uniform(0, r) for r in room])
    end = np.array([rng.uniform(b, r) for b, r in zip(begin, room, strict=True)])
    along = np.sort(rng.random(frames))[:, None]
    path = np.round(begin * along + end * (1 - along)).astype(int)
    if rng.random() < 0.5:
        path = path[::-1]
    corners = tuple((int(y), int(x)) for y, x in path)
    return Geometry(first, (crop[0], crop[1]), corners, side, flip)


def apply_geometry(images: Tensor, masks: Tensor, geometry: Geometry, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Changes pictures uint8 [T, 3, H, W] and masks bool [G, T, H, W] alike."""
    if geometry.first_side is not None:
        size = network_size(images.shape[-2], images.shape[-1], config.limits(geometry.first_side, crop=True))
        images, masks = resize_images(images, size), _resize_masks(masks, size)
        height, width = geometry.crop
        cut = [(slice(y, y + height), slice(x, x + width)) for y, x in geometry.corners]
        images = torch.stack([image[:, y, x] for image, (y, x) in zip(images, cut, strict=True)])
        masks = torch.stack([masks[:, t, y, x] for t, (y, x) in enumerate(cut)], dim=1)
    size = network_size(images.shape[-2], images.shape[-1], config.limits(geometry.side, crop=False))
    images, masks = resize_images(images, size), _resize_masks(masks, size)
    return (images.flip(-1), masks.flip(-1)) if geometry.flip else (images, masks)


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not masks.shape[0]:
        return masks.new_zeros((0, masks.shape[1], *size))
    return F.interpolate(masks.float(), size=size, mode="nearest-exact").bool()
