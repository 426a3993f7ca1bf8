"""Made-up results for the writers' tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AVPair, Event, OnlineResult, VideoFrame

CLASSES = ("person", "cat", "lawn_mover")


def pair_at(index: int, *, fps: float = 1.0, width: int = 64, height: int = 48, level: int = 128) -> AVPair:
    """Frame `index` of a gray clip with a 440 Hz tone."""
    frame = VideoFrame(
        image=torch.full((3, height, width), level, dtype=torch.uint8),
        pts_ns=round(index * NANOSECONDS / fps),
        frame_id=index,
        source_id="clip",
    )
    audio = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)
    return AVPair(frame=frame, audio=audio)


Track = tuple[int, int, float, tuple[int, int, int, int] | None]
"""Id, class, score, and a rectangle (left, top, right, bottom); None: silent."""


def result_for(pair: AVPair, tracks: Sequence[Track], events: Sequence[Event] = ()) -> OnlineResult:
    """A result whose masks are rectangles."""
    height, width = pair.frame.image.shape[1:]
    masks = torch.zeros(len(tracks), height, width, dtype=torch.bool)
    boxes = torch.zeros(len(tracks), 4)
    for row, (_, _, _, rectangle) in enumerate(tracks):
        if rectangle is not None:
            left, top, right, bottom = rectangle
            masks[row, top:bottom, left:right] = True
            boxes[row] = torch.tensor([left, top, right - left, bottom - top])
    return OnlineResult(
        pts_ns=pair.frame.pts_ns,
        frame_id=pair.frame.frame_id,
        track_id=torch.tensor([t[0] for t in tracks], dtype=torch.int64),
        class_id=torch.tensor([t[1] for t in tracks], dtype=torch.int64),
        score=torch.tensor([t[2] for t in tracks], dtype=torch.float32),
        sounding=torch.tensor([t[3] is not None for t in tracks], dtype=torch.bool),
        mask=masks,
        box=boxes,
        events=tuple(events),
    )
