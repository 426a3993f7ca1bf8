"""Addresses and pipelines that GStreamer reads."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .wire import AUDIO, NO_STAMP, OPENED, SAMPLE_RATE, VIDEO, Ended, Hopeless, Outlet, with_remedy

if TYPE_CHECKING:
    from .layout import Layout

_MAX_WAITING = 30
"""Decoded pictures that may wait here for the reader."""
_AHEAD_NS = 2_000_000_000
"""Sound of a film may be sent so far ahead of its pictures: demuxers hand out a whole track while the other waits."""
_PICTURES = "video/x-raw,format=RGB"
_SOUND = f"audio/x-raw,format=F32LE,rate={SAMPLE_RATE},channels=1,layout=interleaved"


def read_gstreamer(wanted: dict[str, Any], out: Outlet) -> None:
    """An address (`url`) or the text of a pipeline with appsinks named video and audio (`pipeline`)."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401 (GstApp gives appsinks their methods)

        from .layout import Layout
    except (ImportError, ValueError) as error:
        raise Hopeless(
            f"GStreamer's Python bindings cannot be loaded ({error}); apt-get install python3-gst-1.0 "
            'gir1.2-gst-plugins-base-1.0 and use the system\'s Python, or choose backend="ffmpeg"'
        ) from error
    Gst.init(None)
    _GStreamerReader(Gst, Layout.of_caps, wanted, out).run()


