"""Running time of buffers: what GStreamer's clock shows when they are due, whatever was sought to before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gi

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
        return int(self.segment.to_running_time(Gst.Format.TIME, pts))
