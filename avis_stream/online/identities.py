"""Who is who: the rules by which what a frame shows continues, begins and ends identities.

A video query's number is no identity: in the released architecture the same object changes its query in a third of all
absences, even offline. What lasts is its look in the model's own similarity space, where the sigmoid of a dot product
estimates the chance of being the same object.

    tentative --> sounding <--> silent --> dormant --> dead
                      ^                       |
                      +------ returned -------+

Source: ADR 0201; assignment by the Hungarian method as in SORT and its heirs,
prototypes as in XMem's long-term store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.metrics.alignment import assign
from avis_stream.models.linking import mask_iou
from avis_stream.models.sounding_chain import MOST, carried
from avis_stream.online.colours import apart
from avis_stream.online.config import OnlineConfig
from avis_stream.online.identity_table import (
    DORMANT,
    FREE,
    SILENT,
    SOUNDING,
    TENTATIVE,
    IdentityTable,
    Observation,
)
from avis_stream.types import NANOSECONDS, Event

_SAME_CLASS = 0.3
"""Least chance that what is seen has the class of an identity, to be it by its colours."""

_COLOUR_STEPS = 20
"""The running mean of an identity's colours is over about so many steps."""

_PROTOTYPE_RATE = 0.1
"""Share of the newest look in the prototype that it is nearest to."""

_RECENT_HOPS = 2.5
"""Places are compared with those of the last two steps; half a step for cameras that are not on time."""


_NEVER_NS = 1 << 62
"""146 years: the longest that anybody is waited for, so that `inf` and whatever a clock never reaches is a number."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did to the table."""

    events: tuple[Event, ...]
    died_slots: tuple[int, ...]
    """Video queries that no identity uses any more: what they remember may go."""


def _wait_ns(seconds: float) -> int:
    return round(min(seconds * NANOSECONDS, _NEVER_NS))


class IdentityKeeper:
    """Applies the rules of a configuration to a table; holds no state of any stream.

    Args:
        config: Thresholds.
        ring_seconds: That the tracker's memory holds.
        sounding_stay: As `PostprocessConfig.sounding_stay`.
    """

    def __init__(self, config: OnlineConfig, ring_seconds: float, sounding_stay: float = 0.5) -> None:
        self.config, self._stay = config, sounding_stay
        self._dormant_ns = _wait_ns(ring_seconds if config.dormant_s is None else config.dormant_s)
        self._recent_ns = round(_RECENT_HOPS * config.hop_seconds * NANOSECONDS)

    def update(self, table: IdentityTable, seen: Observation, now_ns: int, least_odds: float = -math.inf) -> Outcome:
        """One step: continues, begins, silences and ends identities.

        Args:
            table: Written in place.
            seen: What the frame shows.
            now_ns: When, on the stream's clock.
            least_odds: Log-odds of sounding above which an identity is shown.
        """
        step = _Step(self.config, table, seen, now_ns, self._dormant_ns, self._recent_ns, self._stay, least_odds)
        step.fall_asleep()
        rows, columns, margin = step.match()
        step.carry_on(rows, columns, margin)
        step.age(rows)
        step.give_birth(columns)
        return Outcome(tuple(step.events), tuple(step.died_slots))

    def interrupt(self, table: IdentityTable) -> tuple[Event, ...]:
        """The source announced a gap: places say nothing any more, so all identities must return by their looks."""
        sounded = table.status == SOUNDING
        awake = sounded | (table.status == SILENT)
        events = [
            Event(kind=kind, track_id=track_id, detail="gap")
            for kind, rows in (("silent", sounded), ("dormant", awake))
            for track_id in sorted(table.public_id[rows].tolist())
        ]
        for row in (table.status == TENTATIVE).nonzero()[:, 0].tolist():
            table.free(row)
        table.status[awake] = DORMANT
        table.odds[:] = 0
        return tuple(events)

    def forget_places(self, table: IdentityTable) -> None:
        """The picture changed its size: masks of before say nothing about places any more."""
        table.grid[:] = False


