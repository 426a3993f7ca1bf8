"""The GStreamer element `avisseg`: video in and out, sound in, and with every frame what is known to sound in it.

               audio_sink (on request, 16 kHz mono F32LE)
                    |
video_sink ---> [avisseg] ---> video_src    the same frames, with metadata, drawn in if `overlay`
                    |--------> mask_src     (on request) GRAY8 id maps
                    '--------> json_src     (on request) one JSON text a result

`python/gstavis.py` loads this file by its path, inside any program that uses GStreamer: at import it needs `gi` and
nothing else. A plugin that cannot be imported once is remembered as absent by GStreamer until its registry is deleted,
so torch and avis_stream are imported when the element leaves NULL, where a failure is an error message with a remedy.

Here is what the element shows to GStreamer: pads, properties, states, queries. What it does with frames and sound while
it runs is `gst_stream.Stream`.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GObject, Gst  # noqa: E402

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
_OF_THE_MODEL = ("model", "weights", "device", "score-threshold", "mask-threshold")
"""Properties that take another model, or the same with other settings."""
_FIGURES = (
    "frames-in", "frames-out", "results", "steps", "refreshes", "passed-over", "late-sound", "out-of-order",
    "frame-p50-us", "frame-p99-us", "step-p50-us", "refresh-p50-us",
)  # fmt: skip
"""Of the property `stats`: counts, and times in microseconds."""


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
        "mask-threshold": (
            float, "Mask threshold", "Probability from which on a pixel belongs to a mask", 0.01, 0.99, 0.5, _RW
        ),
        "audio-wait-ms": (int, "Audio wait", "How long a frame's analysis waits for its sound", 0, 10000, 200, _RW),
        "max-latency-ms": (
            int, "Greatest age", "Results older than this are no longer attached to frames; 0: always",
            0, 600000, 2000, _RW,
        ),
        "num-threads": (int, "Threads", "Of the model; 0: all up to 4, then half of the cores", 0, 1024, 0, _RW),
        "sync": (bool, "Synchronous", "Every frame waits for its own result: for files", False, _RW),
        "overlay": (bool, "Overlay", "Draw masks, outlines and labels into the frames", False, _RW),
        "post-messages": (bool, "Post messages", "An element message `avisseg` with every result", True, _RW),
        "result-age-ms": (int, "Result age", "Age of the last frame's result; -1: it has none", -1, 2**31 - 1, -1, _RO),
        "stats": (Gst.Structure, "Statistics", "Frames, results, times per frame in microseconds", _RO),
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Any] = {
            "model": "avism_mini", "weights": "", "device": "cpu", "score-threshold": -1.0, "mask-threshold": 0.5,
            "audio-wait-ms": 200, "max-latency-ms": 2000, "num-threads": 0, "sync": False, "overlay": False,
            "post-messages": True,
        }  # fmt: skip
        self._loaded: tuple[Any, Any] | None = None
        self._stream: Any = None
        """While the element runs."""
        self._pads: dict[str, Any] = {}
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
            return -1 if self._stream is None else self._stream.age_ms
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
            if self._stream is not None:
                self._stream.audio_pad_changed()
            pad.set_active(True)
        return pad

    def do_release_pad(self, pad: Any) -> None:
        """Goes on without."""
        name = pad.get_name()
        self._pads.pop(name, None)
        if name == "audio_sink" and self._stream is not None:
            self._stream.audio_pad_changed()
        if name == "json_src" and self._stream is not None:
            self._stream.json_pad_released()
        pad.set_active(False)
        self.remove_pad(pad)

    def do_change_state(self, transition: Any) -> Any:
        """Loads the model when leaving NULL, begins and ends its thread with PAUSED."""
        change = Gst.StateChange
        if transition == change.NULL_TO_READY and not self._load():
            return Gst.StateChangeReturn.FAILURE
        if transition == change.READY_TO_PAUSED:
            self._begin()
        if transition == change.PAUSED_TO_READY and self._stream is not None:
            self._stream.stop()  # before the pads are stopped: a frame may wait in it
        done = Gst.Element.do_change_state(self, transition)
        if transition == change.PAUSED_TO_READY:
            self._stream = None
        return done

    def _load(self) -> bool:
        wanted = tuple(self._values[name] for name in _OF_THE_MODEL)
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

    def _warn(self, text: str, detail: str) -> None:
        from gi.repository import GLib

        warning = GLib.GError.new_literal(Gst.stream_error_quark(), text, int(Gst.StreamError.FAILED))
        self.post_message(Gst.Message.new_warning(self, warning, detail))

    def _begin(self) -> None:
        from avis_stream.interop.gst_stream import Stream

        assert self._loaded is not None
        self._stream = Stream(
            self.get_name(), self._pads, self._values, self._loaded[1], post=self._post, warn=self._warn,
            fail=lambda text, detail: self._fail(text, detail, Gst.LibraryError.FAILED),
            playing=lambda: self.current_state == Gst.State.PLAYING,
        )  # fmt: skip

    def _post(self, structure: Any) -> None:
        self.post_message(Gst.Message.new_element(self, structure))

    def _statistics(self) -> Any:
        stats = Gst.Structure.new_empty("avisseg-stats")
        figures = {} if self._stream is None else self._stream.figures()
        for name in _FIGURES:
            stats.set_value(name, figures.get(name, 0))
        return stats

    # --- what comes in -----------------------------------------------------------------------------------------------

    def _take_frame(self, _pad: Any, _parent: Any, buffer: Any) -> Any:
        stream = self._stream
        return Gst.FlowReturn.FLUSHING if stream is None else stream.take_frame(buffer)

    def _take_sound(self, _pad: Any, _parent: Any, buffer: Any) -> Any:
        stream = self._stream
        return Gst.FlowReturn.FLUSHING if stream is None else stream.take_sound(buffer)

    def _video_event(self, _pad: Any, _parent: Any, event: Any) -> bool:
        stream = self._stream
        if stream is not None:
            stream.video_event(event)
        if stream is not None and event.type == Gst.EventType.GAP:
            return bool(stream.hand_on_gap(lambda: self._pads["video_src"].push_event(event)))
        handed_on = bool(self._pads["video_src"].push_event(event))
        if stream is not None and event.type == Gst.EventType.EOS:
            stream.end_texts(event)
        return handed_on

    def _audio_event(self, _pad: Any, _parent: Any, event: Any) -> bool:
        stream = self._stream
        if stream is not None:
            stream.audio_event(event)
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
