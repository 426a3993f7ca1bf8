"""`avis-stream doctor`: what is installed, which devices open, how far sound is from pictures; each with its remedy."""

from __future__ import annotations

import importlib.util
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np
import torch

from avis_stream import ops
from avis_stream.commands.devices import camera_remedy, cameras
from avis_stream.commands.gst import plugin_folder, registry_file
from avis_stream.errors import AvisStreamError, SourceError
from avis_stream.files import as_file
from avis_stream.needs import install_extra, required
from avis_stream.sources.address import redacted
from avis_stream.sources.child import Child, Message, list_microphones
from avis_stream.sources.open import has_gstreamer
from avis_stream.sources.synthetic import FlashBeep, beep_onsets, flash_onsets, skew_of
from avis_stream.sources.worker import wire
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AudioChunk, AVPair, OnlineResult, VideoFrame
from avis_stream.weights.bundled import bundled_weights

APT = (
    "apt-get install -y --no-install-recommends python3-gi python3-gst-1.0 gir1.2-gst-plugins-base-1.0 "
    "gir1.2-gst-plugins-bad-1.0 gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-python3-plugin-loader "
    "portaudio19-dev libasound2-plugins"
)
_ELEMENTS = {
    "uridecodebin": "plugins-base", "appsink": "plugins-base", "rtspsrc": "plugins-good", "avdec_h264": "libav",
    "x264enc": "plugins-ugly", "mp4mux": "plugins-good",
}  # fmt: skip


_LONGEST_SECONDS = 40.0
_FIRST_SECONDS = 15.0
"""How long a source may take to its first picture: two tries to connect; a camera that is not there never ends."""
_WATCH_SECONDS = 12.0
_OPEN_SECONDS = 5.0
_LISTEN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    good: bool
    what: str
    remedy: str = ""
    needed: bool = False
    """Whether nothing works without it, it was asked for by name, or `AVIS_STREAM_REQUIRE` lists it."""


def examine(out: TextIO, *, skew_of_source: tuple[str, str] | None = None) -> None:
    """Writes everything that can be found out.

    Args:
        out: For the report.
        skew_of_source: Video and audio source that look at the flash-and-beep clip, whose skew is to be measured.
    Raises:
        AvisStreamError: Something is missing that everything needs, that was asked for, or that `AVIS_STREAM_REQUIRE`
            lists.
    """
    broken = missing = 0
    checks: list[Callable[[], Iterator[Finding]]] = [_program, _gstreamer, _element, _cameras, _microphones, _extras]
    checks.append(lambda: _skews(skew_of_source))
    if skew_of_source is not None:
        out.write(
            f"      the source is watched last, for {_WATCH_SECONDS:g} s, once its first picture is there, for which "
            f"it has {_FIRST_SECONDS:g} s\n"
        )
    for check in checks:
        for finding in check():
            verdict = "ok  " if finding.good else "FAIL" if finding.needed else "MISS"
            out.write(f"{verdict}  {finding.what}\n")
            if finding.remedy and not finding.good:
                out.write(f"      {finding.remedy}\n")
            out.flush()
            broken += finding.needed and not finding.good
            missing += not finding.needed and not finding.good
    if missing and not broken:
        out.write("Nothing is missing that everything needs; what is marked MISS is for what its line says.\n")
    if broken:
        raise AvisStreamError(
            f"{broken} of what everything needs, was asked for, or AVIS_STREAM_REQUIRE lists, must be there and is "
            "not; see the lines that begin with FAIL"
        )


def _program() -> Iterator[Finding]:
    kernels = ops.info()
    native = all(by_device["cpu"] == "native" for by_device in kernels.operators.values())
    yield Finding(True, f"Python {sys.version.split()[0]}, torch {torch.__version__}, PyAV {av.__version__}")
    remedy = "install a C++ compiler and run make setup; it works without, slower"
    yield Finding(native, f"native kernels ({kernels.isa})", remedy, needed=required("native"))
    if torch.cuda.is_available() or required("cuda"):
        native = torch.cuda.is_available() and all(by["cuda"] == "native" for by in kernels.operators.values())
        remedy = "a GPU, its driver, a torch with CUDA, and make setup BUILD=cuda"
        yield Finding(native, "native kernels of the GPU", remedy, needed=required("cuda"))
    there = all(bundled_weights(name) is not None for name in ("avism_mini", "yamnet"))
    yield Finding(there, "the bundled weights", "git checkout avis_stream/assets/weights", needed=True)


def _gstreamer() -> Iterator[Finding]:
    there = has_gstreamer()
    remedy = f"{APT}, and make .venv with the system's Python (tools/choose-python); FFmpeg reads sources without it"
    needed = required("gst")
    yield Finding(there, "GStreamer's Python bindings", remedy, needed=needed)
    if not there:
        return
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import Gst

    Gst.init(None)
    yield Finding(True, Gst.version_string())
    for name, package in _ELEMENTS.items():
        factory = Gst.ElementFactory.find(name)
        yield Finding(factory is not None, f"element {name}", f"apt-get install gstreamer1.0-{package}", needed=needed)


