"""Which frame queries of a clip are one object: linked from frame to frame by place, class and look.

Tracking by detection. What is seen in a frame continues what is known so far, one to one, so that together they are as
alike as can be; what nothing continues begins an object. Nothing is ever forgotten inside a clip: who returns is linked
by class and look alone. It looks back only, as `online.identities` does with the same frame queries on a stream.

Source: assignment as in SORT (Bewley et al., ICIP 2016), frame queries as detections as in MinVIS (Huang et al.,
NeurIPS 2022), looks compared in the similarity space of VITA's tracker; ADR 0010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.config import PostprocessConfig
from avis_stream.models.pieces import best_pieces
from avis_stream.models.postprocess import MaskSizes, best_of_their_place, resize_logits

MASK_GRID = (48, 80)
"""Size at which masks are compared: the same for pictures of all sizes."""

_LEAST_ALIKE = 0.9
"""Of 3, the sum of overlap, likeness of class and chance of being the same object, to be linked. Not sensitive: on 24
videos of val 0.9 and 1.3 give the same scores to half a tenth."""

_PLACE_KEPT = 0.9
"""Share of its say that the last place keeps for each further frame in which an object was not seen."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """What one frame shows: J frame queries, each a thing of its own, best first."""

    query: Tensor
    """int64 [J]."""
    probability: Tensor
    """float32 [J, K + 1], of each class; the last is "no object"."""
    grid: Tensor
    """bool [J, *MASK_GRID], masks."""

    def __len__(self) -> int:
        return len(self.query)


def sight(
    logits: Tensor, mask_embed: Tensor, features: Tensor, sizes: MaskSizes, config: PostprocessConfig
) -> Sightings:
    """The frame queries that show something, on the CPU.

    Args:
        logits: [N, K + 1].
        mask_embed: [N, Cm].
        features: [Cm, h, w], mask features of the frame.
        sizes: Through which masks go.
        config: Its `score_threshold` and `duplicate_iou` hold for frames as for clips.
    """
    probability = logits.float().softmax(-1)
    best, query = probability[:, :-1].amax(-1).sort(descending=True, stable=True)
    query = query[best > config.score_threshold]
    if not len(query):
        return Sightings(query.cpu(), probability[query].cpu(), torch.zeros(0, *MASK_GRID, dtype=torch.bool))
    grid = mask_grids(feature_logits(mask_embed[query], features, sizes, one_piece=config.one_piece))
    there = grid.flatten(1).any(dim=1)
    query, grid = query[there], grid[there]
    if config.duplicate_iou is not None:
        kept = best_of_their_place(mask_iou(grid, grid).cpu().numpy(), config.duplicate_iou)
        query, grid = query[kept], grid[kept]
    return Sightings(query.cpu(), probability[query].cpu(), grid.cpu())


def feature_logits(mask_embed: Tensor, features: Tensor, sizes: MaskSizes, *, one_piece: bool = False) -> Tensor:
    """Mask logits float32 [J, h', w'] of embeddings [J, Cm] where the mask features [Cm, h, w] show the picture itself,
    not its padding.
    """
    stride = sizes.padded[0] // features.shape[1]
    height, width = (-(-side // stride) for side in sizes.network)
    logits = torch.einsum("jc,chw->jhw", mask_embed, features[:, :height, :width]).float()
    return best_pieces(logits) if one_piece else logits


def mask_grids(logits: Tensor) -> Tensor:
    """Masks bool [J, *MASK_GRID] of mask logits [J, h, w], J >= 1."""
    return resize_logits(logits[None], MASK_GRID)[0] > 0


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap [I, J] in [0, 1] of masks bool [I, h, w] and [J, h, w]; 0 for empty ones."""
    x, y = a.flatten(1).float(), b.flatten(1).float()
    both = x @ y.T
    either = x.sum(1)[:, None] + y.sum(1) - both
    return both / either.clamp(min=1)


