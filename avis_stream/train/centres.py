"""The map of object centres that `models/peaks.py` learns: a bump at each object, compared by a focal loss.

Source: "Objects as Points" (Zhou et al., 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.train.losses import Targets

_BUMP = 0.12
"""Width of a bump, as a share of the square root of its object's area."""


@torch.no_grad()
def centre_map(targets: list[Targets], classes: int, size: tuple[int, int]) -> Tensor:
    """Bumps of height 1, [items, K, h, w]: one for each object of each frame, in the map of its class.

    Args:
        targets: Of frames, masks [G, 1, H, W].
        classes: K.
        size: h and w, of a stride that divides H and W.
    """
    height, width = size
    maps = torch.zeros(len(targets), classes, height, width, device=targets[0].masks.device if targets else None)
    y = torch.arange(height, device=maps.device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=maps.device, dtype=torch.float32)[None, :]
    for item, target in enumerate(targets):
        for label, mask in zip(target.labels.tolist(), target.masks[:, 0], strict=True):
            if label >= classes:
                continue
            stride = mask.shape[0] / height
            row, column = (place / stride for place in middle(mask))
            width_of_bump = max(0.7, _BUMP * float(mask.sum()) ** 0.5 / stride)
            distance = (y - int(row)) ** 2 + (x - int(column)) ** 2
            bump = torch.exp(-distance / (2 * width_of_bump**2))
            maps[item, label] = torch.maximum(maps[item, label], bump)
    return maps


def middle(mask: Tensor) -> tuple[int, int]:
    """Row and column of a place inside a mask [H, W] that has pixels: the one nearest to their median."""
    places = mask.nonzero()
    median = places.float().median(dim=0).values
    row, column = places[(places - median).square().sum(1).argmin()].tolist()
    return row, column


def centre_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of a map [items, K, h, w], a mean over centres: places near a centre count less as mistakes."""
    chance = logits.float().sigmoid()
    centre = wanted == 1
    hit = (1 - chance) ** 2 * F.logsigmoid(logits.float()) * centre
    miss = (1 - wanted) ** 4 * chance**2 * F.logsigmoid(-logits.float()) * ~centre
    return -(hit.sum() + miss.sum()) / centre.sum().clamp(min=1)