class _Step:
    def __init__(
        self,
        config: OnlineConfig,
        table: IdentityTable,
        seen: Observation,
        now: int,
        dormant: int,
        recent: int,
        stay: float,
        least_odds: float,
    ) -> None:
        self.config, self.table, self.seen, self.now = config, table, seen, now
        self.dormant_ns, self.recent_ns = dormant, recent
        self.stay, self.least_odds = stay, least_odds
        self.events: list[Event] = []
        self.died_slots: list[int] = []
        self.without_place = 0

    def fall_asleep(self) -> None:
        """Identities that were not seen for long return by stricter rules only, from this step on."""
        table = self.table
        asleep = (table.status == SOUNDING) | (table.status == SILENT)
        asleep &= self.now - table.seen_ns >= self.dormant_ns
        rows = self._by_id(asleep)
        before = table.status[rows]
        table.status[rows] = DORMANT
        self._tell_sound(rows, before)
        for row in rows:
            self._tell("dormant", row)

    def match(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which observation continues which identity.

        Returns:
            int64 [n] rows and int64 [n] observations, and float32 [n] by how much each row is likelier than any other.
        """
        config, table, seen = self.config, self.table, self.seen
        active = table.status != FREE
        same, margin = self._similarity(active)
        recent = (table.status != DORMANT) & (self.now - table.seen_ns <= self.recent_ns)
        same_slot = (table.slot[:, None] == seen.query) & (seen.query >= 0) & recent[:, None]  # [N, J]
        votes = table.votes / table.votes.sum(-1, keepdim=True).clamp(min=1e-6)
        agree = votes @ seen.probability.T
        affinity = same + config.slot_bonus * same_slot + config.class_bonus * agree
        affinity += config.overlap_bonus * mask_iou(table.grid, seen.grid) * recent[:, None]
        live = (same >= config.match_same) | (same_slot & (same >= config.match_same_slot))
        returns = (same >= config.match_dormant) & (margin >= config.match_margin)
        dormant = table.status == DORMANT
        if config.match_colour is not None:
            distance = apart(table.colours, seen.colours)
            again = self._known_by_colours(dormant, agree, distance, config.match_colour)
            affinity += again * (1 - distance.clamp(max=config.match_colour) / config.match_colour)
            returns = again | returns & ((distance <= 2 * config.match_colour) | distance.isinf())
        allowed = torch.where(dormant[:, None], returns, live)
        allowed &= active[:, None]
        rows, columns = assign(torch.where(allowed, affinity, 0.0).double().numpy())
        row, column = torch.from_numpy(rows), torch.from_numpy(columns)
        kept = allowed[row, column]
        order = column[kept].argsort()  # best first, whatever the order of the rows
        row, column = row[kept][order], column[kept][order]
        return row, column, margin[row, column]

    def _known_by_colours(self, dormant: Tensor, agree: Tensor, distance: Tensor, most: float) -> Tensor:
        """Bool [N, J]: of all dormant identities of its class, this one alone has the colours of what is seen.

        Args:
            dormant: Bool [N].
            agree: [N, J], chance of being of one class.
            distance: [N, J], of colours.
            most: Distance up to which colours are the same.
        """
        distance = distance.masked_fill(~dormant[:, None] | (agree < _SAME_CLASS), math.inf)
        best = F.pad(distance, (0, 0, 0, 2), value=math.inf).topk(2, dim=0, largest=False).values
        others = torch.where(distance == best[0], best[1], best[0])
        return (distance <= most) & (others - distance >= self.config.colour_margin)

    def _similarity(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Chance [N, J] of being the same object by the best prototype, and its lead over all other identities."""
        table, seen = self.table, self.seen
        dots = torch.einsum("npc,jc->npj", table.prototypes, seen.similarity)
        same = dots.sigmoid().masked_fill((table.weight == 0)[..., None], 0.0).amax(dim=1)
        same = same.masked_fill(~active[:, None], 0.0)
        if not same.numel():
            return same, same
        best = F.pad(same, (0, 0, 0, 2)).topk(2, dim=0).values  # two rows of zeros: a table of one has no second
        others = torch.where(same == best[0], best[1], best[0])
        return same, same - others

    def carry_on(self, rows: Tensor, columns: Tensor, margin: Tensor) -> None:
        """Updates the identities that were seen."""
        config, table = self.config, self.table
        before = table.status[rows]
        gap = self.now - table.sounded_ns[rows]
        table.hits[rows] += 1
        born = (before == TENTATIVE) & (table.hits[rows] >= config.birth_hits)
        self._learn(rows, columns, margin)
        since = (self.now - table.seen_ns[rows]) / NANOSECONDS
        self._note(rows, columns, carried(table.odds[rows], self.stay, since))
        after = torch.where(self._is_shown(rows, columns), SOUNDING, SILENT)
        table.status[rows] = torch.where((before == TENTATIVE) & ~born, TENTATIVE, after)
        for n, row in enumerate(rows.tolist()):
            if born[n]:
                self._confirm(row)
            if before[n] == DORMANT:
                self._tell("returned", row, gap_seconds=float(gap[n]) / NANOSECONDS)
        self._tell_sound(rows.tolist(), before)
        table.sounded_ns[rows[table.status[rows] == SOUNDING]] = self.now

    def _is_shown(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Bool [n], once `_note` is done: it sounds, given all seconds so far, and is certain enough."""
        # Infinite evidence is no opinion of a second: it holds whatever was before.
        sounds = (self.table.odds[rows] > self.least_odds) & (self.seen.evidence[columns] > -math.inf)
        return (sounds | (self.seen.evidence[columns] == math.inf)) & (self.table.score[rows] > self.config.show_score)

    def _note(self, rows: Tensor, columns: Tensor, odds: Tensor) -> None:
        """What an identity is like now; `odds` [n] are its log-odds of sounding before this second was heard."""
        table, seen = self.table, self.seen
        table.expected[rows] = odds
        table.heard[rows] = seen.evidence[columns].clamp(-MOST, MOST)
        table.odds[rows] = (odds + seen.evidence[columns]).clamp(-MOST, MOST)
        table.slot[rows] = seen.query[columns]
        table.seen_ns[rows] = self.now
        table.certain[rows] += seen.certain[columns]
        table.area[rows] += seen.area[columns]
        table.votes[rows] += seen.score[columns, None] * seen.probability[columns]
        quality = table.certain[rows] / (table.area[rows] + 1e-6)
        table.score[rows] = seen.class_score[columns] * quality.float()
        table.class_id[rows] = (table.votes[rows] if self.config.stable_class else seen.probability[columns]).argmax(-1)
        known, share = table.colours[rows], 1 / table.hits[rows].clamp(1, _COLOUR_STEPS)
        new = seen.colours[columns]
        mixed = torch.where(known.isnan(), new, known.lerp(new, share[:, None]))
        table.colours[rows] = torch.where(new.isnan(), known, mixed)
        for name in ("similarity", "grid", "mask_embed", "token", "token_slot"):
            getattr(table, name)[rows] = getattr(seen, name)[columns]

    def _learn(self, rows: Tensor, columns: Tensor, margin: Tensor) -> None:
        """Moves the nearest prototype, or begins one in place of the least used."""
        config, table = self.config, self.table
        clear = (self.seen.score[columns] > config.learn_score) & (margin > config.match_margin)
        row, look = rows[clear], self.seen.similarity[columns[clear]]
        if not len(row):
            return
        weight = table.weight[row]
        cosine = F.cosine_similarity(table.prototypes[row], look[:, None], dim=-1)
        best, nearest = cosine.masked_fill(weight == 0, -1.0).max(dim=1)
        new = best < config.new_prototype_cosine
        place = torch.where(new, weight.argmin(dim=1), nearest)
        moved = table.prototypes[row, place].lerp(look, _PROTOTYPE_RATE)
        table.prototypes[row, place] = torch.where(new[:, None], look, moved)
        table.weight[row, place] = torch.where(new, 1.0, weight[torch.arange(len(row)), place] + 1)

    def age(self, matched: Tensor) -> None:
        """What happens to identities that were not seen."""
        table = self.table
        missed = table.status != FREE
        missed[matched] = False
        unseen = self.now - table.seen_ns
        for row in (missed & (table.status == TENTATIVE)).nonzero()[:, 0].tolist():
            table.free(row)  # nobody has heard of it
        before = table.status.clone()
        table.status[missed & (before == SOUNDING)] = SILENT
        quiet = self._by_id(missed)
        self._tell_sound(quiet, before[quiet])
        forgotten = missed & (table.status != FREE) & (table.anchor < 0)  # `forget_s` may be shorter than `dormant_s`
        for row in self._by_id(forgotten & (unseen > _wait_ns(self.config.forget_s))):
            self._bury(row)

    def give_birth(self, taken: Tensor) -> None:
        """Begins identities for what nobody continues."""
        table, seen = self.table, self.seen
        new = seen.may_be_born & (seen.score > self.config.birth_score)
        new[taken] = False
        for column in new.nonzero()[:, 0].tolist():
            row = self._room()
            if row is None:
                self.without_place += 1
                continue
            at, what = torch.tensor([row]), torch.tensor([column])
            table.status[row], table.hits[row], table.born_ns[row] = TENTATIVE, 1, self.now
            table.sounded_ns[row] = self.now
            table.prototypes[row, 0], table.weight[row, 0] = seen.similarity[column], 1.0
            self._note(at, what, torch.zeros(1))
            if self.config.birth_hits <= 1:
                table.status[row] = SOUNDING if self._is_shown(at, what).item() else SILENT
                self._confirm(row)
                self._tell_sound([row], torch.tensor([TENTATIVE]))
        if self.without_place:  # told at each step that it lasts: whoever is missing would have been shown at each
            self.events.append(Event(kind="full", detail=f"{self.without_place} without a place"))

    def _room(self) -> int | None:
        """A free row; in a full table that of the dormant identity longest unheard; None: nobody may go.

        Tentative ones never go: `age` has left those alone that this step saw, and each of them is nearer to its birth
        than a newcomer, or came in this step before it, as the better one. Were they to go, two that sound together
        could push each other out for ever.
        """
        table = self.table
        if len(free := (table.status == FREE).nonzero()):
            return int(free[0])
        rows = ((table.status == DORMANT) & (table.anchor < 0)).nonzero()[:, 0]
        if not len(rows):
            return None
        oldest: int = min(rows.tolist(), key=lambda r: (int(table.sounded_ns[r]), int(table.public_id[r])))
        self._bury(oldest, detail="table full")
        return oldest

    def _confirm(self, row: int) -> None:
        self.table.public_id[row] = self.table.next_id
        self.table.next_id += 1
        self._tell("born", row)

    def _bury(self, row: int, detail: str = "") -> None:
        self._tell("dead", row, detail=detail)
        if (slot := self.table.slot_alone(row)) is not None:
            self.died_slots.append(slot)
        self.table.free(row)

    def _tell_sound(self, rows: list[int], before: Tensor) -> None:
        """Events of identities that began or ended to sound, given their status before, int64 [n]."""
        for row, old in zip(rows, before.tolist(), strict=True):
            sounded, sounds = old == SOUNDING, int(self.table.status[row]) == SOUNDING
            if sounds and not sounded:
                gap = None if old == TENTATIVE else (self.now - int(self.table.sounded_ns[row])) / NANOSECONDS
                self._tell("sounding", row, gap_seconds=gap)
            elif sounded and not sounds:
                self._tell("silent", row)

    def _tell(self, kind: str, row: int, detail: str = "", gap_seconds: float | None = None) -> None:
        track_id = int(self.table.public_id[row])
        self.events.append(Event(kind=kind, track_id=track_id, detail=detail, gap_seconds=gap_seconds))

    def _by_id(self, rows: Tensor) -> list[int]:
        """Rows of a bool [N], in order of their public ids."""
        return sorted(rows.nonzero()[:, 0].tolist(), key=lambda row: int(self.table.public_id[row]))
