"""Frames that are kept back: for the second of sound that follows them, or for better informed queries."""

from __future__ import annotations

import torch
from torch import Tensor

from avis_stream.online.door import FrameInput, checked_sound
from avis_stream.online.looking import Seen
from avis_stream.online.state import DelayLine, HeldFrame


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


def delay_line(delay: int, features: Tensor, chance: Tensor, mask_embed: Tensor | None = None) -> DelayLine:
    """Room for `delay` frames and the newest: mask features like [Cm, h, w], chances like [N], embeddings [N, Cm]."""
    places = delay + 1
    return DelayLine(
        features=features.expand(places, -1, -1, -1).clone(),
        chance=chance.expand(places, -1).clone(),
        silent=torch.zeros(places, dtype=torch.bool),
        pts_ns=torch.zeros(places, dtype=torch.int64),
        frame_id=torch.zeros(places, dtype=torch.int64),
        mask_embed=None if mask_embed is None else mask_embed.expand(places, -1, -1).clone(),
    )


def put(delay: DelayLine, given: FrameInput, seen: Seen) -> None:
    """Keeps what it takes to draw a frame later, in the place of the oldest."""
    place = delay.filled % len(delay.pts_ns)
    said = seen.answer
    assert said.chance is not None
    delay.features[place], delay.chance[place], delay.silent[place] = said.features, said.chance, seen.silent
    if delay.mask_embed is not None and said.mask_embed is not None:
        delay.mask_embed[place] = said.mask_embed
    delay.pts_ns[place], delay.frame_id[place] = given.pts_ns, given.frame_id
    delay.filled += 1
