"""What a frame shows, and what is known of each identity: values that the rules of `online/identities.py` work on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from avis_stream.models.linking import MASK_GRID
from avis_stream.online.colours import COLOURS
from avis_stream.online.config import OnlineConfig

FREE, TENTATIVE, SOUNDING, SILENT, DORMANT = range(5)
"""What an identity is since the last step, `IdentityTable.status`."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one frame shows: J video queries with a mask in it, best first."""

    query: Tensor
    """int64 [J], video queries; -1 where frame queries are the objects: their numbers tell the next frame nothing."""
    probability: Tensor
    """float32 [J, K], of each class."""
    similarity: Tensor
    """float32 [J, C]."""
    certain: Tensor
    """float64 [J], sum of the soft mask inside the hard mask."""
    area: Tensor
    """float64 [J], pixels of the hard mask, as `OnlineConfig.judge_at` counts them."""
    grid: Tensor
    """bool [J, *MASK_GRID], the mask."""
    mask_embed: Tensor
    """float32 [J, Cm]."""
    evidence: Tensor
    """float32 [J], log-odds that it sounds, by this frame alone; infinite where nothing is asked."""
    may_be_born: Tensor
    """bool [J]."""
    colours: Tensor
    """float32 [J, COLOURS], as `colours_of` gives them; NaN: unknown."""
    token: Tensor
    """float32 [J, C], the object token of the frame that is likest it."""
    token_slot: Tensor
    """int64 [J], the frame query of that token."""

    @staticmethod
    def nothing(classes: int, channels: int, mask_channels: int) -> Observation:
        """A frame in which no query has a mask."""
        ints, flags, sums = (torch.zeros(0, dtype=t) for t in (torch.int64, torch.bool, torch.float64))
        looks = torch.zeros(0, channels)
        return Observation(
            query=ints,
            probability=torch.zeros(0, classes),
            similarity=looks,
            certain=sums,
            area=sums,
            grid=torch.zeros(0, *MASK_GRID, dtype=torch.bool),
            mask_embed=torch.zeros(0, mask_channels),
            evidence=torch.zeros(0),
            may_be_born=flags,
            colours=torch.zeros(0, COLOURS),
            token=looks,
            token_slot=ints,
        )

    def __len__(self) -> int:
        return len(self.query)

    @property
    def class_score(self) -> Tensor:
        """[J]."""
        return self.probability.amax(-1)

    @property
    def score(self) -> Tensor:
        """[J], class score x mask quality on this frame."""
        return self.class_score * (self.certain / (self.area + 1e-6)).float()


@dataclass(slots=True)
class IdentityTable:
    """Up to N identities, on the CPU, written in place. Rows have no order; a public id is given once, for ever."""

    next_id: int
    """The next public id, from 1."""
    status: Tensor
    """int64 [N], one of FREE to DORMANT."""
    public_id: Tensor
    """int64 [N]; 0 for rows without one."""
    slot: Tensor
    """int64 [N], the video query that it was last seen in; -1: none."""
    born_ns: Tensor
    """int64 [N]."""
    seen_ns: Tensor
    """int64 [N], when it last had a mask."""
    sounded_ns: Tensor
    """int64 [N], the last step in which it sounded."""
    hits: Tensor
    """int64 [N], steps in which it was seen."""
    votes: Tensor
    """float32 [N, K], class probabilities summed over its steps, each by its score."""
    class_id: Tensor
    """int64 [N], as last reported."""
    prototypes: Tensor
    """float32 [N, P, C], looks in similarity space."""
    weight: Tensor
    """float32 [N, P], steps that taught each prototype; 0: unused."""
    similarity: Tensor
    """float32 [N, C], its look when it was last seen."""
    colours: Tensor
    """float32 [N, COLOURS], a running mean of its colours; NaN: unknown."""
    certain: Tensor
    """float64 [N], with `area` the running mask quality."""
    area: Tensor
    """float64 [N]."""
    odds: Tensor
    """float32 [N], log-odds of sounding when it was last seen, given all seconds so far."""
    heard: Tensor
    """float32 [N], the part of `odds` that the second itself gave, within `MOST`."""
    expected: Tensor
    """float32 [N], the other part: what was to be expected before that second was heard."""
    score: Tensor
    """float32 [N], as last reported."""
    grid: Tensor
    """bool [N, *MASK_GRID], the last mask."""
    mask_embed: Tensor
    """float32 [N, Cm], what draws its mask on a new frame."""
    token: Tensor
    """float32 [N, C], its last object token, for `pin`."""
    token_slot: Tensor
    """int64 [N]."""
    anchor: Tensor
    """int64 [N], the anchor that holds it while it is pinned; -1: not pinned."""

    @staticmethod
    def empty(config: OnlineConfig, classes: int, channels: int, mask_channels: int) -> IdentityTable:
        """A table without identities."""
        rows, looks = config.max_identities, config.prototypes

        def ints(value: int = 0) -> Tensor:
            return torch.full((rows,), value, dtype=torch.int64)

        return IdentityTable(
            next_id=1,
            status=ints(FREE),
            public_id=ints(),
            slot=ints(-1),
            born_ns=ints(),
            seen_ns=ints(),
            sounded_ns=ints(),
            hits=ints(),
            votes=torch.zeros(rows, classes),
            class_id=ints(),
            prototypes=torch.zeros(rows, looks, channels),
            weight=torch.zeros(rows, looks),
            similarity=torch.zeros(rows, channels),
            colours=torch.full((rows, COLOURS), math.nan),
            certain=torch.zeros(rows, dtype=torch.float64),
            area=torch.zeros(rows, dtype=torch.float64),
            odds=torch.zeros(rows),
            heard=torch.zeros(rows),
            expected=torch.zeros(rows),
            score=torch.zeros(rows),
            grid=torch.zeros(rows, *MASK_GRID, dtype=torch.bool),
            mask_embed=torch.zeros(rows, mask_channels),
            token=torch.zeros(rows, channels),
            token_slot=ints(),
            anchor=ints(-1),
        )

    @property
    def live(self) -> Tensor:
        """int64 [I], rows that are sounding or silent, best score first."""
        rows = ((self.status == SOUNDING) | (self.status == SILENT)).nonzero()[:, 0]
        # Equal scores go by id, not by row.
        rows = rows[self.public_id[rows].argsort()]
        return rows[self.score[rows].argsort(descending=True, stable=True)]

    def row_of(self, track_id: int) -> int | None:
        """The row of a public id; None if there is no such identity any more."""
        rows = ((self.public_id == track_id) & (self.public_id > 0)).nonzero()  # 0: free or tentative, nobody's id
        return int(rows[0]) if len(rows) else None

    def free(self, row: int) -> None:
        """Empties a row."""
        for field in fields(self):
            values = getattr(self, field.name)
            if isinstance(values, Tensor):
                values[row] = {"slot": -1, "anchor": -1, "colours": math.nan}.get(field.name, 0)

    def slot_alone(self, row: int) -> int | None:
        """The video query that this identity and no other was last seen in; None if there is none such."""
        own = (self.slot == self.slot[row]) & (self.status != FREE)
        slot = int(self.slot[row])
        return slot if slot >= 0 and int(own.sum()) == 1 else None
