"""Running time of buffers: what GStreamer's clock shows when they are due, whatever was sought to before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gi

from avis_stream.types import NANOSECONDS, SAMPLE_RATE

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

NO_TIME = int(Gst.CLOCK_TIME_NONE)
"""Of a buffer without a time, or outside its segment."""


@dataclass(frozen=True, slots=True)
class SegmentTime:
    """A segment's rule in plain numbers, for every frame: a call into GStreamer costs more than all else that is done.

    The rule is `gst_segment_to_running_time`, for times in nanoseconds.
    """

    segment: Any
    """A copy of the `Gst.Segment`, asked where playing is not plainly forward."""
    start: int
    stop: int
    """Both in the buffers' time."""
    shift: int
    """From there to running time."""
    is_plain: bool
    """Forward at normal speed."""

    @staticmethod
    def of(segment: Any) -> SegmentTime:
        """The rule of a segment, which may change afterwards."""
        segment = segment.copy()
        is_plain = segment.format == Gst.Format.TIME and segment.rate == 1.0
        shift = segment.base - segment.start - segment.offset
        # Up to `offset` after `start` running time would be negative, which GStreamer itself decides about.
        start = segment.start + segment.offset
        return SegmentTime(segment, start, segment.stop, shift, is_plain)

    @staticmethod
    def from_zero() -> SegmentTime:
        """Before any segment is announced, and after a flush."""
        segment = Gst.Segment()
        segment.init(Gst.Format.TIME)
        return SegmentTime.of(segment)

    def of_buffer(self, pts: int) -> int:
        """Running time in nanoseconds of a buffer's `pts`, or `NO_TIME`."""
        if self.is_plain and self.start <= pts <= self.stop and pts != NO_TIME:
            return pts + self.shift
        return int(self.segment.to_running_time(Gst.Format.TIME, pts)) if self.is_time else NO_TIME

    @property
    def is_time(self) -> bool:
        """Whether it is in time: bytes, as appsrc has them by default, say nothing about when."""
        return bool(self.segment.format == Gst.Format.TIME)


@dataclass(frozen=True, slots=True)
class Placed:
    """What of a block of sound lies in its segment."""

    pts_ns: int
    """Running time of its first sample."""
    samples: slice
    """Of the block."""


class SoundPlaces:
    """Where blocks of sound lie: at their stamps, or behind the block before where they have none."""

    def __init__(self) -> None:
        self.time = SegmentTime.from_zero()
        self._end = NO_TIME
        """Of the last block, in its segment's time."""

    def begin(self, time: SegmentTime) -> None:
        """What comes now is of another segment."""
        self.time, self._end = time, NO_TIME

    def knows(self, pts: int) -> bool:
        """Whether a block with this stamp, or `NO_TIME`, has a place at all, in the segment or out of it."""
        return self.time.is_time and (pts != NO_TIME or self._end != NO_TIME)

    def place(self, pts: int, count: int) -> Placed | None:
        """Where a block of so many samples lies; None: nowhere in its segment, or nobody knows."""
        if not self.knows(pts):
            return None
        begin = self._end if pts == NO_TIME else pts
        self._end = begin + count * NANOSECONDS // SAMPLE_RATE
        if not self.time.is_plain:  # its blocks may lie the other way round
            pts_ns = self.time.of_buffer(begin)
            return None if pts_ns == NO_TIME else Placed(pts_ns, slice(None))
        inside, first, last = self.time.segment.clip(Gst.Format.TIME, begin, self._end)
        if not inside or first >= last:
            return None
        own = (round((at - begin) * SAMPLE_RATE / NANOSECONDS) for at in (first, last))
        return Placed(self.time.of_buffer(first), slice(*own))