def _element() -> Iterator[Finding]:
    try:
        registry, folder = registry_file(), plugin_folder()
    except AvisStreamError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Finding(False, what, remedy, needed=required("gst"))
        return
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        remedy = "apt-get install gstreamer1.0-tools"
        yield Finding(False, "gst-inspect-1.0, for the element avisseg", remedy, needed=required("gst"))
        yield Finding(True, f"GStreamer's registry, which nothing here can read: {registry}")
        return
    environment = os.environ | {"GST_PLUGIN_PATH": str(folder), "GST_REGISTRY": str(registry)}
    environment["AVIS_STREAM_VENV"] = sys.prefix
    found = subprocess.run([inspect, "avisseg"], env=environment, capture_output=True, check=False).returncode == 0
    stale = not found and registry.exists()
    if stale:
        # A plugin that could not be imported once is remembered as absent until the registry is gone.
        registry.unlink()
        found = subprocess.run([inspect, "avisseg"], env=environment, capture_output=True, check=False).returncode == 0
    state = "stale, so it was deleted and made anew" if stale else "fresh" if registry.exists() else "not written"
    yield Finding(True, f"GStreamer's registry, {state}: {registry}")
    remedy = (
        "apt-get install gstreamer1.0-python3-plugin-loader; the loader needs the Python that .venv is made of "
        f"(this one is {sysconfig.get_python_version()})"
    )
    yield Finding(found, 'element avisseg, with: eval "$(avis-stream gst env)"', remedy, needed=required("gst"))


def _cameras() -> Iterator[Finding]:
    found = cameras()
    yield from (Finding("cannot" not in c["name"], f"camera {c['source']}: {c['name']}") for c in found)
    if not found:
        yield Finding(False, "a camera", camera_remedy())


def _microphones() -> Iterator[Finding]:
    try:
        found = list_microphones()
    except SourceError as error:
        yield Finding(False, "a microphone", str(error), needed=required("mic"))
        return
    default = [device["name"] for device in found if device["default"]]
    remedy = "start pulseaudio or pipewire; PortAudio reaches them through libasound2-plugins"
    what = f"{len(found)} microphones, the default is {default[0] if default else 'none'}"
    yield Finding(bool(found), what, remedy, needed=required("mic"))
    if default:
        yield _heard(default[0])


def _heard(name: str) -> Finding:
    """What came from the default microphone, opened as a session does."""
    said: queue.Queue[Message] = queue.Queue()
    wanted = {"reader": "microphone", "name": "", "open_seconds": _OPEN_SECONDS, "stall_seconds": _OPEN_SECONDS}
    child, blocks, why = Child(wanted, said.put, name="avis doctor"), [np.zeros(0, np.float32)], ""
    try:
        while not why and sum(map(len, blocks)) < _LISTEN_SECONDS * SAMPLE_RATE:
            message = said.get(timeout=2 * _OPEN_SECONDS)
            if message.kind == wire.AUDIO:
                blocks.append(np.frombuffer(message.payload, np.float32))
            elif message.kind in (wire.ENDED, wire.FATAL):
                why = message.text
    except queue.Empty:
        why = f"the sound system does not answer within {2 * _OPEN_SECONDS:g} s"
    finally:
        child.kill()
        child.join(1.0)
    if why:
        remedy = "see that no other program holds it, and that the sound server runs"
        return Finding(False, f"sound of {name!r}: {why}", remedy, needed=required("mic"))
    peak = float(np.abs(np.concatenate(blocks)).max())
    if peak == 0:
        return Finding(False, f"sound of {name!r}: it opens, but gives zeros alone", "unmute it in the sound settings")
    return Finding(
        True, f"sound of {name!r}: {_LISTEN_SECONDS:g} s, loudest {20 * np.log10(peak):.0f} dB of full scale"
    )


def _extras() -> Iterator[Finding]:
    """Of microphones `_microphones` says what is missing."""
    modules = ("starlette", "uvicorn", "websockets")
    there = all(importlib.util.find_spec(module) is not None for module in modules)
    yield Finding(there, f"{', '.join(modules)}, for avis-stream serve", install_extra("serve"))


# --- sound against pictures -------------------------------------------------------------------------------------------


