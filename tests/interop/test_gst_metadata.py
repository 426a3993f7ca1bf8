"""Results as GStreamer's metadata. GstAnalytics itself need not be there: a stand-in notes what is asked of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from avis_stream.interop.answer import Answer, Row
from avis_stream.types import OnlineResult


class Meta:
    """A GstAnalyticsRelationMeta of 1.24."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def noted(self, *call: Any) -> tuple[bool, Any]:
        self.calls.append(call)
        return True, type("Mtd", (), {"id": len(self.calls)})

    def add_od_mtd(self, label: int, x: int, y: int, w: int, h: int, score: float) -> tuple[bool, Any]:
        return self.noted("object", x, y, w, h, score)

    def add_tracking_mtd(self, track: int, pts: int) -> tuple[bool, Any]:
        return self.noted("track", track, pts)

    def set_relation(self, kind: str, one: int, other: int) -> bool:
        return self.noted(kind, one, other)[0]


class MetaWithRegions(Meta):
    """Of 1.26."""

    def add_segmentation_mtd(
        self, mask: Any, kind: str, region_ids: list[int], x: int, y: int, w: int, h: int
    ) -> tuple[bool, Any]:
        return self.noted("regions", mask, kind, region_ids, (x, y, w, h))


class Namespace:
    RelTypes = type("RelTypes", (), {"RELATE_TO": "related"})
    SegmentationType = type("SegmentationType", (), {"INSTANCE": "instance"})

    def __init__(self, meta: Meta) -> None:
        self.meta = meta

    def buffer_add_analytics_relation_meta(self, _buffer: Any) -> Meta:
        return self.meta


def answer(*track_ids: int, number: int = 1) -> Answer:
    """Identities from left to right, each 10 columns wide, in a picture of 42x8."""
    count = len(track_ids)
    mask = torch.zeros(count, 8, 42, dtype=torch.bool)
    for n in range(count):
        mask[n, 2:6, 10 * n : 10 * n + 10] = True
    boxes = [(10 * n, 2, 10, 4) for n in range(count)]
    result = OnlineResult(
        pts_ns=0, frame_id=0, track_id=torch.tensor(track_ids).long(), class_id=torch.zeros(count).long(),
        score=torch.full((count,), 0.5), sounding=torch.ones(count).bool(), mask=mask,
        box=torch.tensor(boxes).float().reshape(count, 4),
    )  # fmt: skip
    rows = tuple(Row(track, "dog", 0.5, box) for track, box in zip(track_ids, boxes, strict=True))
    return Answer(result, number, None, rows)


def content(gst: Any, mask: Any) -> tuple[Any, np.ndarray]:
    """A mask's GstVideoMeta, and its pixels as that says."""
    from gi.repository import GstVideo

    meta = GstVideo.buffer_get_video_meta(mask)
    kind = {GstVideo.VideoFormat.GRAY8: np.dtype("u1"), GstVideo.VideoFormat.GRAY16_LE: np.dtype("<u2")}[meta.format]
    data = mask.extract_dup(0, mask.get_size())
    assert len(data) == meta.stride[0] * meta.height
    rows = np.frombuffer(data, np.uint8).reshape(meta.height, meta.stride[0])
    return meta, rows[:, : meta.width * kind.itemsize].copy().view(kind)


def test_objects_and_tracks_where_gstreamer_has_no_segmentation_yet(gst: Any) -> None:
    from avis_stream.interop.gst_metadata import Analytics

    buffer = gst.Buffer.new()
    buffer.pts = 7
    meta = Meta()
    assert Analytics(Namespace(meta)).attach(buffer, answer(5))
    assert meta.calls == [("object", 0, 2, 10, 4, 0.5), ("track", 5, 7), ("related", 1, 2)]


@pytest.mark.parametrize(("track_ids", "bits"), [((5, 3), 8), ((255,), 8), ((300, 3), 16)])
def test_a_segmentation_of_the_picture(gst: Any, track_ids: tuple[int, ...], bits: int) -> None:
    from avis_stream.interop.gst_metadata import Analytics

    meta = MetaWithRegions()
    assert Analytics(Namespace(meta)).attach(gst.Buffer.new(), answer(*track_ids))
    (call,) = [call for call in meta.calls if call[0] == "regions"]
    _, mask, kind, region_ids, place = call
    assert (kind, place) == ("instance", (0, 0, 42, 8))
    assert region_ids == [0, *sorted(track_ids)]
    found, pixels = content(gst, mask)
    assert (found.width, found.height, pixels.dtype.itemsize * 8) == (42, 8, bits)
    for n, track in enumerate(track_ids):
        assert (pixels[2:6, 10 * n : 10 * n + 10] == track).all()
    assert np.count_nonzero(pixels) == 40 * len(track_ids)
    number = meta.calls.index(call) + 1
    objects = [n for n, call in enumerate(meta.calls, 1) if call[0] == "object"]
    assert meta.calls[number:] == [("related", number, thing) for thing in objects]


def test_a_mask_is_made_once_for_all_frames_of_an_answer(gst: Any) -> None:
    from avis_stream.interop.gst_metadata import Analytics

    meta = MetaWithRegions()
    analytics = Analytics(Namespace(meta))
    for given in (answer(5), answer(5), answer(6, number=2)):
        assert analytics.attach(gst.Buffer.new(), given)
    one, again, other = (call[1] for call in meta.calls if call[0] == "regions")
    assert one is again
    assert content(gst, one)[1].max() == 5
    assert content(gst, other)[1].max() == 6


def test_regions_are_made_once_for_all_frames_of_an_answer(gst: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gi.repository import GLib, GstVideo

    from avis_stream.interop.gst_metadata import Regions

    made = []
    add = GstVideo.buffer_add_video_region_of_interest_meta
    monkeypatch.setattr(GstVideo, "buffer_add_video_region_of_interest_meta", lambda *a: made.append(a) or add(*a))
    regions, seen = Regions(), []
    for given in (answer(5, 3), answer(5, 3), answer(6, number=2)):
        buffer = gst.Buffer.new()
        regions.attach(buffer, given)
        found = (GstVideo.buffer_get_video_region_of_interest_meta_id(buffer, row.track_id) for row in given.rows)
        seen.append([
            (GLib.quark_to_string(r.roi_type), r.id, (r.x, r.y, r.w, r.h), r.get_param("avis").get_value("track-id"))
            for r in found
        ])  # fmt: skip
    two = [("dog", 5, (0, 2, 10, 4), 5), ("dog", 3, (10, 2, 10, 4), 3)]
    assert seen == [two, two, [("dog", 6, (0, 2, 10, 4), 6)]]
    assert len(made) == 3


def test_where_nothing_sounds_nothing_is_attached(gst: Any) -> None:
    from avis_stream.interop.gst_metadata import Analytics

    meta = MetaWithRegions()
    assert not Analytics(Namespace(meta)).attach(gst.Buffer.new(), answer())
    assert not meta.calls