class _GStreamerReader:
    def __init__(self, gst: Any, layout_of: Callable[[Any], Layout], wanted: dict[str, Any], out: Outlet) -> None:
        self.gst, self.layout_of, self.wanted, self.out = gst, layout_of, wanted, out
        self.pending: set[Any] = set()
        """Elements that may still add pads, of other kinds of media. Changed by threads of GStreamer."""
        self.sound_decoders: set[Any] = set()
        """What decodes nothing else: pictures go on without it."""
        self.linking = threading.Lock()
        self.live = True
        """Whether it happens while it is read; known once it runs."""
        self.first_sound = self.last_sound = NO_STAMP
        self.last_picture: int | None = None
        """By its stamp; None before the first."""
        self.told = False
        """Whether the reader knows what this source has."""
        self.pipeline = self._of_address(wanted["url"]) if wanted.get("url") else self._of_text(wanted["pipeline"])
        # One clock for everything, and the same one that Python's monotonic clock shows.
        clock = gst.SystemClock.obtain()
        self.pipeline.use_clock(clock)
        self.offset = time.monotonic_ns() - clock.get_time()

    def _of_text(self, text: str) -> Any:
        try:
            pipeline = self.gst.parse_launch(text)
        except Exception as error:  # GLib.Error; a wrong text stays wrong
            raise Hopeless(f"not a pipeline: {_gerror(error)}") from error
        if not isinstance(pipeline, self.gst.Bin):
            raise Hopeless("a pipeline needs an appsink named video at its end")
        found = 0
        for name, caps in (("video", _PICTURES), ("audio", _SOUND)):
            appsink = pipeline.get_by_name(name)
            if appsink is not None:
                found += name == "video"
                self._prepare(appsink, name, caps)
        if not found:
            raise Hopeless("no appsink named video in the pipeline; end it with: videoconvert ! appsink name=video")
        return pipeline

    def _of_address(self, url: str) -> Any:
        pipeline = self.gst.Pipeline.new(None)
        pipeline.connect("deep-element-added", lambda _a, _b, element: _without_delay(element))
        if url.startswith("rtsp"):
            source = self._made("rtspsrc", "good")
            source.set_property("location", url)
            self._set_up(None, source)
            self._made("decodebin", "base")  # `_decode` needs it, where nothing can be raised
            source.connect("pad-added", self._decode, pipeline)
        else:
            source = self._made("uridecodebin", "base")
            source.set_property("uri", url)
            source.connect("source-setup", self._set_up)
            source.connect("pad-added", self._link)
        self._expect_pads_of(source)
        pipeline.add(source)
        return pipeline

    def _made(self, name: str, plugins: str) -> Any:
        element = self.gst.ElementFactory.make(name, None)
        if element is None:
            raise Hopeless(f"GStreamer's element {name} is missing; apt-get install gstreamer1.0-plugins-{plugins}")
        return element

    def _set_up(self, _bin: Any, source: Any) -> None:
        for name, value in self.wanted.get("properties", {}).items():
            if source.find_property(name) is not None:
                self.gst.util_set_object_arg(source, name, str(value))

    def _expect_pads_of(self, element: Any) -> None:
        self.pending.add(element)
        element.connect("no-more-pads", self.pending.discard)

    def _decode(self, _source: Any, pad: Any, pipeline: Any) -> None:
        """Gives one stream of rtspsrc a decoder.

        As uridecodebin does; but that stops listening at rtspsrc's "no more pads", which one stream's thread may say
        while another's has not added its own yet: one connection of a hundred has no sound then, or no pictures.
        """
        media = (pad.get_current_caps() or pad.query_caps(None)).get_structure(0).get_string("media")
        if media != "video" and not (media == "audio" and self.wanted["audio"]):
            return
        decoder = self.gst.ElementFactory.make("decodebin", None)
        self._expect_pads_of(decoder)
        decoder.connect("pad-added", self._link)
        if media == "audio":
            self.sound_decoders.add(decoder)
        pipeline.add(decoder)
        pad.link(decoder.get_static_pad("sink"))
        decoder.sync_state_with_parent()

    def _link(self, _decoder: Any, pad: Any) -> None:
        caps = (pad.get_current_caps() or pad.query_caps(None)).to_string()
        kind = "video" if caps.startswith("video/") else "audio" if caps.startswith("audio/") else None
        if kind is None or not self.wanted[kind]:
            return
        converters = "videoconvert" if kind == "video" else "audioconvert ! audioresample"
        branch = self.gst.parse_bin_from_description(f"queue ! {converters} ! appsink name={kind}", True)
        self._prepare(branch.get_by_name(kind), kind, _PICTURES if kind == "video" else _SOUND)
        with self.linking:  # each stream has a thread; the first of a kind is the one
            if self.pipeline.get_by_name(kind) is not None:
                return
            self.pipeline.add(branch)
        branch.sync_state_with_parent()
        pad.link(branch.get_static_pad("sink"))

    def _prepare(self, appsink: Any, name: str, caps: str) -> None:
        # Nothing is dropped here: the reader takes everything at once and drops by rule, or it wants every frame.
        for key, value in (("sync", False), ("drop", False), ("max-buffers", _MAX_WAITING if name == "video" else 400)):
            appsink.set_property(key, value)
        appsink.set_property("caps", self.gst.Caps.from_string(caps))

    def run(self) -> None:
        gst = self.gst
        self.live = self.pipeline.set_state(gst.State.PAUSED) == gst.StateChangeReturn.NO_PREROLL
        for kind in ("video", "audio") if not self.live and not self.wanted.get("url") else ():
            if (appsink := self.pipeline.get_by_name(kind)) is not None:
                appsink.set_property("sync", True)  # of files it happens now, as what a camera sees does
        self.pipeline.set_state(gst.State.PLAYING)
        bus = self.pipeline.get_bus()
        begin = last = time.monotonic()
        while True:
            got = self._drain()
            now = time.monotonic()
            last = now if got else last
            message = bus.pop_filtered(gst.MessageType.ERROR | gst.MessageType.EOS)
            if message is not None:
                if message.type == gst.MessageType.ERROR:
                    if self._forgoes_sound(message.src):
                        continue
                    error, detail = message.parse_error()
                    raise Ended(_gerror(error) + _hint(detail))
                if not self._drain():
                    raise Ended("finished" if self._is_finite() else "end of stream")
            waited = now - last if self.told else now - begin
            limit = self.wanted["stall_seconds" if self.told else "open_seconds"]
            if waited > limit:
                raise Ended(f"nothing came for {limit:g} s")

    def _forgoes_sound(self, culprit: Any) -> bool:
        """Whether what failed is the decoder of sound alone (its codec is not installed, say): out with it then."""
        if not self.wanted["video"]:
            return False
        for decoder in tuple(self.sound_decoders):
            if culprit == decoder or culprit.has_as_ancestor(decoder):
                decoder.set_state(self.gst.State.NULL)
                self.pipeline.remove(decoder)
                self.sound_decoders.discard(decoder)
                self.pending.discard(decoder)
                self.pipeline.set_state(self.gst.State.PLAYING)  # what fails ends the change that was under way
                return True
        return False

    def _is_finite(self) -> bool:
        known, duration = self.pipeline.query_duration(self.gst.Format.TIME)
        return bool(known) and duration > 0 and not str(self.wanted.get("url", "")).startswith("rtsp")

    def _tell(self) -> None:
        """Says what the source has, before the first picture, or sound where no pictures are wanted."""
        if self.told:
            return
        self.told = True
        about = {} if self.pending else {"audio": self.pipeline.get_by_name("audio") is not None}
        self.out.send(OPENED, json.dumps(about | {"finite": self._is_finite()}).encode())

    def _drain(self) -> bool:
        """Sends what is there, sound before pictures; waits for a picture for a little while."""
        video = self.pipeline.get_by_name("video")
        got = self._drain_sound(video) and not self.wanted["video"]
        if video is None:
            time.sleep(0.01)
            return got
        wait = 10 * self.gst.MSECOND
        while (sample := video.try_pull_sample(wait)) is not None:
            self._send_picture(sample)
            self._drain_sound(video)
            got, wait = True, 0
        return got

    def _drain_sound(self, video: Any) -> bool:
        audio, got = self.pipeline.get_by_name("audio"), False
        while audio is not None and not self._sound_is_ahead(video):
            if (sample := audio.try_pull_sample(0)) is None:
                break
            self._send_sound(sample)
            got = True
        return got

    def _sound_is_ahead(self, video: Any) -> bool:
        """Whether sound waits for its pictures, if there will be any: they are looked at with what is kept of it."""
        if self.live or not self.wanted["video"] or self.last_sound == NO_STAMP or (video and video.is_eos()):
            return False
        if self.last_picture == NO_STAMP:
            return False  # where pictures have no stamps nobody knows
        shown = self.first_sound if self.last_picture is None else self.last_picture
        return self.last_sound > shown + _AHEAD_NS

    def _time_of(self, sample: Any) -> int:
        running = sample.get_segment().to_running_time(self.gst.Format.TIME, sample.get_buffer().pts)
        if running == self.gst.CLOCK_TIME_NONE:
            return NO_STAMP
        return int(self.pipeline.get_base_time() + running + self.offset)

    def _send_picture(self, sample: Any) -> None:
        self._tell()
        buffer = sample.get_buffer()
        layout = self.layout_of(sample.get_caps()).of(buffer)
        with _mapped(self.gst, buffer) as data:
            try:
                pixels = layout.packed(data)
            except ValueError as error:
                raise Ended(str(error)) from error
            self.last_picture = self._time_of(sample)
            self.out.send(VIDEO, pixels, self.last_picture, *layout.size)

    def _send_sound(self, sample: Any) -> None:
        if not self.wanted["video"]:
            self._tell()
        with _mapped(self.gst, sample.get_buffer()) as data:
            self.last_sound = self._time_of(sample)
            self.first_sound = self.last_sound if self.first_sound == NO_STAMP else self.first_sound
            self.out.send(AUDIO, data, self.last_sound, SAMPLE_RATE)


@contextlib.contextmanager
def _mapped(gst: Any, buffer: Any) -> Iterator[Any]:
    good, info = buffer.map(gst.MapFlags.READ)
    if not good:
        raise Ended("a buffer could not be read")
    try:
        yield info.data
    finally:
        buffer.unmap(info)


def _without_delay(element: Any) -> None:
    """FFmpeg's decoders hold back a frame for each thread that they use."""
    if element.find_property("max-threads") is not None and element.find_property("lowres") is not None:
        element.set_property("max-threads", 1)


def _gerror(error: Any) -> str:
    return str(getattr(error, "message", error))


def _hint(detail: str | None) -> str:
    if detail and "not-negotiated" in detail:
        return "; put videoconvert before the appsink named video, audioconvert ! audioresample before audio"
    said = re.search("^system error: (.+)$", detail or "", re.MULTILINE)  # why a device cannot be opened
    return f" {with_remedy(said[1])}" if said else ""
