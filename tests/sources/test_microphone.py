"""Real PortAudio, through PyAudio, on a virtual microphone: what is played is what is heard, when it was played."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_tools import StubSegmenter, VirtualMicrophone, virtual_microphone, wait_for
from media_files import clicks

from avis_stream.errors import SourceError
from avis_stream.sources.child import list_microphones
from avis_stream.sources.items import SessionClock
from avis_stream.sources.live import LiveSource
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.sources.synthetic import beep_onsets
from avis_stream.sources.worker import microphone as reader
from avis_stream.sources.worker import wire
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import AudioChunk

S = 1_000_000_000
QUICK = SupervisorConfig(stall_seconds=1.0, open_seconds=5.0, longest_wait_seconds=0.5)


@pytest.fixture
def microphone(tmp_path: Path) -> Iterator[VirtualMicrophone]:
    with virtual_microphone(tmp_path) as virtual:
        yield virtual


class Recorder:
    """A microphone source without a session around it: every chunk, and every event."""

    def __init__(self, name: str = "") -> None:
        self.chunks: list[AudioChunk] = []
        self.events: list[str] = []
        self.source = LiveSource(
            "mic", {"reader": "microphone", "name": name}, gives_pictures=False, gives_sound=True, config=QUICK
        )
        self.clock = SessionClock()
        self.posted: list[object] = []
        self.source.start(self.clock, lambda what: self.posted.append(what) is None)

    def advance(self) -> None:
        now = self.clock.now()
        for item in self.source.tick(now):
            self.events.append(getattr(item, "kind", type(item).__name__))
        while self.posted:
            for item in self.source.receive(self.posted.pop(0), now):
                if isinstance(item, AudioChunk):
                    self.chunks.append(item)
                else:
                    self.events.append(getattr(item, "kind", type(item).__name__))

    def until(self, done: object, what: str) -> None:
        def look() -> bool:
            self.advance()
            return bool(done())  # type: ignore[operator]

        wait_for(look, 60, what)


def test_what_is_played_is_heard_when_it_was_played(microphone: VirtualMicrophone) -> None:
    recorder = Recorder()
    try:
        recorder.until(lambda: len(recorder.chunks) > 30, "sound")
        player = microphone.play(clicks(4.5, [1.0, 2.0, 3.0, 4.0]))
        recorder.until(lambda: player.poll() is not None, "the end of playing")
        heard = len(recorder.chunks)
        recorder.until(lambda: len(recorder.chunks) > heard + 25, "the rest")
    finally:
        recorder.source.stop()
        recorder.source.join(2.0)
    assert recorder.events == ["connected"]
    assert all(chunk.valid for chunk in recorder.chunks)
    first = recorder.chunks[30]
    samples = torch.cat([chunk.samples for chunk in recorder.chunks[30:]]).numpy()
    onsets = beep_onsets(samples, first.pts_ns)
    # In media time: so many samples from one to the next. A busy sound server may put in a buffer of silence.
    assert np.diff(onsets) == pytest.approx([1.0, 1.0, 1.0], abs=0.03)
    begin = round((onsets[0] - first.pts_ns / S) * 16_000) + 160
    spectrum = np.abs(np.fft.rfft(samples[begin : begin + 1024] * np.hanning(1024)))
    assert spectrum.argmax() * 16_000 / 1024 == pytest.approx(1000, abs=16)
    stamps = np.array([chunk.pts_ns for chunk in recorder.chunks[30:]])
    ends = stamps[:-1] + np.array([len(chunk.samples) for chunk in recorder.chunks[30:-1]]) * S // 16_000
    assert np.abs(stamps[1:] - ends).max() < 0.02 * S, "one block follows another"


def test_blocks_that_wait_for_the_session_are_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """When they came counts, not when they could be handed on: else waiting would look like lost sound."""
    arrivals, recorded = [], []

    class Device:
        paInt16, paContinue = 8, 0

        def get_default_input_device_info(self) -> dict[str, Any]:
            return {"index": 0, "name": "pretended"}

        def is_format_supported(self, *_: Any, **__: Any) -> bool:
            return True

        def open(self, *, stream_callback: Any, **_: Any) -> Device:
            self.speak = stream_callback
            return self

        def get_input_latency(self) -> float:
            return 0.0

    class Slow:
        def send(self, kind: bytes, payload: bytes = b"", *_: int, arrival: int | None = None) -> None:
            if kind == wire.OPENED:
                for _ in range(3):
                    device.speak(bytes(640), 320, None, 0)
                recorded.append(time.monotonic_ns())
            else:
                arrivals.append(arrival)
            if len(arrivals) == 3:
                raise wire.Ended("enough")

    device = Device()
    monkeypatch.setattr(reader, "_portaudio", lambda _: (device, device))
    wanted = {"name": "", "open_seconds": 1.0, "stall_seconds": 1.0, "install_mic": "do"}
    with pytest.raises(wire.Ended, match="enough"):
        reader.read_microphone(wanted, Slow())  # type: ignore[arg-type]
    assert all(arrival is not None and arrival <= recorded[0] for arrival in arrivals)


def test_pictures_get_their_second_from_the_microphone(microphone: VirtualMicrophone) -> None:
    config = SessionConfig(max_latency_ms=60_000, audio_wait_ms=3000, max_unread=10_000)
    with Session(
        StubSegmenter(), "synthetic://flashbeep?fps=10&size=32x24", "mic", config=config, supervision=QUICK
    ) as session:
        player = microphone.play(clicks(3.0, [1.0], length=1.5))

        def loud() -> bool:
            result = session.next(0.2)
            return result is not None and float(result.pair.audio.abs().mean()) > 0.2

        wait_for(loud, 60, "the tone in a frame's second of sound")
        player.kill()
        player.wait()


def test_a_sound_server_that_dies_is_found_again(microphone: VirtualMicrophone) -> None:
    recorder = Recorder()
    try:
        recorder.until(lambda: recorder.chunks, "sound")
        microphone.kill()
        recorder.until(lambda: "lost" in recorder.events, "the loss")
        microphone.start()
        before = len(recorder.chunks)
        recorder.until(lambda: len(recorder.chunks) > before, "sound again")
    finally:
        recorder.source.stop()
        recorder.source.join(2.0)
    assert recorder.events[-1] == "reconnected"
    stamps = [chunk.pts_ns for chunk in recorder.chunks]
    assert stamps[before] > stamps[before - 1]


def test_microphones_are_listed(microphone: VirtualMicrophone) -> None:
    found = list_microphones()
    assert {"pulse", "default"} <= {device["name"] for device in found}
    assert [device["default"] for device in found].count(True) == 1
    assert all(device["channels"] > 0 and device["rate"] > 0 for device in found)


def test_a_name_that_no_microphone_has(microphone: VirtualMicrophone) -> None:
    recorder = Recorder("USB headset")
    try:
        recorder.until(lambda: recorder.events, "an event")
    finally:
        recorder.source.stop()
        recorder.source.join(2.0)
    assert recorder.events == ["unreachable"] or recorder.events[0] == "SoundOver"


def test_without_any_microphone_pictures_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VirtualMicrophone(tmp_path)  # says what is missing; nothing is started
    monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/nobody")
    monkeypatch.setenv("ALSA_CONFIG_PATH", os.devnull)
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", "gst,mic")
    with pytest.raises(SourceError, match="AVIS_STREAM_REQUIRE=mic, but"):
        Session(StubSegmenter(), "synthetic://flashbeep?fps=10&size=32x24&seconds=2", "mic")
    monkeypatch.delenv("AVIS_STREAM_REQUIRE")
    with Session(
        StubSegmenter(), "synthetic://flashbeep?fps=10&size=32x24&seconds=2", "mic", supervision=QUICK
    ) as session:
        results = list(session)
        events = [*session.take_events(), *(e for r in results for e in r.events)]
    assert len(results) > 0
    assert all(r.pair.audio_valid == 0 for r in results)
    assert "unreachable" in {event.kind for event in events}
