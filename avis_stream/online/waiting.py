"""Frames that are kept back: for the second of sound that follows them, or for better informed queries."""

from __future__ import annotations

import torch
from torch import Tensor

from avis_stream.models.sounding_chain import carried
from avis_stream.online.door import FrameInput, checked_sound
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.looking import Seen
from avis_stream.online.state import DelayLine, HeldFrame
from avis_stream.types import NANOSECONDS

_BEFORE_ALL = torch.iinfo(torch.int64).min
"""Stands for a segment that no source has announced yet."""


def held_frame(frame_size: tuple[int, int]) -> HeldFrame:
    """Room for one frame of (height, width) pixels."""
    picture = torch.zeros(3, *frame_size, dtype=torch.uint8)
    return HeldFrame(picture, picture.clone())


def hold(held: HeldFrame, given: FrameInput) -> None:
    """Keeps a frame back, in the place of the one before."""
    held.image.copy_(given.image)
    held.has_previous = given.previous is not None
    if given.previous is not None:
        held.previous.copy_(given.previous)
    held.waiting, held.pts_ns, held.frame_id, held.segment = True, given.pts_ns, given.frame_id, given.segment


def released(held: HeldFrame, audio: Tensor) -> FrameInput:
    """The frame kept back, with the sound float32 [S] that it waited for."""
    seconds, valid = checked_sound(audio)
    previous = held.previous.clone() if held.has_previous else None
    return FrameInput(held.image.clone(), seconds, valid, previous, held.pts_ns, held.frame_id, held.segment)


def delay_line(
    delay: int, features: Tensor, chance: Tensor, identities: int, mask_embed: Tensor | None = None, *,
    keeps_leavers: bool = False,
) -> DelayLine:  # fmt: skip
    """Room for `delay` frames and the newest: mask features like [Cm, h, w], chances like [N], embeddings [N, Cm].

    `keeps_leavers`: also for what it takes to tell of identities that leave the table before the frame is drawn.
    """
    places = delay + 1
    numbers, by_row = torch.zeros(places, dtype=torch.int64), torch.zeros(places, identities)
    return DelayLine(
        features=features.expand(places, -1, -1, -1).clone(),
        chance=chance.expand(places, -1).clone(),
        silent=torch.zeros(places, dtype=torch.bool),
        pts_ns=numbers,
        frame_id=numbers.clone(),
        segment=numbers.clone(),
        seen_as=by_row.long(),
        seen_query=by_row.long(),
        odds=by_row,
        heard=by_row.clone(),
        mask_embed=None if mask_embed is None else mask_embed.expand(places, -1, -1).clone(),
        class_id=by_row.long() if keeps_leavers else None,
        score=by_row.clone() if keeps_leavers else None,
    )


def put(delay: DelayLine, given: FrameInput, seen: Seen, table: IdentityTable, segment: int | None) -> None:
    """Keeps what it takes to draw a frame later, in the place of the oldest.

    Args:
        delay: Written in place.
        given: The frame.
        seen: What it shows.
        table: Knows the frame already.
        segment: Of the stream, as it stands; a change of it is a gap.
    """
    place = delay.filled % len(delay.pts_ns)
    said = seen.answer
    assert said.chance is not None
    delay.features[place], delay.chance[place], delay.silent[place] = said.features, said.chance, seen.silent
    if delay.mask_embed is not None and said.mask_embed is not None:
        delay.mask_embed[place] = said.mask_embed
    delay.pts_ns[place], delay.frame_id[place] = given.pts_ns, given.frame_id
    delay.segment[place] = _BEFORE_ALL if segment is None else segment
    delay.seen_as[place] = torch.where(table.seen_ns == given.pts_ns, table.public_id, 0)
    delay.seen_query[place] = table.token_slot
    delay.odds[place], delay.heard[place] = table.odds, table.heard
    if delay.class_id is not None and delay.score is not None:
        delay.class_id[place], delay.score[place] = table.class_id, table.score
    delay.filled += 1


def odds_since(delay: DelayLine, frame: int, rows: Tensor, public_id: Tensor, stay: float) -> Tensor:
    """Log-odds float32 [n] of sounding in a frame kept back, given the seconds before it and those since.

    Fixed-lag smoothing: what a clip does with all seconds (`sounding_chain.smoothed`), with those that were waited for.

    Args:
        delay: Holds the frame and all that came since.
        frame: Which of the frames that ever went into the line.
        rows: int64 [n], identities seen in that frame, by their rows in the table, which may be others' by now.
        public_id: int64 [n], theirs.
        stay: As `PostprocessConfig.sounding_stay`.
    """
    places, after = len(delay.pts_ns), torch.zeros(len(rows))
    for later in range(delay.filled - 1, frame, -1):
        at, before = later % places, (later - 1) % places
        after = after + torch.where(delay.seen_as[at, rows] == public_id, delay.heard[at, rows], 0.0)
        after = carried(after, stay, int(delay.pts_ns[at] - delay.pts_ns[before]) / NANOSECONDS)
        if int(delay.segment[before]) not in (int(delay.segment[at]), _BEFORE_ALL):  # nothing is said across a gap
            after = torch.zeros(len(rows))
    return delay.odds[frame % places, rows] + after
