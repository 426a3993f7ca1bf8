"""From the identity table to what the caller gets: who is live, who is shown, and the masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avis_stream.models.avism import AVISM
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.tracker import likeliest, presence_of, same_object
from avis_stream.online.config import OnlineConfig
from avis_stream.online.door import FrameInput
from avis_stream.online.identity_table import DORMANT, SOUNDING, IdentityTable
from avis_stream.online.schedule import Geometry
from avis_stream.online.seeing import Gates, draw
from avis_stream.online.state import DelayLine, StreamBody
from avis_stream.online.tracking import ring_frame
from avis_stream.online.waiting import odds_since
from avis_stream.types import NANOSECONDS, Event, OnlineResult

_PRESENCE_WITHOUT_HEAD = 0.2
"""Presence threshold of models without a sounding head: not tuned, no published weights were at hand."""

_LAST_HOPS = 1.5
"""With a refine delay: hops before the frame in question since which an identity must have been seen to be drawn."""


@dataclass(frozen=True, slots=True)
class _Identities:
    """Whom a result tells of."""

    public_id: Tensor
    """int64 [n]."""
    class_id: Tensor
    """int64 [n]."""
    score: Tensor
    """float32 [n]."""

    @staticmethod
    def of(table: IdentityTable, rows: Tensor) -> _Identities:
        """Those in the rows int64 [n] of a table."""
        return _Identities(table.public_id[rows], table.class_id[rows], table.score[rows])

    def __add__(self, other: _Identities) -> _Identities:
        return _Identities(
            torch.cat([self.public_id, other.public_id]),
            torch.cat([self.class_id, other.class_id]),
            torch.cat([self.score, other.score]),
        )


class Presenter:
    """Applies the gates of a configuration and draws; holds no state of any stream."""

    def __init__(self, model: AVISM, config: OnlineConfig, geometry: Geometry) -> None:
        self.model = model
        self.config = config
        self.geometry = geometry

    def gates(self, silent: bool) -> Gates:
        """The gates of a step whose second of sound is silent or not."""
        head, threshold = self.model.config.localizer.sounding_head, self.config.presence_threshold
        if threshold is None:
            threshold = self.model.config.postprocess.presence_threshold if head else _PRESENCE_WITHOUT_HEAD
        return Gates(threshold if head or self.config.presence_gate else None, silent, born_unheard=head)

    def now(
        self,
        table: IdentityTable,
        features: Tensor,
        sizes: MaskSizes,
        pts_ns: int,
        frame_id: int,
        events: tuple[Event, ...],
        sounding: Tensor | None = None,
    ) -> OnlineResult:
        """Every live identity, those that sound drawn on mask features [Cm, h, w].

        `sounding`, bool [N] by row of the table, says who does; None: who did in the last step.
        """
        rows = table.live
        shown = (table.status == SOUNDING if sounding is None else sounding)[rows]
        who, embed = _Identities.of(table, rows), table.mask_embed[rows]
        return self._result(who, shown, embed, features, sizes, pts_ns, frame_id, events)

    def late(self, body: StreamBody, frame: int, sizes: MaskSizes, events: tuple[Event, ...]) -> OnlineResult:
        """A frame kept back, drawn by what is known now.

        Where frame queries are the objects, it is known who was seen in it, whoever has left the table since among
        them, and the seconds since help to tell who sounded; else its tokens, which have seen later frames since, say
        who is there and sounds.

        Args:
            body: With a delay line.
            frame: Which of the frames that ever went into the line; it must still be there.
            sizes: Through which masks go.
            events: Of this step.
        """
        table, delay = body.table, body.delay
        assert delay is not None
        place = frame % len(delay.pts_ns)
        gates = self.gates(bool(delay.silent[place]))
        if self.model.config.tracker.objects == "frame":
            who, sounded, embed = self._seen_then(table, delay, frame, gates)
        else:
            who, sounded, embed = self._by_tokens(body, delay, frame, gates)
        shown = sounded & (who.score > self.config.show_score) & (not gates.silent)
        pts_ns, frame_id = int(delay.pts_ns[place]), int(delay.frame_id[place])
        return self._result(who, shown, embed, delay.features[place], sizes, pts_ns, frame_id, events)

    def _seen_then(
        self, table: IdentityTable, delay: DelayLine, frame: int, gates: Gates
    ) -> tuple[_Identities, Tensor, Tensor]:
        """Who is live, or was seen in the frame; whether it sounded there, bool [n]; mask embeddings [n, Cm]."""
        place = frame % len(delay.pts_ns)
        assert delay.mask_embed is not None
        assert delay.class_id is not None
        assert delay.score is not None
        seen_as = delay.seen_as[place]
        known, gone = seen_as == table.public_id, ((seen_as > 0) & (seen_as != table.public_id)).nonzero()[:, 0]
        here = torch.cat([table.live, (known & (table.status == DORMANT)).nonzero()[:, 0]])
        left = _Identities(seen_as[gone], delay.class_id[place, gone], delay.score[place, gone])
        who, rows = _Identities.of(table, here) + left, torch.cat([here, gone])
        odds = odds_since(delay, frame, rows, who.public_id, self.model.config.postprocess.sounding_stay)
        sounded = (seen_as[rows] == who.public_id) & (odds > gates.least_odds)
        return who, sounded, delay.mask_embed[place][delay.seen_query[place, rows]]

    def _by_tokens(
        self, body: StreamBody, delay: DelayLine, frame: int, gates: Gates
    ) -> tuple[_Identities, Tensor, Tensor]:
        """Who is live; whether it was there and sounded in the frame, bool [n]; mask embeddings [n, Cm].

        Whoever has left the table is not told of: what their queries looked like has left with them.
        """
        table, place, rows = body.table, frame % len(delay.pts_ns), body.table.live
        slots, at = self.geometry.slots, ring_frame(self.geometry, body.memory.seen, delay.filled - 1 - frame)
        tokens = body.memory.tokens[at * slots : (at + 1) * slots]
        looks = table.similarity[rows].to(tokens)
        same = same_object(looks[None], self.model.tracker.similarity_of_frames(tokens)[None, None])
        since = int(delay.pts_ns[place]) - round(_LAST_HOPS * self.config.hop_seconds * NANOSECONDS)
        sounded = table.seen_ns[rows] >= since
        if gates.presence is not None:
            sounded &= (presence_of(same, delay.chance[place][None, None])[0, :, 0] > gates.presence).cpu()
        if delay.mask_embed is None:
            return _Identities.of(table, rows), sounded, table.mask_embed[rows]
        number, _ = likeliest(same)
        return _Identities.of(table, rows), sounded, delay.mask_embed[place][number[0, :, 0]]

    def _result(
        self,
        who: _Identities,
        shown: Tensor,
        embed: Tensor,
        features: Tensor,
        sizes: MaskSizes,
        pts_ns: int,
        frame_id: int,
        events: tuple[Event, ...],
    ) -> OnlineResult:
        one_piece, shown_embed = self.model.config.postprocess.one_piece, embed[shown.to(embed.device)]
        masks, boxes = draw(shown_embed, features, sizes, self.config.mask_threshold, one_piece=one_piece)
        mask = torch.zeros(len(shown), *sizes.output, dtype=torch.bool)
        box = torch.zeros(len(shown), 4)
        mask[shown], box[shown] = masks, boxes
        return OnlineResult(
            pts_ns=pts_ns,
            frame_id=frame_id,
            track_id=who.public_id,
            class_id=who.class_id,
            score=who.score.clamp(0, 1),
            sounding=shown & mask.flatten(1).any(dim=1),
            mask=mask,
            box=box,
            events=events,
        )


def nothing(given: FrameInput, events: tuple[Event, ...]) -> OnlineResult:
    """The result of a step after which no frame is due yet."""
    return OnlineResult(
        pts_ns=given.pts_ns,
        frame_id=-1,
        track_id=torch.zeros(0, dtype=torch.int64),
        class_id=torch.zeros(0, dtype=torch.int64),
        score=torch.zeros(0),
        sounding=torch.zeros(0, dtype=torch.bool),
        mask=torch.zeros(0, *given.size, dtype=torch.bool),
        box=torch.zeros(0, 4),
        events=events,
    )