def link(frames: Sequence[Sightings], looks: Sequence[Tensor]) -> Tensor:
    """Which sightings are one object.

    Args:
        frames: [T], what each shows.
        looks: [T] of [J, C]: the sigmoid of a dot product is the chance of two being the same object.
    Returns:
        int64 [M, T], which of a frame's sightings an object is, -1 where it is not seen; in order of first sight, best
        first.
    """
    known = _Known()
    for t, (seen, look) in enumerate(zip(frames, looks, strict=True)):
        rows, columns = known.continued_by(t, seen, look)
        known.carry_on(t, rows, columns, seen, look)
        known.begin(t, columns, seen, look)
    objects = torch.full((len(known.places), len(frames)), -1)
    for row, places in enumerate(known.places):
        for t, place in places.items():
            objects[row, t] = place
    return objects


@dataclass(frozen=True, slots=True)
class Linked:
    """M objects of a clip of T frames."""

    number: Tensor
    """int64 [M, T], the frame query that is the object; 0 where none is."""
    there: Tensor
    """bool [M, T], frames in which one is."""
    probability: Tensor
    """float32 [M, K + 1], of each class, the mean over its frame queries; the last is "no object"."""


def likeliest_objects(frames: Sequence[Sightings], place: Tensor, most: int) -> Linked:
    """What is known of linked objects: of the `most` whose best class is surest.

    Nothing else could be shown, and masks of all objects in all frames would grow with the square of a clip's length.

    Args:
        frames: [T], at least one.
        place: int64 [M, T], what `link` gave.
        most: Objects to keep, in the order in which they are.
    """
    there = place >= 0
    number, probability = torch.zeros_like(place), torch.zeros(len(place), frames[0].probability.shape[1])
    for t, (seen, now, own) in enumerate(zip(frames, there.T, place.T, strict=True)):
        number[now, t] = seen.query[own[now]]
        probability[now] += seen.probability[own[now]]
    probability /= there.sum(dim=1, keepdim=True).clamp(min=1)
    best = probability[:, :-1].amax(dim=1).topk(min(most, len(place))).indices.sort().values
    return Linked(number[best], there[best], probability[best])


class _Known:
    """The objects so far: M rows that only grow."""

    def __init__(self) -> None:
        self.places: list[dict[int, int]] = []
        """By frame, which of its sightings."""
        self.look = torch.zeros(0, 0)
        """[M, C], the mean so far."""
        self.probability = torch.zeros(0, 0)
        """[M, K + 1], the mean so far."""
        self.grid = torch.zeros(0, *MASK_GRID, dtype=torch.bool)
        """[M, *MASK_GRID], when last seen."""
        self.last = torch.zeros(0, dtype=torch.int64)
        """[M], the frame in which that was."""

    def continued_by(self, t: int, seen: Sightings, look: Tensor) -> tuple[Tensor, Tensor]:
        """Rows int64 [n] and the sightings int64 [n] that continue them in frame `t`."""
        if not self.places or not len(seen):
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        from scipy.optimize import linear_sum_assignment  # importing the package stays light

        place = mask_iou(self.grid, seen.grid) * (_PLACE_KEPT ** (t - self.last - 1))[:, None]
        classes = F.normalize(self.probability[:, :-1], dim=-1) @ F.normalize(seen.probability[:, :-1], dim=-1).T
        alike = place + classes + (self.look @ look.T).sigmoid()
        rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(-alike.double().numpy()))
        linked = alike[rows, columns] > _LEAST_ALIKE
        return rows[linked], columns[linked]

    def carry_on(self, t: int, rows: Tensor, columns: Tensor, seen: Sightings, look: Tensor) -> None:
        """Learns what the objects of `rows` look like now."""
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            share = 1 / (len(self.places[row]) + 1)
            self.look[row].lerp_(look[column], share)
            self.probability[row].lerp_(seen.probability[column], share)
            self.places[row][t] = column
        self.grid[rows], self.last[rows] = seen.grid[columns], t

    def begin(self, t: int, taken: Tensor, seen: Sightings, look: Tensor) -> None:
        """Begins objects with the sightings that continue none."""
        new = torch.ones(len(seen), dtype=torch.bool)
        new[taken] = False
        if not new.any():
            return
        self.places += [{t: column} for column in new.nonzero()[:, 0].tolist()]
        first = not len(self.look)
        self.look = look[new].clone() if first else torch.cat([self.look, look[new]])
        self.probability = (
            seen.probability[new].clone() if first else torch.cat([self.probability, seen.probability[new]])
        )
        self.grid = torch.cat([self.grid, seen.grid[new]])
        self.last = torch.cat([self.last, torch.full((int(new.sum()),), t)])
