"""Real servers and devices for tests, on loopback, without hardware: RTSP, a virtual microphone, flashing clips."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from media_files import Media, clicks, regular, write_media
from numpy.typing import NDArray

from avis_stream.needs import Need, required
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.sources.open import has_gstreamer
from avis_stream.types import AVPair, Event, OnlineResult

T = TypeVar("T")

_SERVER = """
import gi, sys
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory.new(); factory.set_shared(True); factory.set_launch(sys.argv[2])
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print("up", flush=True)
GLib.MainLoop().run()
"""
_PICTURES = (
    "videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},framerate=25/1 ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=500 ! "
    "rtph264pay name=pay0 pt=96 config-interval=1 "
)
_SOUND = (
    "audiotestsrc is-live=true wave=ticks samplesperbuffer=480 ! audio/x-raw,rate=48000,channels=1 ! audioconvert ! "
    "avenc_aac ! rtpmp4gpay name=pay1 pt=97 "
)
_FILE = (
    "filesrc location={path} ! qtdemux name=d d.video_0 ! queue ! h264parse ! rtph264pay name=pay0 pt=96 "
    "config-interval=1 d.audio_0 ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97"
)


def need(there: bool, what: Need, why: str) -> None:
    """Skips, or fails where AVIS_STREAM_REQUIRE says that it must be there."""
    if not there:
        (pytest.fail if required(what) else pytest.skip)(why)


def need_gstreamer(*programs: str) -> None:
    from matplotlib.backends import backend_agg  # noqa: F401 (docs/live.md: not for the first time after GStreamer)

    need(has_gstreamer(), "gst", "GStreamer's Python bindings are not there (make test prints what to install)")
    for program in programs:
        need(shutil.which(program) is not None, "gst", f"{program} is not there (make test prints what to install)")


def need_rtsp_server() -> None:
    need_gstreamer()
    import gi

    try:
        gi.require_version("GstRtspServer", "1.0")
    except ValueError:
        need(False, "gst", "gst-rtsp-server is not there (make test prints what to install)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """gst-rtsp-server in a process of its own, which can be killed, frozen and started again on its port."""

    def __init__(self, launch: str | None = None, *, sound: bool = True, width: int = 160, height: int = 90) -> None:
        need_rtsp_server()
        self.port = free_port()
        pictures = _PICTURES.format(width=width, height=height)
        self.launch = launch or f"( {pictures}{_SOUND if sound else ''})"
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    @staticmethod
    def of_file(path: Path) -> RtspServer:
        return RtspServer("( " + _FILE.format(path=path) + " )")

    def start(self) -> RtspServer:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(self.port), self.launch], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RtspServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def flash_and_beep(path: Path, *, seconds: int = 8, codec: str = "aac") -> Path:
    """Each second, from the first on, the picture flashes and a tone begins at the same instant."""

    def picture(time: float) -> NDArray[Any]:
        bright = time >= 0.999 and (time + 0.001) % 1 < 0.12
        return np.full((96, 160, 3), 235 if bright else 16, np.uint8)

    beeps = clicks(seconds, [float(k) for k in range(1, seconds)], length=0.12)
    options = {"g": "25", "bf": "0", "tune": "zerolatency", "preset": "ultrafast"}
    media = Media(stamps=regular(seconds), picture=picture, sound=beeps, sound_codec=codec, video_options=options)
    if codec == "pcm_s16le":
        media = Media(
            stamps=regular(seconds), picture=picture, sound=(beeps * 32767).astype(np.int16), sound_codec=codec,
            sound_format="s16", video_options=options,
        )  # fmt: skip
    return write_media(path, media)


class VirtualMicrophone:
    """PulseAudio with a sink whose monitor is a microphone; PortAudio finds it through ALSA's pulse plugin."""

    def __init__(self, folder: Path) -> None:
        need(
            shutil.which("pulseaudio") is not None, "mic", "pulseaudio is not there (make test prints what to install)"
        )
        need(shutil.which("paplay") is not None, "mic", "paplay is not there (make test prints what to install)")
        try:
            import pyaudio  # noqa: F401
        except ImportError:
            need(False, "mic", "pyaudio is not there (make test installs it)")
        self.folder = folder
        self.runtime = folder / "pulse"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            "PULSE_RUNTIME_PATH": str(self.runtime), "PULSE_SERVER": f"unix:{self.runtime}/native",
            "PULSE_STATE_PATH": str(self.runtime), "PULSE_COOKIE": str(self.runtime / "cookie"),
        }  # fmt: skip

    def start(self) -> VirtualMicrophone:
        self.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        script = self.folder / "virtual.pa"
        script.write_text(
            f"load-module module-native-protocol-unix socket={self.runtime}/native auth-anonymous=1\n"
            "load-module module-null-sink sink_name=avis_out rate=48000 channels=2\n"
            "load-module module-remap-source master=avis_out.monitor source_name=avis_mic\n"
            "set-default-sink avis_out\nset-default-source avis_mic\n"
        )
        self.process = subprocess.Popen(
            ["pulseaudio", "-n", "-F", str(script), "--exit-idle-time=-1", "--daemonize=no", "--use-pid-file=no",
             "--disallow-exit=yes", "--log-target=stderr"],
            env=os.environ | self.environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self._answers, 30, "PulseAudio")
        return self

    def _answers(self) -> bool:
        listed = subprocess.run(
            ["pactl", "list", "short", "sources"], env=os.environ | self.environment, capture_output=True, check=False
        )
        return b"avis_mic" in listed.stdout

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        with contextlib.suppress(FileNotFoundError):
            (self.runtime / "native").unlink()

    def play(self, sound: NDArray[np.float32], rate: int = 48_000) -> subprocess.Popen[bytes]:
        path = self.folder / f"played{time.monotonic_ns()}.wav"
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes((sound.reshape(-1) * 32767).astype("<i2").tobytes())
        return subprocess.Popen(
            ["paplay", "--device=avis_out", "--latency-msec=500", str(path)], env=os.environ | self.environment
        )


