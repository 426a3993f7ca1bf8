"""Running time by plain numbers is GStreamer's."""

from __future__ import annotations

import random

import pytest
from live_tools import need_gstreamer


@pytest.mark.parametrize("rate", [1.0, 2.0, -1.0])
def test_it_is_what_gstreamer_says(rate: float) -> None:
    need_gstreamer()
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import Gst

    Gst.init(None)
    from avis_stream.interop.gst_time import NO_TIME, SegmentTime

    draw, seen = random.Random(0), 0
    for _ in range(300):
        segment = Gst.Segment()
        segment.init(Gst.Format.TIME)
        segment.rate = rate
        segment.start = draw.choice([0, draw.randrange(10**9)])
        segment.stop = draw.choice([NO_TIME, segment.start + draw.randrange(10**9)])
        segment.base, segment.offset = draw.choice([0, draw.randrange(10**9)]), draw.choice([0, draw.randrange(10**8)])
        if rate < 0 and segment.stop == NO_TIME:
            continue
        time = SegmentTime.of(segment)
        assert time.is_plain == (rate == 1.0)
        edges = [segment.start + d for d in (-1, 0, 1, segment.offset, segment.offset + 1)]
        edges += [segment.stop - 1, segment.stop, NO_TIME, *(draw.randrange(3 * 10**9) for _ in range(5))]
        for pts in edges:
            if 0 <= pts < 2**63 or pts == NO_TIME:
                wanted = segment.to_running_time(Gst.Format.TIME, pts)
                assert time.of_buffer(pts) == wanted
                seen += wanted != NO_TIME
        segment.base += 5  # ours is a copy
        assert time.segment.base == segment.base - 5
    assert seen > 100, "most edges lie inside"
