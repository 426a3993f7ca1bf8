"""Results as GStreamer's own kinds of metadata: regions of interest, GstAnalytics, element messages."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import gi
import numpy as np

from avis_stream.interop.gst_frames import mask_buffer

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, GObject, Gst, GstVideo  # noqa: E402

if TYPE_CHECKING:
    from avis_stream.interop.answer import Answer

_METADATA = Gst.BufferCopyFlags.META  # looked up once: in the bindings that costs more than the copy
_TO_THE_END = 2**64 - 1
"""As a size."""


class Regions:
    """Regions of interest, which every version of GStreamer hands on; of 1.22 the parameters end at a conversion."""

    def __init__(self) -> None:
        self._made: tuple[int, Any] | None = None
        """Of the last answer, which goes with many frames: its number, and a buffer of nothing but its regions."""

    def attach(self, buffer: Any, answer: Answer) -> None:
        """Adds what sounds: one call for any number of regions, since each call from Python costs a frame time."""
        if self._made is None or self._made[0] != answer.number:
            self._made = answer.number, _with_regions(answer)
        buffer.copy_into(self._made[1], _METADATA, 0, _TO_THE_END)


def _with_regions(answer: Answer) -> Any:
    """A buffer of nothing but regions. They say which picture they are of; how old that is each frame knows itself."""
    buffer = Gst.Buffer.new()
    for row in answer.rows:
        region = GstVideo.buffer_add_video_region_of_interest_meta(buffer, row.label, *row.box)
        region.id = row.track_id
        text = (
            f"avis, track-id=(int){row.track_id}, score=(double){row.score}, sounding=(boolean)true, "
            f"result-pts=(guint64){answer.result.pts_ns}"
        )
        region.add_param(Gst.Structure.new_from_string(text))
    return buffer


class Analytics:
    """GstAnalytics, where this GStreamer has it (1.24; segmentation from 1.26 on)."""

    def __init__(self, namespace: Any = None) -> None:
        """`namespace`: None: that of the GStreamer which is here, if it has one."""
        self._analytics = _namespace() if namespace is None else namespace
        self._segmentation: tuple[int, list[int], Any] | None = None
        """Of the last answer, which goes with many frames: its number, the regions' ids, their map."""

    def attach(self, buffer: Any, answer: Answer) -> bool:
        """Adds what sounds; False where there is no GstAnalytics, or nothing sounds.

        An object for each identity, related to its track. One instance segmentation of the whole picture, related to
        the objects: its regions have the ids of the tracks, and 0 is where nothing sounds.
        """
        if self._analytics is None or not answer.rows:
            return False
        meta = self._analytics.buffer_add_analytics_relation_meta(buffer)
        related, things = self._analytics.RelTypes.RELATE_TO, []
        for row in answer.rows:
            there, thing = meta.add_od_mtd(GLib.quark_from_string(row.label), *row.box, row.score)
            tracked, track = meta.add_tracking_mtd(row.track_id, buffer.pts)
            if there and tracked:
                meta.set_relation(related, thing.id, track.id)
            if there:
                things.append(thing.id)
        if hasattr(meta, "add_segmentation_mtd"):
            region_ids, mask = self._segmented(answer)
            kind = self._analytics.SegmentationType.INSTANCE
            there, regions = meta.add_segmentation_mtd(mask, kind, region_ids, 0, 0, *answer.size)
            for thing_id in things if there else ():
                meta.set_relation(related, regions.id, thing_id)
        return True

    def _segmented(self, answer: Answer) -> tuple[list[int], Any]:
        """Ids of the regions, and their map as a buffer that says its own format."""
        if self._segmentation is None or self._segmentation[0] != answer.number:
            wide = max(row.track_id for row in answer.rows) > 255
            ids = answer.id_map(np.uint16 if wide else np.uint8)
            mask = mask_buffer(ids, answer.size)
            kind = GstVideo.VideoFormat.GRAY16_LE if wide else GstVideo.VideoFormat.GRAY8
            GstVideo.buffer_add_video_meta(mask, GstVideo.VideoFrameFlags.NONE, kind, *answer.size)
            self._segmentation = answer.number, [0, *np.unique(ids[ids > 0]).tolist()], mask
        return self._segmentation[1:]


@functools.lru_cache(maxsize=1)
def _namespace() -> Any:
    try:
        gi.require_version("GstAnalytics", "1.0")
        from gi.repository import GstAnalytics
    except (ImportError, ValueError):
        return None
    return GstAnalytics


def message_of(answer: Answer) -> Any:
    """The structure `avisseg` of an element message."""
    message = Gst.Structure.new_empty("avisseg")
    # A Python int would become 32 bits.
    message.set_value("pts", GObject.Value(GObject.TYPE_UINT64, answer.result.pts_ns))
    message.set_value("frame-id", answer.result.frame_id)
    message.set_value("sounding", len(answer.rows))
    record = [{"id": r.track_id, "label": r.label, "score": r.score, "bbox": list(r.box)} for r in answer.rows]
    message.set_value("objects", json.dumps(record))
    return message