def _skews(source: tuple[str, str] | None) -> Iterator[Finding]:
    if source is not None:
        name = redacted(f"{source[0]} with {source[1]}")
        yield _skew_finding(name, lambda: _measured(source[0], source[1], _WATCH_SECONDS), needed=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "flashbeep.mp4"
        write_flash_and_beep(clip, 6.0)
        yield replace(_skew_finding("files", lambda: _measured(str(clip), "source", None)), needed=True)
        if has_gstreamer():
            text = (
                f"gst: filesrc location={clip} ! decodebin name=d d. ! queue ! videoconvert ! appsink name=video "
                "d. ! queue ! audioconvert ! audioresample ! appsink name=audio"
            )
            yield _skew_finding("GStreamer pipelines", lambda: _measured(text, "source", 10.0))


def _skew_finding(name: str, measure: Callable[[], float | None], *, needed: bool = False) -> Finding:
    """What was measured; `needed` says whether it must be possible to measure it, whatever comes out."""
    try:
        skew = measure()
    except AvisStreamError as error:
        return Finding(False, f"sound against pictures, {name}: {error}", needed=needed)
    if skew is None:
        what = f"sound against pictures, {name}: no flash with a tone was seen; show the camera the clip"
        return Finding(False, what, needed=needed)
    text = (
        f"sound against pictures, {name}: tones {1e3 * abs(skew):.1f} ms {'after' if skew >= 0 else 'before'} flashes"
    )
    return Finding(abs(skew) < 0.02, text, f"set audio_offset_ms={round(-1e3 * skew)} (--audio-offset-ms)")


def _measured(video: str, audio: str, seconds: float | None) -> float | None:
    """Skew of a source that shows the flash-and-beep clip; None if it does not.

    Raises:
        SourceError: No picture came, or no sound.
    """
    config = SessionConfig(policy="every", max_unread=256, max_latency_ms=60_000)
    times: list[int] = []
    brightness: list[float] = []
    beeps, begin, trouble = [], None, ""
    with Session(_Nothing(), video, audio, config=config) as session:
        began = time.monotonic()
        while not session.over and time.monotonic() < began + _LONGEST_SECONDS:
            result = session.next(0.5)
            events = session.take_events() if result is None else result.events
            trouble = next((f" ({e.source_id}: {e.detail})" for e in reversed(events) if e.detail), trouble)
            if result is None:
                if not times and time.monotonic() > began + _FIRST_SECONDS:
                    break
                continue
            begin = result.pts_seconds if begin is None else begin
            times.append(result.pts_ns)
            brightness.append(float(result.pair.frame.image.float().mean()))
            if result.pair.end_ns is not None and result.pair.audio_valid > 0:
                beeps.append(beep_onsets(result.pair.audio.numpy(), result.pair.end_ns - NANOSECONDS))
            if seconds is not None and result.pts_seconds - begin > seconds:
                break
    if not times:
        raise SourceError(
            f"a picture must come within {_FIRST_SECONDS:g} s, none did{trouble}; see that the source is on, and with "
            "avis-stream devices which cameras there are"
        )
    if not beeps:
        raise SourceError(
            f"sound must come with the pictures, none did{trouble}; see that the source has some, or name a microphone "
            "that avis-stream devices lists: --audio mic:NAME"
        )
    if max(brightness) - min(brightness) < 20:
        return None
    onsets = np.unique(np.round(np.concatenate(beeps), 3)).astype(np.float64)
    return skew_of(flash_onsets(np.array(times), np.array(brightness)), onsets)


class _Nothing:
    """In the place of a model."""

    def __init__(self) -> None:
        from avis_stream.online import OnlineConfig

        self.config = OnlineConfig()

    def init_state(self) -> Any:
        return None

    def step_pair(self, pair: AVPair, state: Any) -> tuple[OnlineResult, Any]:
        return self.refresh_pair(pair, state), state

    def refresh_pair(self, pair: AVPair, state: Any) -> OnlineResult:
        none = torch.zeros(0)
        return OnlineResult(
            pts_ns=pair.frame.pts_ns, frame_id=pair.frame.frame_id, track_id=none.long(), class_id=none.long(),
            score=none, sounding=none.bool(), mask=torch.zeros(0, 1, 1, dtype=torch.bool), box=torch.zeros(0, 4),
        )  # fmt: skip


def write_flash_and_beep(path: Path, seconds: float) -> None:
    """Writes the flash-and-beep clip, for a screen that a camera looks at, or to measure readers with."""
    scene = FlashBeep(seconds=seconds)
    with av.open(as_file(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "bf": "0"})
        video.width, video.height, video.pix_fmt = scene.width, scene.height, "yuv420p"
        sound = out.add_stream("aac", rate=48_000, layout="mono")
        sound.codec_context.format = "fltp"
        sound.time_base = Fraction(1, 48_000)
        resampler, written = av.AudioResampler("fltp", "mono", 48_000), 0
        for item in scene.items("flashbeep"):
            if isinstance(item, VideoFrame):
                image = item.image.permute(1, 2, 0).contiguous().numpy()
                picture = av.VideoFrame.from_ndarray(image, format="rgb24")
                picture.pts = item.frame_id
                out.mux(video.encode(picture))
            elif isinstance(item, AudioChunk):
                block = av.AudioFrame.from_ndarray(item.samples.numpy()[None], format="flt", layout="mono")
                block.sample_rate = 16_000
                for part in resampler.resample(block):
                    # With a stamp of 0 at its beginning, players take the encoder's delay off again.
                    part.pts, part.time_base, written = written, Fraction(1, 48_000), written + part.samples
                    out.mux(sound.encode(part))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
