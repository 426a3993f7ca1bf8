"""Running time by plain numbers is GStreamer's."""

from __future__ import annotations

import random
from typing import Any

import pytest
from live_tools import need_gstreamer


@pytest.fixture
def gst() -> Any:
    need_gstreamer()
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import Gst

    Gst.init(None)
    return Gst


@pytest.mark.parametrize("rate", [1.0, 2.0, -1.0])
def test_it_is_what_gstreamer_says(gst: Any, rate: float) -> None:
    from avis_stream.interop.gst_time import NO_TIME, SegmentTime

    draw, seen = random.Random(0), 0
    for _ in range(300):
        segment = gst.Segment()
        segment.init(gst.Format.TIME)
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
                wanted = segment.to_running_time(gst.Format.TIME, pts)
                assert time.of_buffer(pts) == wanted
                seen += wanted != NO_TIME
        segment.base += 5  # ours is a copy
        assert time.segment.base == segment.base - 5
    assert seen > 100, "most edges lie inside"


def places_in(gst: Any, start_s: float = 0, stop_s: float | None = None, form: str = "TIME") -> Any:
    """Places of sound in a segment that is due from 0 on."""
    from avis_stream.interop.gst_time import SegmentTime, SoundPlaces

    segment = gst.Segment()
    segment.init(getattr(gst.Format, form))
    segment.start = round(start_s * gst.SECOND)
    if stop_s is not None:
        segment.stop = round(stop_s * gst.SECOND)
    places = SoundPlaces()
    places.begin(SegmentTime.of(segment))
    return places


def test_a_block_of_sound_lies_where_it_is_stamped_as_far_as_its_segment_goes(gst: Any) -> None:
    places = places_in(gst, 10, 12)
    second = gst.SECOND
    whole = places.place(round(10.5 * second), 8_000)
    assert (whole.pts_ns, whole.samples) == (second // 2, slice(0, 8_000))
    cut = places.place(round(9.5 * second), 32_000)
    assert (cut.pts_ns, cut.samples) == (0, slice(8_000, 32_000)), "begun half a second before its segment"
    cut = places.place(round(11.75 * second), 16_000)
    assert (cut.pts_ns, cut.samples) == (round(1.75 * second), slice(0, 4_000)), "ended after it"
    assert places.place(13 * second, 16_000) is None
    assert places.place(11 * second, 0) is None


def test_blocks_without_stamps_follow_the_one_before(gst: Any) -> None:
    from avis_stream.interop.gst_time import NO_TIME

    places, second = places_in(gst), gst.SECOND
    assert not places.knows(NO_TIME), "none came before"
    assert places.place(NO_TIME, 16_000) is None
    places.place(2 * second, 4_000)
    assert [places.place(NO_TIME, 4_000).pts_ns for _ in range(3)] == [round(x * second) for x in (2.25, 2.5, 2.75)]
    places.begin(places.time)
    assert not places.knows(NO_TIME), "another segment"


def test_bytes_are_no_times(gst: Any) -> None:
    from avis_stream.interop.gst_time import NO_TIME

    places = places_in(gst, form="BYTES")
    assert not places.knows(0)
    assert places.place(0, 16_000) is None
    assert places.time.of_buffer(0) == NO_TIME
