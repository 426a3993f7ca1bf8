"""From the tracker's scores and a clip's mask features to instances; every threshold is a field of the configuration.

Source: official `AVISM.inference_video`; quirks Q9 to Q11, Q17 and Q18 of `docs/official_quirks.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avis_stream.config import PostprocessConfig
from avis_stream.data import rle
from avis_stream.data.rle import Rle
from avis_stream.models.pieces import best_pieces

_FRAMES_AT_ONCE = 5
"""Frames whose masks are drawn together."""

_HIDDEN_LOGIT = -100.0
"""Of masks in frames where their object is not shown."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """(query, class) pairs that may become instances, best class score first."""

    class_score: Tensor
    """float32 [I]."""
    class_id: Tensor
    """int64 [I]."""
    query_id: Tensor
    """int64 [I]."""

    def of(self, kept: Tensor) -> Candidates:
        """Those that bool [I] `kept` names."""
        return Candidates(self.class_score[kept], self.class_id[kept], self.query_id[kept])


@dataclass(frozen=True, slots=True)
class MaskSizes:
    """The three sizes a mask goes through, (height, width) each."""

    padded: tuple[int, int]
    """Network input with its padding."""
    network: tuple[int, int]
    """Network input without padding; mask quality is measured here (quirk Q18)."""
    output: tuple[int, int]
    """The masks that the user gets."""


def select_candidates(logits: Tensor, config: PostprocessConfig) -> Candidates:
    """The best (query, class) pairs of class logits [M, K + 1].

    A pair's final score is its class score times a mask quality of at most 1, so pairs whose class score does not pass
    the threshold are dropped here, before any work on masks, with identical results (quirk Q17).
    """
    scores = logits.softmax(-1)[:, :-1]
    classes = scores.shape[1]
    if config.one_class:
        scores = scores * (scores == scores.amax(dim=1, keepdim=True))
    best, index = scores.flatten().topk(min(config.top_k, scores.numel()))
    passes = best > config.score_threshold
    return Candidates(best[passes], index[passes] % classes, index[passes] // classes)


@dataclass(frozen=True, slots=True)
class Instances:
    """What is left when all is decided, best first."""

    score: Tensor
    """float32 [I], class score x mask quality."""
    class_id: Tensor
    """int64 [I]."""
    query_id: Tensor
    """int64 [I]."""
    rles: tuple[tuple[Rle, ...], ...]
    """[I][T], masks at output size."""
    presence: Tensor | None = None
    """float32 [I, T], chance of sounding in each frame; None without a sounding head."""


@torch.no_grad()
def find_instances(
    logits: Tensor,
    mask_embed: Tensor,
    features: Iterable[tuple[int, Tensor]],
    sizes: MaskSizes,
    config: PostprocessConfig,
    presence: Tensor | None = None,
    there: Tensor | None = None,
) -> Instances:
    """Decides what a clip holds.

    Args:
        logits: [M, K + 1].
        mask_embed: [M, Cm], or [M, T, Cm] with one for each frame.
        features: (first frame, [t, Cm, h, w]) in order, as a `MaskStore` yields them.
        sizes: Through which the masks go.
        config: Thresholds.
        presence: [M, T], chance of sounding in each frame, for models with a sounding head: masks are drawn only where
            it passes, and an instance that never passes is none.
        there: Bool [M, T], frames in which there is anything to draw; None: in all.
    """
    candidates = select_candidates(logits, config)
    sounds = None if presence is None else presence > config.presence_threshold
    if there is not None:
        sounds = there if sounds is None else sounds & there
    if sounds is not None:
        candidates = candidates.of(sounds.any(dim=1)[candidates.query_id])
    queries, slot = candidates.query_id.unique(return_inverse=True)
    shown = None if sounds is None else sounds[queries]
    quality, tracks = draw_masks(mask_embed[queries], features, sizes, shown, one_piece=config.one_piece)
    score = candidates.class_score * quality[slot]
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] > config.score_threshold]
    if config.duplicate_iou is not None:
        iou = _overlaps([tracks[j] for j in slot[order].tolist()])
        if not config.one_class:  # an object may be given as several classes, so only one of the same is its double
            named = candidates.class_id[order].cpu().numpy()
            iou *= named[:, None] == named[None, :]
        order = order[best_of_their_place(iou, config.duplicate_iou)]
    return Instances(
        score[order],
        candidates.class_id[order],
        candidates.query_id[order],
        tuple(tuple(tracks[j]) for j in slot[order].tolist()),
        None if presence is None else presence[candidates.query_id[order]],
    )


def _overlaps(tracks: Sequence[Sequence[Rle]]) -> NDArray[np.float64]:
    """Overlap [N, N] of N tracks [N][T], over all their frames."""
    if not tracks:
        return np.zeros((0, 0))
    common = sum(rle.intersections([track[t] for track in tracks]) for t in range(len(tracks[0])))
    areas = np.diagonal(common)
    iou: NDArray[np.float64] = common / np.maximum(areas[:, None] + areas[None, :] - common, 1)
    return iou


def best_of_their_place(iou: NDArray[np.floating], most: float) -> list[int]:
    """Those of N masks, best first, that overlap no better one that is kept by more than `most`; online as offline.

    Greedy, as ever since R-CNN: what is dropped drops nothing itself, so a chain of neighbours does not vanish whole.

    Args:
        iou: [N, N].
        most: In [0, 1].
    """
    kept: list[int] = []
    for n in range(len(iou)):
        if not (iou[n, kept] > most).any():
            kept.append(n)
    return kept


class MaskQuality:
    """Running mean of a mask's own certainty: mean soft mask value inside the hard mask, over all frames so far."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._certain = torch.zeros(count, device=device)
        self._area = torch.zeros(count, device=device)

    def add(self, logits: Tensor) -> None:
        """Counts mask logits [t, J, H, W] at network size."""
        hard = logits > 0
        self._certain += (logits.sigmoid() * hard).sum(dim=(0, 2, 3))
        self._area += hard.sum(dim=(0, 2, 3))

    def value(self) -> Tensor:
        """[J], 0 for masks that are empty everywhere."""
        return self._certain / (self._area + 1e-6)


