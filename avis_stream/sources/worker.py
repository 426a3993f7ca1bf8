"""Reads one live source in a process of its own: FFmpeg, GStreamer or PortAudio in, messages on stdout out.

Connecting, name look-up, drivers and sound servers can hang inside C code that nothing in Python interrupts; a process
can always be ended. It also keeps decoding and microphone callbacks clear of the model's interpreter lock.

Run as a script, so that neither torch nor the rest of the package is imported. What to read comes as JSON on stdin,
where no list of processes shows a password. Every message is a HEADER and so many bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

HEADER = struct.Struct("<4sIqqIII")
"""Kind, bytes that follow, stamp, arrival on the monotonic clock (both ns), two sizes, frames lost so far."""

OPENED, VIDEO, AUDIO, ENDED, FATAL = b"OPEN", b"VIDE", b"AUDI", b"ENDE", b"FATL"
"""Opened: JSON about the source. Video: RGB, sizes are width and height. Audio: float32 mono, sizes are rate and a flag
for lost samples. Ended: why, worth another try. Fatal: why, and that no other try will help."""

NO_STAMP = -(1 << 62)
SAMPLE_RATE = 16_000
_BLOCK_SECONDS = 0.02
_MAX_WAITING = 30
"""Decoded pictures that may wait here for the reader."""


class Ended(Exception):
    """The source is gone; another try may find it."""


class Hopeless(Exception):
    """Something is missing that will not appear by itself."""


class Outlet:
    """Writes messages; stdout itself is given to stderr, lest a library prints into them."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.lost = 0

    def send(self, kind: bytes, payload: Any = b"", stamp: int = NO_STAMP, a: int = 0, b: int = 0) -> None:
        """Writes one message; waits while nobody reads."""
        view = memoryview(payload).cast("B")
        head = HEADER.pack(kind, len(view), stamp, time.monotonic_ns(), a, b, self.lost)
        with self._lock:
            self._write(memoryview(head))
            self._write(view)

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


