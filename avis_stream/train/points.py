"""Points at which masks are compared: a few thousand, not every pixel. Source: PointRend, as Mask2Former uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.config import LossConfig

DrawPoints = Callable[[int, int], Tensor]
"""(masks, points) to uniform random points [masks, points, 2], x and y in [0, 1]."""


def random_points(device: torch.device) -> DrawPoints:
    """Draws from torch's generator of `device`."""
    return lambda masks, points: torch.rand(masks, points, 2, device=device)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps at points, zeros outside.

    Args:
        maps: [N, C, h, w].
        points: [N, P, 2], x and y in [0, 1]; the same points for all C maps of a row.
    Returns:
        [N, C, P].
    """
    grid = 2 * points[:, None] - 1  # [N, 1, P, 2]
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, config: LossConfig, draw: DrawPoints) -> Tensor:
    """Points for the mask losses: mostly where a mask is least sure of itself, the rest anywhere.

    Args:
        logits: [N, 1, h, w].
        config: `points`, `oversample`, `importance`.
        draw: Where random points come from; called for the candidates first, then for the rest.
    Returns:
        [N, config.points, 2].
    """
    candidates = draw(len(logits), int(config.points * config.oversample))
    certainty = sample(logits, candidates)[:, 0].abs()
    chosen = int(config.points * config.importance)
    index = certainty.topk(chosen, dim=1, largest=False).indices
    points = candidates.gather(1, index[..., None].expand(-1, -1, 2))
    return torch.cat([points, draw(len(logits), config.points - chosen)], dim=1)