@contextlib.contextmanager
def virtual_microphone(folder: Path) -> Iterator[VirtualMicrophone]:
    microphone = VirtualMicrophone(folder)
    before = {name: os.environ.get(name) for name in microphone.environment}
    os.environ.update(microphone.environment)
    try:
        yield microphone.start()
    finally:
        microphone.kill()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Polls; the limit is there to fail rather than hang, not to measure anything."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.02)
    return found


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


class StubSegmenter:
    """Stands in for a model where a test is about all around it: whole picture, one identity, any duration."""

    def __init__(
        self, *, step_seconds: float = 0.0, refresh_seconds: float = 0.0, hop_seconds: float = 1.0, keep: bool = True
    ) -> None:
        self.config = OnlineConfig(hop_seconds=hop_seconds)
        self.step_seconds, self.refresh_seconds = step_seconds, refresh_seconds
        self.steps: list[AVPair] = []
        self.keep = keep
        self.fail_after: int | None = None
        self.sounding = True

    def init_state(self) -> Any:
        return 0

    def step_pair(self, pair: AVPair, state: Any) -> tuple[OnlineResult, Any]:
        time.sleep(self.step_seconds)
        if self.keep:
            self.steps.append(pair)
        if self.fail_after is not None and len(self.steps) > self.fail_after:
            raise RuntimeError("the model failed")
        events = (Event(kind="born", track_id=1),) if state == 0 else ()
        return self._result(pair.frame.image, pair.frame.pts_ns, pair.frame.frame_id, events), state + 1

    def refresh_pair(self, pair: AVPair, state: Any) -> OnlineResult:
        time.sleep(self.refresh_seconds)
        return self._result(pair.frame.image, pair.frame.pts_ns, -7, ())  # its number is for others to say

    def _result(self, image: torch.Tensor, pts_ns: int, frame_id: int, events: tuple[Event, ...]) -> OnlineResult:
        height, width = image.shape[1:]
        return OnlineResult(
            pts_ns=pts_ns, frame_id=frame_id, track_id=torch.tensor([1]), class_id=torch.tensor([0]),
            score=torch.tensor([0.9]), sounding=torch.tensor([self.sounding]),
            mask=torch.ones(1, height, width).bool(),
            box=torch.tensor([[0.0, 0.0, width, height]]), events=events,
        )  # fmt: skip


class Crowded(StubSegmenter):
    """From its second step on its table of identities is full."""

    def step_pair(self, pair: AVPair, state: Any) -> tuple[OnlineResult, Any]:
        result, state = super().step_pair(pair, state)
        full = (Event(kind="full", detail="2 without a place"),) if state > 1 else ()
        return replace(result, events=(*result.events, *full)), state


class Together(OnlineSegmenter):
    """Two pictures between steps are only done if they are worked on beside each other."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.both = threading.Barrier(2)

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        self.both.wait(20)
        return super().refresh_pair(pair, state)


class Held(OnlineSegmenter):
    """What is begun between steps goes on when it is let."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun, self.let = threading.Semaphore(0), threading.Event()

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        self.begun.release()
        assert self.let.wait(20), "nobody lets it"
        return super().refresh_pair(pair, state)