def read_ffmpeg(wanted: dict[str, Any], out: Outlet) -> None:
    """An address or a device that FFmpeg opens."""
    try:
        import av
    except ImportError as error:
        raise Hopeless(f"PyAV cannot be imported ({error}); pip install av") from error
    av.logging.set_level(av.logging.PANIC)
    try:
        container = av.open(
            wanted["url"],
            format=wanted.get("format"),
            options=wanted.get("options", {}),
            timeout=(wanted["open_seconds"], wanted["stall_seconds"]),
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Ended(_words(error)) from error
    with container:
        video = next(iter(container.streams.video), None)
        sound = next(iter(container.streams.audio), None) if wanted["audio"] else None
        if video is None and wanted["video"]:
            raise Ended("no video in it")
        finite = not wanted["url"].startswith(("rtsp", "/dev/")) and (
            (container.duration or 0) > 0 or (wanted["url"].startswith("http") and container.size > 0)
        )
        out.send(OPENED, json.dumps({"audio": sound is not None, "finite": finite}).encode())
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        streams = [s for s in (video if wanted["video"] else None, sound) if s is not None]
        try:
            for packet in container.demux(streams):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    out.lost += packet.stream.type == "video"  # damaged; the next one may be whole
                    continue
                for frame in frames:
                    _send_decoded(frame, resampler, out)
        except (av.FFmpegError, OSError) as error:
            silent = f"nothing came for {wanted['stall_seconds']:g} s"
            raise Ended(silent if type(error).__name__ == "ExitError" else _words(error)) from error
    raise Ended("finished" if finite else "end of stream")


def _send_decoded(frame: Any, resampler: Any, out: Outlet) -> None:
    stamp = NO_STAMP if frame.time is None else round(frame.time * 1e9)
    if hasattr(frame, "samples"):
        for part in resampler.resample(frame):
            time_ns = stamp if part.time is None else round(part.time * 1e9)
            out.send(AUDIO, part.to_ndarray().reshape(-1).tobytes(), time_ns, SAMPLE_RATE)
    else:
        picture = frame.to_ndarray(format="rgb24")
        out.send(VIDEO, picture.tobytes(), stamp, frame.width, frame.height)


def _words(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


# --- GStreamer --------------------------------------------------------------------------------------------------------

_PICTURES = "video/x-raw,format=RGB"
_SOUND = f"audio/x-raw,format=F32LE,rate={SAMPLE_RATE},channels=1,layout=interleaved"


def read_gstreamer(wanted: dict[str, Any], out: Outlet) -> None:
    """An address (`url`) or the text of a pipeline with appsinks named video and audio (`pipeline`)."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401 (GstApp gives appsinks their methods)
    except (ImportError, ValueError) as error:
        raise Hopeless(
            f"GStreamer's Python bindings cannot be loaded ({error}); apt-get install python3-gst-1.0 "
            'gir1.2-gst-plugins-base-1.0 and use the system\'s Python, or choose backend="ffmpeg"'
        ) from error
    Gst.init(None)
    _GStreamerReader(Gst, wanted, out).run()


class _GStreamerReader:
    def __init__(self, gst: Any, wanted: dict[str, Any], out: Outlet) -> None:
        self.gst, self.wanted, self.out = gst, wanted, out
        self.settled = not wanted.get("url")
        """No further pads will come."""
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
        gst = self.gst
        pipeline = gst.Pipeline.new(None)
        source = gst.ElementFactory.make("uridecodebin", None)
        if source is None:
            raise Hopeless("GStreamer's element uridecodebin is missing; apt-get install gstreamer1.0-plugins-base")
        source.set_property("uri", url)
        source.connect("source-setup", self._set_up)
        source.connect("deep-element-added", lambda _a, _b, element: _without_delay(element))
        source.connect("pad-added", self._link)
        source.connect("no-more-pads", self._no_more)
        pipeline.add(source)
        return pipeline

    def _set_up(self, _bin: Any, source: Any) -> None:
        # Settings of rtspsrc: "synced" keeps sound and pictures together (its default is 40 ms off for as long as one
        # looks), TCP loses nothing on the way.
        for name, value in self.wanted.get("properties", {}).items():
            if source.find_property(name) is not None:
                self.gst.util_set_object_arg(source, name, str(value))

    def _link(self, _source: Any, pad: Any) -> None:
        caps = (pad.get_current_caps() or pad.query_caps(None)).to_string()
        kind = "video" if caps.startswith("video/") else "audio" if caps.startswith("audio/") else None
        if kind is None or not self.wanted[kind] or self.pipeline.get_by_name(kind) is not None:
            return
        converters = "videoconvert" if kind == "video" else "audioconvert ! audioresample"
        branch = self.gst.parse_bin_from_description(f"queue ! {converters} ! appsink name={kind}", True)
        self._prepare(branch.get_by_name(kind), kind, _PICTURES if kind == "video" else _SOUND)
        self.pipeline.add(branch)
        branch.sync_state_with_parent()
        pad.link(branch.get_static_pad("sink"))

    def _no_more(self, _source: Any) -> None:
        self.settled = True

    def _prepare(self, appsink: Any, name: str, caps: str) -> None:
        # Nothing is dropped here: the reader takes everything at once and drops by rule, or it wants every frame.
        for key, value in (("sync", False), ("drop", False), ("max-buffers", _MAX_WAITING if name == "video" else 400)):
            appsink.set_property(key, value)
        appsink.set_property("caps", self.gst.Caps.from_string(caps))

    def run(self) -> None:
        gst = self.gst
        self.pipeline.set_state(gst.State.PLAYING)
        bus = self.pipeline.get_bus()
        told = False
        begin = last = time.monotonic()
        while True:
            got = self._drain()
            now = time.monotonic()
            if got and not told:
                told = True
                about = {"audio": self.pipeline.get_by_name("audio") is not None} if self.settled else {}
                self.out.send(OPENED, json.dumps(about).encode())
            last = now if got else last
            message = bus.pop_filtered(gst.MessageType.ERROR | gst.MessageType.EOS)
            if message is not None:
                if message.type == gst.MessageType.ERROR:
                    error, detail = message.parse_error()
                    raise Ended(_gerror(error) + _hint(detail))
                if not self._drain():
                    finite = self.pipeline.query_duration(gst.Format.TIME)
                    raise Ended("finished" if finite[0] and finite[1] > 0 and not self._is_rtsp() else "end of stream")
            waited = now - last if told else now - begin
            limit = self.wanted["stall_seconds" if told else "open_seconds"]
            if waited > limit:
                raise Ended(f"nothing came for {limit:g} s")

    def _is_rtsp(self) -> bool:
        return str(self.wanted.get("url", "")).startswith("rtsp")

    def _drain(self) -> bool:
        """Sends what is there; waits for a picture for a little while."""
        video, audio = self.pipeline.get_by_name("video"), self.pipeline.get_by_name("audio")
        got = False
        while audio is not None and (sample := audio.try_pull_sample(0)) is not None:
            self._send_sound(sample)
            got = got or not self.wanted["video"]
        wait = 10 * self.gst.MSECOND
        if video is None:
            time.sleep(0.01)
            return got
        while (sample := video.try_pull_sample(wait)) is not None:
            self._send_picture(sample)
            got, wait = True, 0
        return got

    def _time_of(self, sample: Any) -> int:
        running = sample.get_segment().to_running_time(self.gst.Format.TIME, sample.get_buffer().pts)
        if running == self.gst.CLOCK_TIME_NONE:
            return NO_STAMP
        return int(self.pipeline.get_base_time() + running + self.offset)

    def _send_picture(self, sample: Any) -> None:
        shape = sample.get_caps().get_structure(0)
        width, height = shape.get_value("width"), shape.get_value("height")
        buffer = sample.get_buffer()
        with _mapped(self.gst, buffer) as data:
            stride = len(data) // height
            rows = data if stride == 3 * width else b"".join(
                bytes(data[y * stride : y * stride + 3 * width]) for y in range(height)
            )  # fmt: skip
            self.out.send(VIDEO, rows, self._time_of(sample), width, height)

    def _send_sound(self, sample: Any) -> None:
        with _mapped(self.gst, sample.get_buffer()) as data:
            self.out.send(AUDIO, data, self._time_of(sample), SAMPLE_RATE)


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
    return ""


# --- PortAudio --------------------------------------------------------------------------------------------------------


def read_microphone(wanted: dict[str, Any], out: Outlet) -> None:
    """A microphone by PyAudio; `name` is part of a device's name, or its number, or empty for the default."""
    audio, portaudio = _portaudio()
    device = _device(portaudio, wanted["name"])
    rate = _rate_of(audio, portaudio, device)
    blocks: list[tuple[bytes, int]] = []
    there = threading.Condition()

    def take(data: bytes | None, _count: int, _times: Any, status: int) -> tuple[None, int]:
        with there:
            blocks.append((data or b"", status))
            there.notify()
        return None, audio.paContinue

    try:
        stream = portaudio.open(
            format=audio.paInt16, channels=1, rate=rate, input=True, stream_callback=take,
            input_device_index=device["index"], frames_per_buffer=round(rate * _BLOCK_SECONDS),
        )  # fmt: skip
    except OSError as error:
        raise Ended(f"microphone {device['name']!r} cannot be opened ({_words(error)})") from error
    about = {"audio": True, "name": device["name"], "rate": rate, "latency": stream.get_input_latency()}
    out.send(OPENED, json.dumps(about).encode())
    convert = _to_sixteen_thousand(rate)
    patience = wanted["open_seconds"]  # sound servers take their time to begin
    while True:
        with there:
            if not there.wait_for(lambda: blocks, patience):
                raise Ended(f"no sound came for {patience:g} s")
            patience = wanted["stall_seconds"]
            ready, blocks[:] = list(blocks), []
        for data, status in ready:
            out.send(AUDIO, convert(data), NO_STAMP, SAMPLE_RATE, int(bool(status & 2)))  # 2: paInputOverflow


def _portaudio() -> tuple[Any, Any]:
    try:
        import pyaudio
    except ImportError as error:
        raise Hopeless(
            f"PyAudio cannot be imported ({error}); apt-get install portaudio19-dev, "
            "then pip install 'avis-stream[mic]'"
        ) from error
    with _alsa_quiet():
        return pyaudio, pyaudio.PyAudio()


@contextlib.contextmanager
def _alsa_quiet() -> Iterator[None]:
    """PortAudio's scan makes ALSA print some eighty lines about cards that are not there."""
    import ctypes

    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
    handler = handler_type(lambda *_: None)
    try:
        alsa = ctypes.CDLL("libasound.so.2")
    except OSError:  # no ALSA here, so no noise either
        yield
        return
    alsa.snd_lib_error_set_handler(handler)
    try:
        yield
    finally:
        alsa.snd_lib_error_set_handler(None)


def microphones() -> list[dict[str, Any]]:
    """Every device that records, the default one marked."""
    _, portaudio = _portaudio()
    try:
        default = portaudio.get_default_input_device_info()["index"]
    except OSError:
        default = None
    found = [portaudio.get_device_info_by_index(n) for n in range(portaudio.get_device_count())]
    return [
        {
            "index": d["index"], "name": d["name"], "channels": d["maxInputChannels"],
            "rate": round(d["defaultSampleRate"]), "default": d["index"] == default,
        }
        for d in found if d["maxInputChannels"] > 0
    ]  # fmt: skip


def _device(portaudio: Any, name: str) -> Any:
    if not name:
        try:
            return portaudio.get_default_input_device_info()
        except OSError as error:
            raise Ended("no microphone is there; avis-stream devices lists what is") from error
    found = [portaudio.get_device_info_by_index(n) for n in range(portaudio.get_device_count())]
    inputs = [d for d in found if d["maxInputChannels"] > 0]
    for device in inputs:
        if name == str(device["index"]) or name.lower() in device["name"].lower():
            return device
    there = ", ".join(repr(d["name"]) for d in inputs) or "none"
    raise Ended(f"no microphone called {name!r} is there; there are: {there}")


def _rate_of(audio: Any, portaudio: Any, device: Any) -> int:
    """16 kHz where the device does that, else its own rate."""
    try:
        portaudio.is_format_supported(
            SAMPLE_RATE, input_device=device["index"], input_channels=1, input_format=audio.paInt16
        )
    except ValueError:
        return int(device["defaultSampleRate"])
    return SAMPLE_RATE


def _to_sixteen_thousand(rate: int) -> Callable[[bytes], bytes]:
    import numpy as np

    def floats(data: bytes) -> Any:
        return np.frombuffer(data, np.int16).astype(np.float32) / 32768

    if rate == SAMPLE_RATE:
        return lambda data: floats(data).tobytes()
    import av

    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def convert(data: bytes) -> bytes:
        frame = av.AudioFrame.from_ndarray(floats(data)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        return b"".join(part.to_ndarray().tobytes() for part in resampler.resample(frame))

    return convert


# --- the process ------------------------------------------------------------------------------------------------------

_READERS = {"ffmpeg": read_ffmpeg, "gstreamer": read_gstreamer, "microphone": read_microphone}


def main() -> int:
    """Reads what stdin asks for until it ends or nobody listens."""
    wanted = json.loads(sys.stdin.readline())
    if wanted["reader"] == "list-microphones":
        try:
            sys.stdout.write(json.dumps(microphones()))
        except Hopeless as error:
            sys.stderr.write(str(error))
            return 1
        sys.stdout.flush()
        os._exit(0)
    out = Outlet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kind, why = ENDED, "end of stream"
    try:
        _READERS[wanted["reader"]](wanted, out)
    except Ended as end:
        why = str(end)
    except Hopeless as error:
        kind, why = FATAL, str(error)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        out.send(kind, why.encode())
    # Libraries may hang on their way out, and nothing here needs cleaning.
    os._exit(0)


def _end_with_parent() -> None:
    """The parent holds stdin open as long as it lives."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    # A script's folder comes first on the path, and modules of this folder must not stand in for others.
    sys.path.pop(0)
    sys.exit(main())
