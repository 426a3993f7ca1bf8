"""Matching, losses and gradients are the official ones, on the recorded random points."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from golden_data import arrays, assert_golden, tensor
from torch import Tensor

from avis_stream.config import LossConfig
from avis_stream.train.losses import Losses, Predictions, Targets, criterion, similarity_loss
from avis_stream.train.matcher import Match
from avis_stream.train.points import DrawPoints

FILE = "d_losses"
CONFIG = LossConfig(points=96)


def recorded_points(level: str) -> DrawPoints:
    """The recorded draws in the order in which they were made; each must be asked for in its recorded shape."""
    drawn: Iterator[Tensor] = iter(
        [tensor(FILE, key) for key in sorted(arrays(FILE)) if key.startswith(f"{level}.rand")]
    )

    def draw(masks: int, points: int) -> Tensor:
        recorded = next(drawn)
        assert tuple(recorded.shape) == (masks, points, 2)
        return recorded

    return draw


def frame_targets() -> list[Targets]:
    labels, ids, masks = (tensor(FILE, f"tgt.{k}") for k in ("labels", "ids", "masks_u8"))
    present = [ids[:, t] != -1 for t in range(4)]
    return [Targets(labels[p], masks[p, t, None].float(), ids[p, t]) for t, p in enumerate(present)]


def clip_targets() -> Targets:
    labels, ids, masks = (tensor(FILE, f"tgt.{k}") for k in ("labels", "ids", "masks_u8"))
    return Targets(labels, masks.float(), ids.amax(dim=1))


def head(level: str, name: str) -> Predictions:
    logits, masks = tensor(FILE, f"{level}.in.{name}pred_logits"), tensor(FILE, f"{level}.in.{name}pred_masks")
    if level == "frame":
        return Predictions(logits, masks[:, :, None])
    return Predictions(logits.flatten(0, 1), masks.flatten(0, 1))


def assert_losses(losses: Losses, level: str, suffix: str) -> None:
    prefix = "loss_" if level == "frame" else "loss_avism_"
    for value, name in ((losses.classes, "ce"), (losses.mask, "mask"), (losses.dice, "dice")):
        assert_golden(value, FILE, f"{level}.loss.{prefix}{name}{suffix}", atol=0, rtol=1e-5)


def assert_matches(matches: list[Match], level: str, name: str) -> None:
    for item, pairs in enumerate(matches):
        assert pairs.query.tolist() == tensor(FILE, f"{level}.match.{name}.b{item}.src").tolist()
        assert pairs.target.tolist() == tensor(FILE, f"{level}.match.{name}.b{item}.tgt").tolist()


@pytest.mark.parametrize(("level", "aux"), [("frame", 3), ("clip", 2)])
def test_every_head(level: str, aux: int) -> None:
    """Final head first, then the auxiliary ones, as the points were drawn."""
    draw = recorded_points(level)
    targets = frame_targets() if level == "frame" else [clip_targets()] * 3
    mask_count = sum(len(t.labels) for t in targets)
    total = torch.zeros(())
    for name in ["final", *(f"aux{i}" for i in range(aux))]:
        prefix, suffix = ("", "") if name == "final" else (f"{name}.", f"_{name[3:]}")
        predictions = head(level, prefix)
        predictions.logits.requires_grad_()
        predictions.masks.requires_grad_()
        losses, matches = criterion(predictions, targets, mask_count, CONFIG, draw)
        assert_matches(matches, level, name)
        assert_losses(losses, level, suffix)
        total = total + losses.total(CONFIG)
        if name == "final":
            losses.total(CONFIG).backward(retain_graph=True)
            assert_golden(predictions.logits.grad, FILE, f"{level}.grad_pred_logits", atol=1e-5, rtol=1e-4)
            assert_golden(predictions.masks.grad, FILE, f"{level}.grad_pred_masks", atol=1e-5, rtol=1e-4)
    if level == "clip":
        total = total + CONFIG.similarity_weight * recorded_similarity()[0]
    assert_golden(total, FILE, f"{level}.weighted_total", atol=0, rtol=1e-5)


def recorded_similarity() -> tuple[Tensor, Tensor, Tensor]:
    """The similarity loss on the recorded assignments, with the embeddings that it may be derived by."""
    video, frame = tensor(FILE, "clip.in.pred_cq_embed"), tensor(FILE, "clip.in.pred_fq_embed")
    video.requires_grad_()
    frame.requires_grad_()
    frames, clip = frame_targets(), clip_targets()
    embeddings, ids, items = [], [], []
    for item in range(3):
        for t in range(4):
            source = tensor(FILE, f"clip.fg_indices.l{item}.b{t}.src")
            target = tensor(FILE, f"clip.fg_indices.l{item}.b{t}.tgt")
            embeddings.append(frame[item, 0, t, source])
            ids.append(frames[t].ids[target])
        source, target = (tensor(FILE, f"clip.match.final.b{item}.{side}") for side in ("src", "tgt"))
        embeddings.append(video[item, 0, source])
        ids.append(clip.ids[target])
        items.append(torch.full((sum(map(len, ids)) - sum(map(len, items)),), item))
    return similarity_loss(torch.cat(embeddings), torch.cat(ids), torch.cat(items)), video, frame


def test_similarity() -> None:
    loss, video, frame = recorded_similarity()
    assert_golden(loss, FILE, "clip.loss.loss_clip_sim", atol=0, rtol=1e-5)
    loss.backward()
    assert_golden(video.grad, FILE, "clip.grad_sim_cq", atol=1e-5, rtol=1e-4)
    assert_golden(frame.grad, FILE, "clip.grad_sim_fq", atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", ["frame", "clip"])
def test_nothing_to_find(level: str) -> None:
    """Without objects the masks cost nothing, and every query is pushed to "no object"."""
    predictions = head(level, "")
    items, frames = predictions.masks.shape[0], predictions.masks.shape[2]
    empty = Targets(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, frames, 48, 64), torch.zeros(0, dtype=torch.int64)
    )
    predictions.masks.requires_grad_()
    losses, _ = criterion(predictions, [empty] * items, 1.0, CONFIG, lambda masks, points: torch.rand(masks, points, 2))
    prefix = "loss_" if level == "frame" else "loss_avism_"
    assert_golden(losses.classes, FILE, f"{level}_empty.loss.{prefix}ce", atol=0, rtol=1e-5)
    assert losses.mask.item() == losses.dice.item() == 0.0
    losses.total(CONFIG).backward()
    assert predictions.masks.grad is not None
    assert not predictions.masks.grad.any()