@torch.no_grad()
def draw_masks(
    mask_embed: Tensor,
    features: Iterable[tuple[int, Tensor]],
    sizes: MaskSizes,
    shown: Tensor | None = None,
    *,
    one_piece: bool = False,
) -> tuple[Tensor, list[list[Rle]]]:
    """Draws the masks of J queries on all frames, in one pass over the mask features.

    Args:
        mask_embed: [J, Cm], or [J, T, Cm] with one for each frame.
        features: (first frame, [t, Cm, h, w]) in order, as a `MaskStore` yields them.
        sizes: Through which the masks go.
        shown: bool [J, T], frames in which a mask is drawn and judged, empty in all others; None: in all.
        one_piece: As `PostprocessConfig.one_piece`.
    Returns:
        Mask quality [J], and for each query one RLE a frame at output size.
    """
    quality = MaskQuality(len(mask_embed), mask_embed.device)
    tracks: list[list[Rle]] = [[] for _ in mask_embed]
    if not len(mask_embed):
        return quality.value(), tracks
    for first, stored in features:
        for at, part in zip(
            range(first, first + len(stored), _FRAMES_AT_ONCE), stored.split(_FRAMES_AT_ONCE), strict=True
        ):
            embed = mask_embed if mask_embed.dim() == 2 else mask_embed[:, at : at + len(part)]
            logits = mask_logits(embed, part.to(mask_embed.device), sizes, one_piece=one_piece)
            if shown is not None:  # no mask at all: far below every threshold, and still finite for the resizing
                hidden = ~shown[:, at : at + len(part)].T
                logits = logits.masked_fill(hidden[..., None, None], _HIDDEN_LOGIT)
            quality.add(logits)
            masks = resize_logits(logits, sizes.output) > 0  # [t, J, H, W]
            for j, track in enumerate(tracks):
                track.extend(rle.encode(mask) for mask in masks[:, j])
    return quality.value(), tracks


def mask_logits(mask_embed: Tensor, features: Tensor, sizes: MaskSizes, *, one_piece: bool = False) -> Tensor:
    """Mask logits [t, J, H, W] at network size, of embeddings [J, Cm] or [J, t, Cm] on features [t, Cm, h, w]."""
    letters = "jc" if mask_embed.dim() == 2 else "jtc"
    logits = torch.einsum(f"{letters},tchw->tjhw", mask_embed, features)
    if one_piece:
        logits = best_pieces(logits)
    height, width = sizes.network
    return resize_logits(logits, sizes.padded)[..., :height, :width]


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize, pixel centres not aligned to the corners, as everywhere in the official code."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
