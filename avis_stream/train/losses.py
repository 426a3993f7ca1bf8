"""Losses of frames and clips: class, mask, dice, and the similarity of queries that mean the same object.

A frame is a clip of one frame, so one criterion serves both levels; what differs is how many items there are and what a
mask counts for. Source: Mask2Former's `SetCriterion`, VITA's `VitaSetCriterion`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.config import LossConfig
from avis_stream.train.matcher import Match, match
from avis_stream.train.points import DrawPoints, sample, uncertain_points


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one prediction head says about a batch of items."""

    logits: Tensor
    """[items, Q, K + 1]."""
    masks: Tensor
    """[items, Q, T, h, w], logits; T = 1 for frames."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of one item."""

    labels: Tensor
    """int64 [G]."""
    masks: Tensor
    """bool or float [G, T, H, W]."""
    ids: Tensor
    """int64 [G], the same for the same object in every frame of a clip and in the clip itself."""
    sounding: Tensor | None = None
    """bool [G] of a frame's objects, [G, T] of a clip's; None: all of them sound."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Unweighted losses of one prediction head."""

    classes: Tensor
    mask: Tensor
    dice: Tensor

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum that is trained on."""
        weighted: Tensor = (
            config.class_weight * self.classes + config.mask_weight * self.mask + config.dice_weight * self.dice
        )
        return weighted


def criterion(
    predictions: Predictions, targets: list[Targets], mask_count: float, config: LossConfig, draw: DrawPoints
) -> tuple[Losses, list[Match]]:
    """Matches every item and compares it with its targets.

    Args:
        predictions: Of one prediction head.
        targets: One entry an item.
        mask_count: What mask losses are divided by: objects over all items (and, in training on several machines, their
            mean), at least 1.
        config: Weights and numbers of points.
        draw: Called for the matching of each item in order, then twice for the masks.
    """
    matches = [
        match(logits, masks, wanted.labels, wanted.masks, config, draw)
        for logits, masks, wanted in zip(predictions.logits, predictions.masks, targets, strict=True)
    ]
    classes = class_loss(predictions.logits, targets, matches, config)
    mask, dice = mask_losses(predictions.masks, targets, matches, mask_count, config, draw)
    return Losses(classes, mask, dice), matches


def class_loss(logits: Tensor, targets: list[Targets], matches: list[Match], config: LossConfig) -> Tensor:
    """Cross entropy over all queries of all items [items, Q, K + 1]; those that answer for nothing count less."""
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], nothing, dtype=torch.int64, device=logits.device)
    for row, target, pairs in zip(wanted, targets, matches, strict=True):
        row[pairs.query] = target.labels[pairs.target]
    weight = torch.ones(nothing + 1, device=logits.device)
    weight[-1] = config.no_object_weight
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), weight)


def mask_losses(
    masks: Tensor,
    targets: list[Targets],
    matches: list[Match],
    mask_count: float,
    config: LossConfig,
    draw: DrawPoints,
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and dice of the matched masks [items, Q, T, h, w], at uncertain points of each frame."""
    pairs = sum(len(m.query) for m in matches)
    if not pairs:  # a sum over nothing that still reaches every weight, so that all processes reduce alike
        nothing = masks.sum() * 0.0
        return nothing, nothing
    item = torch.cat([torch.full_like(m.query, i) for i, m in enumerate(matches)])
    query = torch.cat([m.query for m in matches])
    chosen = masks[item, query].flatten(0, 1)[:, None]  # [pairs T, 1, h, w]
    wanted = torch.cat([t.masks[m.target] for t, m in zip(targets, matches, strict=True)])
    wanted = wanted.flatten(0, 1)[:, None].to(chosen.dtype)
    points = uncertain_points(chosen, config, draw)
    truth = sample(wanted, points).view(pairs, -1).detach()
    logits = sample(chosen, points).view(pairs, -1)
    crossed = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum() / mask_count
    on = logits.sigmoid()
    dice = 1 - (2 * (on * truth).sum(-1) + 1) / (on.sum(-1) + truth.sum(-1) + 1)
    return crossed, dice.sum() / mask_count


def sounding_loss(logits: Tensor, targets: list[Targets], matches: list[Match]) -> Tensor:
    """Binary cross entropy of the sounding head's logits [items, Q], on matched queries: others are no object."""
    chosen = torch.cat([row[pairs.query] for row, pairs in zip(logits, matches, strict=True)]).float()
    wanted = torch.cat([_sounds(t)[pairs.target] for t, pairs in zip(targets, matches, strict=True)]).to(chosen.dtype)
    return F.binary_cross_entropy_with_logits(chosen, wanted, reduction="sum") / max(1, len(chosen))


def tag_loss(tags: Tensor, heard: Tensor) -> Tensor:
    """Binary cross entropy of the classes in the sound, logits [T, K], against those heard, [T, K]."""
    return F.binary_cross_entropy_with_logits(tags.float(), heard)


def _sounds(target: Targets) -> Tensor:
    return torch.ones_like(target.labels, dtype=torch.bool) if target.sounding is None else target.sounding


def similarity_loss(embeddings: Tensor, ids: Tensor, items: Tensor) -> Tensor:
    """Pulls embeddings of one object together and those of different objects apart.

    Every embedding is compared with every other of its item, itself included; sigmoid of the dot product is the chance
    that two mean the same object.

    Args:
        embeddings: [E, C], of matched frame queries and matched video queries.
        ids: int64 [E], which object each means.
        items: int64 [E], which item each belongs to; pairs across items do not count.
    """
    logits = embeddings @ embeddings.T
    same = (ids[:, None] == ids[None, :]).to(logits.dtype)
    counts = (items[:, None] == items[None, :]).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none") * counts
    return loss.sum() / (counts.sum() + 1e-6)
