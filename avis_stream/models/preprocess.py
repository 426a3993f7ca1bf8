"""Pictures to the network's input: resize, normalise, pad."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from avis_stream.checks import check_shape
from avis_stream.config import InputConfig
from avis_stream.errors import ShapeError


def network_size(height: int, width: int, config: InputConfig) -> tuple[int, int]:
    """Size (height, width) to which a picture is resized: shorter side as configured, longer side bounded.

    Raises:
        ShapeError: There is no pixel.
    Source: detectron2's `ResizeShortestEdge`, rounding included.
    """
    if min(height, width) < 1:
        raise ShapeError(f"pictures must have at least a pixel, got {height}x{width}")
    scale = config.short_side_px / min(height, width)
    new_height, new_width = height * scale, width * scale
    longest = max(new_height, new_width)
    if longest > config.long_side_px:
        new_height, new_width = (side * config.long_side_px / longest for side in (new_height, new_width))
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of uint8 [T, 3, H, W] to uint8 [T, 3, *size], by Pillow as the official data loader does it."""
    check_shape(images, "images", "T 3 H W", dtype=torch.uint8)
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    height, width = size
    resized = []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        resized.append(np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)))
    stacked = np.stack(resized) if resized else np.empty((0, height, width, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def network_input(pictures: Tensor, config: InputConfig, device: torch.device) -> Tensor:
    """Pictures uint8 [T, 3, H, W] as the network wants them: resized, normalised and padded, float32 [T, 3, Hp, Wp]."""
    size = network_size(pictures.shape[-2], pictures.shape[-1], config)
    resized = resize_images(pictures.cpu(), size)  # Pillow's bytes, wherever they come from
    return normalise_and_pad(resized.to(device), config)


def normalise_and_pad(images: Tensor, config: InputConfig, at_least: tuple[int, int] = (0, 0)) -> Tensor:
    """Normalises uint8 [T, 3, H, W] and pads right and bottom with zeros: float32 [T, 3, Hp, Wp].

    Zeros after normalising, that is mid-grey; no mask marks the padding anywhere in the network.

    Args:
        images: Of one size.
        config: Mean, deviation, and what padded sides are multiples of.
        at_least: (height, width) of the largest pictures that these will be stacked with.
    """
    mean = torch.tensor(config.pixel_mean, device=images.device)[:, None, None]
    std = torch.tensor(config.pixel_std, device=images.device)[:, None, None]
    height, width = images.shape[-2:]
    pad_y, pad_x = (
        most - side + -most % config.size_divisor
        for side, most in ((height, max(height, at_least[0])), (width, max(width, at_least[1])))
    )
    return F.pad((images - mean) / std, (0, pad_x, 0, pad_y))
