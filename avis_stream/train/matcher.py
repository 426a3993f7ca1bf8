"""Which query answers for which object: the cheapest one-to-one assignment by class and mask.

Source: Mask2Former's and VITA's Hungarian matchers; one form serves frames (T = 1) and clips.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.config import LossConfig
from avis_stream.train.points import DrawPoints, sample


class Match(NamedTuple):
    """Pairs of one item: query `query[i]` answers for object `target[i]`."""

    query: Tensor
    """int64 [G], rising."""
    target: Tensor
    """int64 [G]."""


@torch.no_grad()
def match(
    logits: Tensor, masks: Tensor, labels: Tensor, targets: Tensor, config: LossConfig, draw: DrawPoints
) -> Match:
    """Matches the queries of one item (a frame, or a clip) with its objects.

    Args:
        logits: [Q, K + 1].
        masks: [Q, T, h, w], logits.
        labels: int64 [G].
        targets: [G, T, H, W], 0 or 1.
        config: Weights of the costs and number of points.
        draw: Called once, for the points that all queries, objects and frames share.
    """
    from scipy.optimize import linear_sum_assignment

    points = draw(1, config.points)
    cost = matching_cost(logits, _at(masks, points), labels, _at(targets.to(masks.dtype), points), config)
    # Any assignment will do where a prediction is not finite: the loss is not either, and that is what is reported.
    query, target = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
    return Match(torch.from_numpy(query), torch.from_numpy(target))


def matching_cost(logits: Tensor, masks: Tensor, labels: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """Cost [Q, G] of every query for every object.

    Args:
        logits: [Q, K + 1].
        masks: [Q, P], logits at the points.
        labels: int64 [G].
        targets: [G, P], values at the same points.
        config: Weights of the three terms.
    """
    by_class = -logits.softmax(-1)[:, labels]
    on = masks.sigmoid()
    crossed = F.softplus(-masks) @ targets.T + F.softplus(masks) @ (1 - targets).T
    overlap = 2 * on @ targets.T
    size = on.sum(-1)[:, None] + targets.sum(-1)[None, :]
    dice = 1 - (overlap + 1) / (size + 1)
    by_mask = crossed / masks.shape[1]
    cost: Tensor = config.class_weight * by_class + config.mask_weight * by_mask + config.dice_weight * dice
    return cost


def _at(masks: Tensor, points: Tensor) -> Tensor:
    """Values [N, T P] of masks [N, T, h, w] at points [1, P, 2] that all of them share."""
    values: Tensor = sample(masks.flatten(0, 1)[None], points)[0]
    together: Tensor = values.unflatten(0, masks.shape[:2]).flatten(1)
    return together
