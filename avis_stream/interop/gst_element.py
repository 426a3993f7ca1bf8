"""The GStreamer element `avisseg`: video in and out, sound in, and with every frame what is known to sound in it.

               audio_sink (on request, 16 kHz mono F32LE)
                    |
video_sink ---> [avisseg] ---> video_src    the same frames, with metadata, drawn in if `overlay`
                    |--------> mask_src     (on request) GRAY8 id maps
                    '--------> json_src     (on request) one JSON text a result

`python/gstavis.py` loads this file by its path, inside any program that uses GStreamer: at import it needs `gi` and
nothing else. A plugin that cannot be imported once is remembered as absent by GStreamer until its registry is deleted,
so torch and avis_stream are imported when the element leaves NULL, where a failure is an error message with a remedy.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GObject, Gst, GstVideo  # noqa: E402

logger = logging.getLogger(__name__)

if not Gst.is_initialized():  # in a Python program; GStreamer's own loader has done it
    Gst.init(None)

VIDEO = Gst.Caps.from_string("video/x-raw,format=RGB")
SOUND = Gst.Caps.from_string("audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved")
MASKS = Gst.Caps.from_string("video/x-raw,format=GRAY8")
JSON = Gst.Caps.from_string("application/x-json")
_TEMPLATES = {
    name: Gst.PadTemplate.new(name, direction, presence, caps)
    for name, direction, presence, caps in (
        ("video_sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, VIDEO),
        ("video_src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, VIDEO),
        ("audio_sink", Gst.PadDirection.SINK, Gst.PadPresence.REQUEST, SOUND),
        ("mask_src", Gst.PadDirection.SRC, Gst.PadPresence.REQUEST, MASKS),
        ("json_src", Gst.PadDirection.SRC, Gst.PadPresence.REQUEST, JSON),
    )
}
_RW, _RO = GObject.ParamFlags.READWRITE, GObject.ParamFlags.READABLE
_OWN_LATENCY_MS = 20
_EVERYTHING = (
    Gst.BufferCopyFlags.FLAGS | Gst.BufferCopyFlags.TIMESTAMPS | Gst.BufferCopyFlags.META | Gst.BufferCopyFlags.MEMORY
)
_KEPT_TIMES = 1024


class AvisSeg(Gst.Element):  # type: ignore[misc]
    """Which objects make sound, in every frame of a pipeline that it never slows down to the model."""

    __gtype_name__ = "AvisSeg"
    __gstmetadata__ = (
        "Audio-visual instance segmentation",
        "Filter/Analyzer/Video",
        "Finds which objects in the picture make sound, outlines, names and follows them (avis_stream)",
        "avis_stream",
    )
    __gsttemplates__ = tuple(_TEMPLATES.values())
    __gproperties__: ClassVar[dict[str, Any]] = {
        "model": (str, "Model", "Name of a model: avism_mini, avism_r50_coco, ...", "avism_mini", _RW),
        "weights": (str, "Weights", 'Weight file; empty: the bundled ones; "random": for a dry run', "", _RW),
        "device": (str, "Device", "Where the model runs: cpu, cuda", "cpu", _RW),
        "score-threshold": (float, "Score threshold", "Least score of what is shown; -1: the model's", -1, 1, -1, _RW),
        "audio-wait-ms": (int, "Audio wait", "How long a frame's analysis waits for its sound", 0, 10000, 200, _RW),
        "max-latency-ms": (
            int, "Greatest age", "Results older than this are no longer attached to frames; 0: always",
            0, 600000, 2000, _RW,
        ),
        "num-threads": (int, "Threads", "Of the model; 0: half of the cores", 0, 1024, 0, _RW),
        "sync": (bool, "Synchronous", "Every frame waits for its own result: for files", False, _RW),
        "overlay": (bool, "Overlay", "Draw masks, outlines and labels into the frames", False, _RW),
        "post-messages": (bool, "Post messages", "An element message `avisseg` with every result", True, _RW),
        "result-age-ms": (int, "Result age", "Age of the last frame's result; -1: it has none", -1, 2**31 - 1, -1, _RO),
        "stats": (Gst.Structure, "Statistics", "Frames, results, times per frame in microseconds", _RO),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Any] = {
            "model": "avism_mini", "weights": "", "device": "cpu", "score-threshold": -1.0, "audio-wait-ms": 200,
            "max-latency-ms": 2000, "num-threads": 0, "sync": False, "overlay": False, "post-messages": True,
        }  # fmt: skip
        self._follower: Any = None
        self._loaded: tuple[Any, Any] | None = None
        self._segment, self._audio_segment = Gst.Segment(), Gst.Segment()
        self._segment.init(Gst.Format.TIME)
        self._audio_segment.init(Gst.Format.TIME)
        self._size: tuple[int, int, int] | None = None
        self._pads: dict[str, Any] = {}
        self._begun: set[str] = set()
        self._lock = threading.Lock()
        self._told_json = 0
        self._age_ms = -1
        self._times: deque[int] = deque(maxlen=_KEPT_TIMES)
        self._duration_ns = 40_000_000
        self._frames_out = 0
        sink = self._new_pad("video_sink")
        sink.set_chain_function_full(self._take_frame)
        sink.set_event_function_full(self._video_event)
        sink.set_query_function_full(self._video_query)
        source = self._new_pad("video_src")
        source.set_query_function_full(self._video_query)

    def _new_pad(self, name: str) -> Any:
        pad = Gst.Pad.new_from_template(_TEMPLATES[name], name)
        self._pads[name] = pad
        self.add_pad(pad)
        return pad

    # --- properties, pads, states ------------------------------------------------------------------------------------

    def do_get_property(self, prop: Any) -> Any:
        """Any property."""
        if prop.name == "result-age-ms":
            return self._age_ms
        return self._statistics() if prop.name == "stats" else self._values[prop.name]

    def do_set_property(self, prop: Any, value: Any) -> None:
        """Takes effect at the next start, but for those that are looked at with each frame."""
        self._values[prop.name] = value

    def do_request_new_pad(self, template: Any, _name: str | None, _caps: Any) -> Any:
        """One of each of the pads on request, at any time."""
        name = template.name_template
        if name in self._pads:
            return None
        pad = self._new_pad(name)
        if name == "audio_sink":
            pad.set_chain_function_full(self._take_sound)
            pad.set_event_function_full(self._audio_event)
            if self._follower is not None:
                self._follower.expect_sound()
            pad.set_active(True)
        return pad

    def do_release_pad(self, pad: Any) -> None:
        """Goes on without."""
        name = pad.get_name()
        if name == "audio_sink" and self._follower is not None:
            self._follower.sound_over()
        pad.set_active(False)
        self._pads.pop(name, None)
        self._begun.discard(name)
        self.remove_pad(pad)

    def do_change_state(self, transition: Any) -> Any:
        """Loads the model when leaving NULL, begins and ends its thread with PAUSED."""
        change = Gst.StateChange
        if transition == change.NULL_TO_READY and not self._load():
            return Gst.StateChangeReturn.FAILURE
        if transition == change.READY_TO_PAUSED:
            self._begin()
        if transition == change.PAUSED_TO_READY and self._follower is not None:
            self._follower.stop()  # before the pads are stopped: a frame may wait in it
        done = Gst.Element.do_change_state(self, transition)
        if transition == change.PAUSED_TO_READY:
            self._end()
        return done

    def _load(self) -> bool:
        wanted = tuple(self._values[name] for name in ("model", "weights", "device", "score-threshold"))
        if self._loaded is not None and self._loaded[0] == wanted:
            return True
        try:
            from avis_stream.interop.follower import model_segmenter

            self._loaded = (wanted, model_segmenter(*wanted))
        except ImportError as error:
            self._fail(f"avis_stream cannot be imported: {error}", _IMPORT_REMEDY, Gst.LibraryError.INIT)
        except Exception as error:
            self._fail(f"the model cannot be loaded: {error}", "see the properties model, weights and device")
        else:
            return True
        return False

    def _fail(self, text: str, detail: str, code: Any = Gst.LibraryError.SETTINGS) -> None:
        from gi.repository import GLib

        error = GLib.GError.new_literal(Gst.library_error_quark(), text, int(code))
        self.post_message(Gst.Message.new_error(self, error, detail))

    def _begin(self) -> None:
        from avis_stream.interop.follower import Follower

        assert self._loaded is not None
        segmenter, classes, wants_previous = self._loaded[1]
        self._classes = classes
        threads = self._values["num-threads"] or max(1, (os.cpu_count() or 1) // 2)
        self._follower = Follower(
            segmenter, classes, num_threads=threads, audio_wait_ms=self._values["audio-wait-ms"],
            draw=self._values["overlay"], told=self._post, wants_previous=wants_previous,
        )  # fmt: skip
        if "audio_sink" in self._pads:
            self._follower.expect_sound()
        if not self._values["sync"]:
            self._follower.start()

    def _end(self) -> None:
        self._follower, self._size = None, None
        self._begun.clear()
        self._told_json, self._age_ms, self._frames_out = 0, -1, 0
        self._times.clear()
        for segment in (self._segment, self._audio_segment):
            segment.init(Gst.Format.TIME)

    # --- video -------------------------------------------------------------------------------------------------------

    def _take_frame(self, _pad: Any, _parent: Any, buffer: Any) -> Any:
        begin = time.perf_counter_ns()
        follower, size = self._follower, self._size
        if follower is None:
            return Gst.FlowReturn.FLUSHING
        if size is None:
            return Gst.FlowReturn.NOT_NEGOTIATED
        pts_ns = self._segment.to_running_time(Gst.Format.TIME, buffer.pts)
        if buffer.duration != Gst.CLOCK_TIME_NONE:
            self._duration_ns = buffer.duration
        waited, picture = 0, None
        if pts_ns != Gst.CLOCK_TIME_NONE:  # else it is outside the segment: nobody will see it
            picture = self._copy_of(buffer, size)
        if picture is not None and self._values["sync"]:
            before = time.perf_counter_ns()
            follower.frame_sync(picture, pts_ns)
            waited = time.perf_counter_ns() - before
        answer = self._fitting(follower.answer, pts_ns, size)
        out = self._with_answer(buffer, answer, size) if answer is not None else buffer
        self._push_beside(answer, buffer, size)
        if picture is not None and not self._values["sync"]:
            follower.frame(picture, pts_ns)  # wakes the model, so it comes last: both want the interpreter
        self._times.append(time.perf_counter_ns() - begin - waited)
        self._frames_out += 1
        return self._pads["video_src"].push(out)

    def _copy_of(self, buffer: Any, size: tuple[int, int, int]) -> Any:
        """The picture, uint8 [H, W, 3]: the frame itself goes on its way."""
        import numpy as np

        width, height, stride = size
        good, info = buffer.map(Gst.MapFlags.READ)
        if not good:
            raise RuntimeError("a video buffer cannot be read")
        rows = np.frombuffer(info.data, np.uint8, height * stride).reshape(height, stride)
        # A copy: a view that outlives the mapping would read the memory of others.
        picture = rows[:, : 3 * width].copy().reshape(height, width, 3)
        del rows
        buffer.unmap(info)
        return picture

    def _fitting(self, answer: Any, pts_ns: int, size: tuple[int, int, int]) -> Any:
        """The newest answer, if it is of such frames and not too old."""
        self._age_ms = -1
        if answer is None or answer.size != size[:2]:
            return None
        age_ms = 0 if pts_ns == Gst.CLOCK_TIME_NONE else max(0, (pts_ns - answer.result.pts_ns) // 1_000_000)
        limit = self._values["max-latency-ms"]
        if limit and age_ms > limit:
            return None
        self._age_ms = int(age_ms)
        return answer

    def _with_answer(self, buffer: Any, answer: Any, size: tuple[int, int, int]) -> Any:
        rows = answer.rows
        drawn = answer.layer if self._values["overlay"] else None
        if not rows and drawn is None:
            return buffer
        # `copy` would be another reference to the same buffer, to which nothing may be added.
        out = buffer.copy_deep() if drawn is not None else buffer.copy_region(_EVERYTHING, 0, 2**64 - 1)
        if drawn is not None:
            self._draw(out, drawn, size)
        attach_regions(out, rows, self._age_ms)
        attach_analytics(out, rows)
        return out

    def _draw(self, buffer: Any, layer: Any, size: tuple[int, int, int]) -> None:
        import numpy as np

        width, height, stride = size
        good, info = buffer.map(Gst.MapFlags.READ | Gst.MapFlags.WRITE)
        if not good:
            return
        # By strides, since a reshaped copy would be drawn into in vain where rows are padded.
        rows = np.frombuffer(info.data, np.uint8, height * stride)
        layer.blend(np.lib.stride_tricks.as_strided(rows, (height, width, 3), (stride, 3, 1)))
        del rows
        buffer.unmap(info)

    # --- the pads beside ---------------------------------------------------------------------------------------------

    def _push_beside(self, answer: Any, buffer: Any, size: tuple[int, int, int]) -> None:
        """Masks with every frame, JSON with every result; what becomes of them does not stop the video."""
        if "mask_src" in self._pads:
            self._push(self._pads["mask_src"], _mask_buffer(answer, size), buffer, self._mask_caps(size))
        if "json_src" in self._pads and answer is not None and answer.number != self._told_json:
            self._told_json = answer.number
            text = json.dumps(self._record(answer)) + "\n"
            self._push(self._pads["json_src"], Gst.Buffer.new_wrapped(text.encode()), buffer, JSON)

    def _mask_caps(self, size: tuple[int, int, int]) -> Any:
        caps = self._pads["video_sink"].get_current_caps()
        rate = caps.get_structure(0).get_fraction("framerate") if caps else (False, 0, 1)
        number, base = (rate[1], rate[2]) if rate[0] else (0, 1)
        return Gst.Caps.from_string(
            f"video/x-raw,format=GRAY8,width={size[0]},height={size[1]},framerate={number}/{base}"
        )

    def _push(self, pad: Any, buffer: Any, like: Any, caps: Any) -> None:
        if not pad.is_linked():
            return
        name = pad.get_name()
        if name not in self._begun:
            self._begun.add(name)
            pad.push_event(Gst.Event.new_stream_start(f"{self.get_name()}/{name}"))
        current = pad.get_current_caps()
        if current is None or not current.is_equal(caps):
            pad.push_event(Gst.Event.new_caps(caps))
        if f"{name} segment" not in self._begun:
            self._begun.add(f"{name} segment")
            pad.push_event(Gst.Event.new_segment(self._segment))
        buffer.pts, buffer.duration = like.pts, like.duration
        pad.push(buffer)

    def _record(self, answer: Any) -> dict[str, Any]:
        import torch

        from avis_stream.types import AVPair, VideoFrame
        from avis_stream.writers.jsonl import result_record

        result = answer.result
        image = torch.zeros(3, *result.mask.shape[1:], dtype=torch.uint8)
        frame = VideoFrame(image=image, pts_ns=result.pts_ns, frame_id=result.frame_id, source_id=self.get_name())
        pair = AVPair(frame=frame, audio=torch.zeros(16_000))
        return result_record(pair, result, self._classes)

    def _post(self, answer: Any) -> None:
        """An element message with every result; from the model's thread."""
        if not self._values["post-messages"]:
            return
        message = Gst.Structure.new_empty("avisseg")
        message.set_value("pts", GObject.Value(GObject.TYPE_UINT64, answer.result.pts_ns))
        message.set_value("frame-id", answer.result.frame_id)
        rows = answer.rows
        message.set_value("sounding", len(rows))
        record = [{"id": r.track_id, "label": r.label, "score": r.score, "bbox": list(r.box)} for r in rows]
        message.set_value("objects", json.dumps(record))
        self.post_message(Gst.Message.new_element(self, message))

    def _statistics(self) -> Any:
        stats = Gst.Structure.new_empty("avisseg-stats")
        times = sorted(self._times)
        follower = self._follower
        counts = {} if follower is None else dict(follower.counts)
        values = {
            "frames-in": counts.get("frames", 0), "frames-out": self._frames_out, "results": counts.get("answers", 0),
            "steps": counts.get("steps", 0), "refreshes": counts.get("refreshes", 0),
            "passed-over": counts.get("passed_over", 0), "late-sound": counts.get("late_sound", 0),
            "frame-p50-us": times[len(times) // 2] // 1000 if times else 0,
            "frame-p99-us": times[len(times) * 99 // 100] // 1000 if times else 0,
        }  # fmt: skip
        for stage in ("step", "refresh"):
            values[f"{stage}-p50-us"] = 0 if follower is None else round(follower.stats.spread(stage).p50 * 1000)
        for name, value in values.items():
            stats.set_value(name, int(value))
        return stats

    # --- sound -------------------------------------------------------------------------------------------------------

    def _take_sound(self, _pad: Any, _parent: Any, buffer: Any) -> Any:
        import numpy as np

        follower = self._follower
        if follower is None:
            return Gst.FlowReturn.FLUSHING
        pts_ns = self._audio_segment.to_running_time(Gst.Format.TIME, buffer.pts)
        if pts_ns == Gst.CLOCK_TIME_NONE:
            return Gst.FlowReturn.OK
        good, info = buffer.map(Gst.MapFlags.READ)
        if good:
            samples = np.frombuffer(info.data, np.float32).copy()
            buffer.unmap(info)
            follower.sound(samples, pts_ns)
        return Gst.FlowReturn.OK

    # --- events and queries ------------------------------------------------------------------------------------------

    def _video_event(self, pad: Any, parent: Any, event: Any) -> bool:
        kind = event.type
        if kind == Gst.EventType.CAPS:
            info = GstVideo.VideoInfo.new_from_caps(event.parse_caps())
            self._size = (info.width, info.height, info.stride[0])
        elif kind == Gst.EventType.SEGMENT:
            self._segment = event.parse_segment().copy()
            self._begun -= {"mask_src segment", "json_src segment"}
        elif kind == Gst.EventType.FLUSH_STOP and self._follower is not None:
            self._follower.reset()
            self._segment.init(Gst.Format.TIME)
            if "audio_sink" in self._pads:
                self._follower.expect_sound()
        if kind in (Gst.EventType.EOS, Gst.EventType.FLUSH_START, Gst.EventType.FLUSH_STOP):
            for name in ("mask_src", "json_src"):
                if name in self._pads and name in self._begun:
                    self._pads[name].push_event(event)
        return bool(self._pads["video_src"].push_event(event))

    def _audio_event(self, _pad: Any, _parent: Any, event: Any) -> bool:
        follower = self._follower
        if event.type == Gst.EventType.SEGMENT:
            self._audio_segment = event.parse_segment().copy()
        elif event.type in (Gst.EventType.EOS, Gst.EventType.FLUSH_START) and follower is not None:
            follower.sound_over()
        elif event.type == Gst.EventType.FLUSH_STOP and follower is not None:
            self._audio_segment.init(Gst.Format.TIME)
        return True

    def _video_query(self, pad: Any, parent: Any, query: Any) -> bool:
        is_source = pad.get_direction() == Gst.PadDirection.SRC
        other = self._pads["video_sink" if is_source else "video_src"]
        if query.type == Gst.QueryType.CAPS:
            wanted = query.parse_caps()
            caps = other.peer_query_caps(wanted).intersect(VIDEO)
            query.set_caps_result(caps)
            return True
        if query.type == Gst.QueryType.LATENCY and is_source:
            if not other.peer_query(query):
                return False
            live, least, most = query.parse_latency()
            own = (_OWN_LATENCY_MS + (self._values["audio-wait-ms"] if self._values["sync"] else 0)) * Gst.MSECOND
            query.set_latency(live, least + own, most if most == Gst.CLOCK_TIME_NONE else most + own)
            return True
        if query.type == Gst.QueryType.ALLOCATION:
            return bool(other.peer_query(query))
        return bool(pad.query_default(parent, query))


_IMPORT_REMEDY = (
    f"GStreamer runs Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.prefix}). Install avis_stream into a "
    'virtual environment of that version, and say where it is: eval "$(avis-stream gst env)", or set AVIS_STREAM_VENV'
)


def _mask_buffer(answer: Any, size: tuple[int, int, int]) -> Any:
    """GRAY8; its rows are padded to four bytes, as GStreamer takes for granted."""
    import numpy as np

    width, height, _ = size
    padded = np.zeros((height, (width + 3) // 4 * 4), np.uint8)
    if answer is not None:
        padded[:, :width] = answer.id_map
    return Gst.Buffer.new_wrapped(padded.tobytes())


def attach_regions(buffer: Any, rows: Sequence[Any], age_ms: int) -> None:
    """Regions of interest, which every version of GStreamer hands on; of 1.22 the parameters end at a conversion."""
    for row in rows:
        region = GstVideo.buffer_add_video_region_of_interest_meta(buffer, row.label, *row.box)
        region.id = row.track_id
        text = (
            f"avis, track-id=(int){row.track_id}, score=(double){row.score}, sounding=(boolean)true, "
            f"result-age-ms=(int){age_ms}"
        )
        region.add_param(Gst.Structure.new_from_string(text))


def attach_analytics(buffer: Any, rows: Sequence[Any], namespace: Any = None) -> bool:
    """Objects and their tracks as GstAnalytics has them (GStreamer 1.24 and later); False where it is not there."""
    analytics = _analytics() if namespace is None else namespace
    if analytics is None or not rows:
        return False
    from gi.repository import GLib

    meta = analytics.buffer_add_analytics_relation_meta(buffer)
    for row in rows:
        quark = GLib.quark_from_string(row.label)
        there, thing = meta.add_od_mtd(quark, *row.box, row.score)
        tracked, track = meta.add_tracking_mtd(row.track_id, buffer.pts)
        if there and tracked:
            meta.set_relation(analytics.RelTypes.RELATE_TO, thing.id, track.id)
    return True


def _analytics() -> Any:
    global _found_analytics
    if _found_analytics is _NOT_LOOKED:
        try:
            gi.require_version("GstAnalytics", "1.0")
            from gi.repository import GstAnalytics

            _found_analytics = GstAnalytics
        except (ImportError, ValueError):
            _found_analytics = None
    return _found_analytics


_NOT_LOOKED: Any = object()
_found_analytics: Any = _NOT_LOOKED


def register() -> None:
    """Makes `avisseg` known to this process, for Python programs: no plugin path, no registry.

    Example:
        >>> from avis_stream.interop.gst_element import register
        >>> register()
        >>> pipeline = Gst.parse_launch("videotestsrc ! videoconvert ! avisseg overlay=true ! autovideosink")
    """
    Gst.init(None)
    if Gst.ElementFactory.find("avisseg") is None:
        Gst.Element.register(None, "avisseg", Gst.Rank.NONE, AvisSeg)
