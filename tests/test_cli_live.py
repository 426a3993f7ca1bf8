"""The commands that deal with what happens now: live, devices, doctor, gst env."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from live_tools import (
    Crowded,
    StubSegmenter,
    flash_and_beep,
    free_port,
    lines_of,
    need_gstreamer,
    virtual_microphone,
    wait_for,
)
from small_model import SMALL

from avis_stream.cli import main
from avis_stream.commands import doctor
from avis_stream.commands.live import LiveOptions, run_live
from avis_stream.errors import ConfigError, SourceError
from avis_stream.serve.sources import Sources
from avis_stream.sources.child import Message
from avis_stream.sources.synthetic import beep_onsets
from avis_stream.sources.worker import wire
from avis_stream.stream.session import Session
from avis_stream.types import SAMPLE_RATE, AVPair, LiveResult, VideoFrame
from avis_stream.writers.recording import RecordingWriter

MODEL = ["--model", "avism_mini", "--weights", "random", *(word for s in SMALL for word in ("--set", s))]
CLASSES = ("dog",)


def test_live_writes_lines_a_film_and_a_summary(tmp_path: Path) -> None:
    options = LiveOptions(
        json=str(tmp_path / "lines.jsonl"), save=tmp_path / "film.mp4", summary=tmp_path / "summary.json"
    )
    session = Session(StubSegmenter(), "synthetic://flashbeep?fps=25&seconds=4", realtime=False)
    screen = io.StringIO()
    stats = run_live(session, CLASSES, options, screen)
    assert stats.frames_in == 100
    lines = lines_of((tmp_path / "lines.jsonl").read_text())
    assert len(lines) == 100
    assert set(lines[0]) == {
        "source_id", "frame_id", "segment", "pts", "wall_utc", "latency_ms", "audio_valid", "width", "height",
        "tracks", "events", "dropped_since_last",
    }  # fmt: skip
    assert lines[0]["source_id"] == "synthetic://flashbeep"
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 4
    assert "100 frames" in screen.getvalue()
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 100
    with av.open(str(tmp_path / "film.mp4")) as film:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert beep_onsets(sound, 0) == pytest.approx([1.0, 2.0, 3.0], abs=0.02)
    assert len(sound) / SAMPLE_RATE == pytest.approx(4.0, abs=0.1)


def test_a_full_table_is_shown_once_and_written_at_each_step(tmp_path: Path) -> None:
    session = Session(Crowded(), "synthetic://flashbeep?fps=10&seconds=4&size=64x48", realtime=False)
    screen = io.StringIO()
    run_live(session, CLASSES, LiveOptions(json=str(tmp_path / "lines.jsonl")), screen)
    assert screen.getvalue().count("synthetic://flashbeep: full: 2 without a place") == 1
    told = [event for line in lines_of((tmp_path / "lines.jsonl").read_text()) for event in line["events"]]
    full = {"kind": "full", "id": None, "source_id": "synthetic://flashbeep", "detail": "2 without a place"}
    assert told == [{"kind": "born", "id": 1}, full, full, full]


def test_what_was_seen_before_a_failure_is_kept(tmp_path: Path) -> None:
    """Hour ten of a run on a camera: it cannot be had again."""
    segmenter = StubSegmenter()
    segmenter.fail_after = 3
    options = LiveOptions(
        json=str(tmp_path / "lines.jsonl"), save=tmp_path / "film.mp4", summary=tmp_path / "summary.json"
    )
    session = Session(segmenter, "synthetic://flashbeep?fps=10&seconds=6&size=64x48", realtime=False)
    with pytest.raises(RuntimeError, match="the model failed"):
        run_live(session, CLASSES, options, io.StringIO())
    assert [line["frame_id"] for line in lines_of((tmp_path / "lines.jsonl").read_text())] == list(range(30))
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 30
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 3


def test_lines_are_in_place_at_once_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    path.parent.mkdir()
    path.write_text('{"frame_id": 7}\n{"frame_id": 8, "cut o')  # of a run before, whose machine lost its power
    lines_seen_by_the_model = []

    class Looking(StubSegmenter):
        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            if len(self.steps) == 1:
                wait_for(lambda: len(path.read_text().splitlines()) == 12, 20, "ten more lines")
            lines_seen_by_the_model.append(path.read_text().splitlines())
            return super().step_pair(pair, state)

    session = Session(Looking(), "synthetic://flashbeep?fps=10&seconds=2&size=64x48", realtime=False)
    run_live(session, CLASSES, LiveOptions(json=str(path)), io.StringIO())
    assert [len(seen) for seen in lines_seen_by_the_model] == [2, 12]
    lines = path.read_text().splitlines()
    assert lines[:2] == ['{"frame_id": 7}', '{"frame_id": 8, "cut o']
    assert [json.loads(line)["frame_id"] for line in lines[2:]] == list(range(20))


def test_results_that_wait_when_the_time_is_over_are_written(tmp_path: Path) -> None:
    session = Session(StubSegmenter(), "synthetic://flashbeep?fps=10&seconds=6&size=64x48", realtime=True)
    session.start()
    wait_for(lambda: session.stats().steps + session.stats().refreshes >= 8, 20, "as many results as may wait")
    run_live(session, CLASSES, LiveOptions(json=str(tmp_path / "lines.jsonl"), duration_seconds=0), io.StringIO())
    lines = lines_of((tmp_path / "lines.jsonl").read_text())
    assert [line["frame_id"] for line in lines[:8]] == list(range(8))


def test_a_part_of_a_recording_is_as_long_as_asked(tmp_path: Path) -> None:
    session = Session(StubSegmenter(), "synthetic://flashbeep?fps=10&seconds=6&size=64x48", realtime=False)
    options = LiveOptions(json=str(tmp_path / "lines.jsonl"), duration_seconds=1.5)
    stats = run_live(session, CLASSES, options, io.StringIO())
    lines = lines_of((tmp_path / "lines.jsonl").read_text())
    assert [line["frame_id"] for line in lines] == list(range(15))
    assert stats.waiting == 0
    assert stats.frames_in == len(lines) + stats.unread + stats.dropped_frames
    assert stats.steps + stats.refreshes == len(lines) + stats.unread
    assert session.stats().unread == stats.unread, "counted in one place"


def test_no_picture_at_all_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(StubSegmenter(), f"rtsp://127.0.0.1:{free_port()}/cam", backend="ffmpeg")
    with pytest.raises(SourceError, match=r"no picture came from rtsp://127\.0\.0\.1"):
        run_live(session, CLASSES, LiveOptions(duration_seconds=3), io.StringIO())
    assert not caplog.records, "what the screen tells is not told again"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--video", "a.mp4", "--save", "a.mp4"], "--save must be another file than what is read"),
        (["--video", "a.mp4", "--json", "./a.mp4"], "--json must be another file"),
        (["--video", "file://a.mp4", "--save", "a.mp4"], "--save must be another file"),
        (["--video", "mic.mp4", "--save", "mic.mp4"], "--save must be another file"),
        (["--video", "pictures", "--save", "pictures/x.mp4"], "--save must be another file"),
        (["--video", "a.mp4", "--audio", "b.wav", "--summary", "b.wav"], "--summary must be another file"),
        (["--video", "a.mp4", "--save", "x.mp4", "--summary", "x.mp4"], "--summary must be a file of its own"),
        (["--video", "a.mp4", "--save", "."], "--save must be a file, got the folder"),
        (["--video", "a.mp4", "--save", "x.avi"], "one that ends in .mp4"),
    ],
)
def test_nothing_is_written_over_what_is_read(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("a.mp4", "b.wav"):
        (tmp_path / name).write_bytes(b"precious")
    assert main(["live", *arguments, *MODEL]) == 2
    assert words in capsys.readouterr().err
    assert all((tmp_path / name).read_bytes() == b"precious" for name in ("a.mp4", "b.wav"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["live", "--video", "a", "--video", "b"], "argument --video: must be given once"),
        (["live", "--duration", "-1"], "must be more than 0 seconds, got '-1'"),
        (["live", "--duration", "soon"], "must be more than 0 seconds, got 'soon'"),
    ],
)
def test_what_would_be_forgotten_or_makes_no_sense(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, *MODEL])
    assert words in capsys.readouterr().err


def test_whoever_reads_may_go(tmp_path: Path) -> None:
    """As `| head -n 1` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "avis_stream", "live", "--video", "synthetic://flashbeep?size=64x48", "--json", "-",
         *MODEL],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            process.stdout = None
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 141
    assert "rror" not in said
    assert "roken pipe" not in said


def test_whoever_would_read_may_never_come(tmp_path: Path) -> None:
    """What a short answer is written to fails only at the end, when it leaves the buffer."""
    command = f"{shlex.quote(sys.executable)} -m avis_stream info 2>said | true; echo ${{PIPESTATUS[0]}}; cat said"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() in ("141", "0"), done.stdout  # 0: it was quicker than the reader's end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_live_as_a_program_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "avis_stream", "live", "--video", "synthetic://flashbeep?size=64x48", "--json", "-",
         "--save", str(tmp_path / "film.mp4"), *MODEL],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["latency_ms"] > 0
    assert abs(first["wall_utc"] - time.time()) < 120
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert next(film.decode(video=0)).width == 64


@pytest.mark.parametrize(("hop", "steps"), [([], 3), (["--hop", "0.5"], 6), (["--hop", "1.5"], 2)], ids=str)
def test_the_tracker_steps_as_often_as_asked(hop: list[str], steps: int, tmp_path: Path) -> None:
    """At 4 pictures a second, for 3 s."""
    film, summary = "synthetic://flashbeep?fps=4&seconds=3&size=64x48&realtime=0", tmp_path / "summary.json"
    assert main(["live", "--video", film, "--policy", "every", "--summary", str(summary), *hop, *MODEL]) == 0
    told = json.loads(summary.read_text())
    assert (told["steps"], told["refreshes"]) == (steps, 12 - steps)


@pytest.mark.parametrize("hop", ["0", "-1", "0.01", "60", "inf", "nan", "soon"])
@pytest.mark.parametrize("command", ["live", "serve"])
def test_hops_that_make_no_sense_are_refused(command: str, hop: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--video", "synthetic://flashbeep", f"--hop={hop}", *MODEL])
    assert f"must be from 0.04 to 10 seconds, got '{hop}'" in capsys.readouterr().err


def test_wrong_use_of_live(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "--video", "ftp://u:s3cr3t@host/x"]) == 2
    assert main(["live", "--video", "missing.mp4", *MODEL]) == 1
    said = capsys.readouterr().err
    assert "s3cr3t" not in said
    assert "no such file" in said


def test_the_rate_of_a_file_hinders_no_other_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("starlette", reason="starlette is not there (make test installs it)")
    served: list[Sources] = []
    monkeypatch.setattr("avis_stream.commands.serve.serve", lambda sources, config: served.append(sources))
    clip = flash_and_beep(tmp_path / "clip.mp4", seconds=1)
    assert main(["serve", "--video", str(clip), "--fps", "5", *MODEL]) == 0
    assert served[0].open("rtsp://127.0.0.1/cam", "source").id == "2"
    assert main(["serve", "--video", "rtsp://127.0.0.1/cam", "--fps", "5", *MODEL]) == 2
    assert "fps must be left out unless the video is a file" in capsys.readouterr().err


def test_a_film_of_pictures_that_change_their_size_and_pause(tmp_path: Path) -> None:
    """Gaps stay gaps, with silence in them; a picture of another size is fitted in."""
    writer = RecordingWriter(tmp_path / "film.mp4", CLASSES)
    result, _ = StubSegmenter().step_pair(pair(0, 64, 48), 0)
    shown = [(5.0, 64, 48), (5.5, 64, 48), (9.0, 48, 64)]
    for time_seconds, width, height in shown:
        one = pair(round(time_seconds * 1e9), width, height)
        made, _ = StubSegmenter().step_pair(one, 0)
        writer.write(one, LiveResult(**fields_of(made), pair=one, latency_ms=1.0, refreshed=False))
    writer.close()
    with av.open(str(tmp_path / "film.mp4")) as film:
        frames = list(film.decode(video=0))
        assert [round(frame.time, 1) for frame in frames] == [0.0, 0.5, 4.0]
        assert {(frame.width, frame.height) for frame in frames} == {(64, 48)}
    with av.open(str(tmp_path / "film.mp4")) as film:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert np.abs(sound[: SAMPLE_RATE // 4]).max() > 0.2
    assert np.abs(sound[SAMPLE_RATE : 2 * SAMPLE_RATE]).max() < 0.05
    assert result.frame_id == 0


@pytest.mark.parametrize("name", ["film.avi", "film", "film.mp4.mkv"])
def test_a_film_is_called_mp4(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the name of a film must be one that ends in \.mp4.*, got '" + name):
        RecordingWriter(tmp_path / "out" / name, CLASSES)
    assert not any(tmp_path.iterdir())


def pair(pts_ns: int, width: int, height: int) -> AVPair:
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    tone = 0.5 * torch.sin(torch.arange(SAMPLE_RATE) * 0.3)
    frame = VideoFrame(image=image, pts_ns=pts_ns, frame_id=0)
    return AVPair(frame=frame, audio=tone, end_ns=pts_ns + 40_000_000)


def fields_of(result: object) -> dict[str, object]:
    names = ("pts_ns", "frame_id", "track_id", "class_id", "score", "sounding", "mask", "box", "events")
    return {name: getattr(result, name) for name in names}


def test_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with virtual_microphone(tmp_path):
        assert main(["devices"]) == 0
    said = capsys.readouterr().out
    assert "mic:" in said
    assert "the default" in said
    assert "camera" in said


@pytest.mark.parametrize(
    ("need", "verdict", "status"), [("", "MISS", 0), ("gst", "MISS", 0), ("gst, mic", "FAIL", 1)], ids=repr
)
def test_doctor_fails_for_what_is_required(
    need: str, verdict: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a microphone, where only the environment makes the difference; nothing slow is looked at."""
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", need)
    monkeypatch.setattr(doctor, "list_microphones", lambda: [])
    for check in ("_gstreamer", "_element", "_cameras", "_extras"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr(doctor, "_skews", lambda source: iter(()))
    assert main(["doctor"]) == status
    said = capsys.readouterr()
    assert f"{verdict}  0 microphones" in said.out
    assert ("1 of what" in said.err) == bool(status)


@pytest.mark.parametrize(
    ("said", "good", "words"),
    [
        ([(wire.OPENED, b"{}")] + [(wire.AUDIO, np.full(4000, 0.1, np.float32).tobytes())] * 2, True, "loudest -20 dB"),
        ([(wire.OPENED, b"{}")] + [(wire.AUDIO, bytes(16_000))] * 2, False, "gives zeros alone"),
        ([(wire.ENDED, b"microphone 'USB' cannot be opened (busy)")], False, "cannot be opened (busy)"),
        ([], False, "does not answer"),
    ],
    ids=["sound", "muted", "busy", "hangs"],
)
def test_doctor_listens_to_the_default_microphone(
    said: list[tuple[bytes, bytes]], good: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    class Reader:
        def __init__(self, request: dict[str, object], deliver: Callable[[Message], None], *, name: str) -> None:
            assert (request["reader"], request["name"]) == ("microphone", "")
            for kind, payload in said:
                deliver(Message(kind, bytearray(payload), None, 0, (SAMPLE_RATE, 0), 0))

        def kill(self) -> None:
            ended.append("kill")

        def join(self, timeout: float) -> None:
            ended.append("join")

    devices = [{"index": 0, "name": "USB", "default": True}]
    monkeypatch.setattr(doctor, "list_microphones", lambda: devices)
    monkeypatch.setattr(doctor, "Child", Reader)
    monkeypatch.setattr(doctor, "_OPEN_SECONDS", 0.05)
    listed, heard = doctor._microphones()
    assert listed.good
    assert (heard.good, "'USB'" in heard.what, words in heard.what) == (good, True, True), heard.what
    assert ended == ["kill", "join"]


@pytest.mark.parametrize(
    ("before", "answers", "words"), [(True, [0], "fresh"), (True, [1, 0], "stale"), (False, [1], "not written")]
)
def test_doctor_tells_where_the_registry_lies(
    before: bool, answers: list[int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "registry.bin"
    if before:
        registry.write_bytes(b"")
    left = list(answers)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor, "registry_file", lambda: registry)
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], returncode=left.pop(0))
    )
    found, element = doctor._element()
    assert found.what.startswith(f"GStreamer's registry, {words}")
    assert str(registry) in found.what
    assert element.good == (answers[-1] == 0)
    assert not left


def test_doctor_goes_on_where_there_is_no_room_for_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_bytes(b"")
    monkeypatch.setattr(sys, "prefix", str(nowhere / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "cache"))
    (finding,) = doctor._element()
    assert not finding.good
    assert finding.what.startswith("GStreamer's registry must lie in a folder that can be written to")
    assert finding.remedy == "set XDG_CACHE_HOME to one that can"


def test_doctor_fails_where_not_even_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> float:
        raise SourceError("no decoder")

    monkeypatch.setattr(doctor, "_measured", broken)
    monkeypatch.setattr(doctor, "has_gstreamer", lambda: False)
    (finding,) = doctor._skews(None)
    assert finding.needed
    assert not finding.good


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    need_gstreamer("gst-inspect-1.0")
    monkeypatch.delenv("AVIS_STREAM_REQUIRE", raising=False)  # there need be no microphone
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "ok    GStreamer's Python bindings" in said
    assert "ok    element avisseg" in said
    skews = [line for line in said.splitlines() if line.startswith("ok    sound against pictures")]
    assert [line.split(", ")[1].split(":")[0] for line in skews] == ["files", "GStreamer pipelines"]
    assert all(line.split() for line in said.splitlines() if line.startswith("MISS"))


def test_doctor_measures_a_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AVIS_STREAM_REQUIRE", raising=False)
    clip = tmp_path / "clip.mp4"
    assert main(["doctor", "--clip", str(clip)]) == 0
    assert clip.exists()
    assert main(["doctor", "--av-sync", "synthetic://flashbeep?seconds=4&skew_ms=-70&realtime=0"]) == 0
    said = capsys.readouterr().out
    assert "tones 70" in said or "tones 69" in said
    assert "before flashes" in said
    assert "audio_offset_ms=" in said


@pytest.mark.parametrize(
    ("video", "audio", "words"),
    [
        ("/dev/video99", "none", r"a picture must come within 0\.1 s, none did.*avis-stream devices"),
        ("synthetic://flashbeep?seconds=2&realtime=0", "none", "sound must come with the pictures, none did"),
    ],
    ids=["no pictures", "no sound"],
)
def test_doctor_gives_a_source_up_that_does_not_come(
    video: str, audio: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_FIRST_SECONDS", 0.1)
    with pytest.raises(SourceError, match=words):
        doctor._measured(video, audio, None)


def test_doctor_fails_where_the_source_asked_for_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AVIS_STREAM_REQUIRE", raising=False)
    for check in ("_gstreamer", "_element", "_cameras", "_microphones", "_extras"):
        monkeypatch.setattr(doctor, check, lambda: iter(()))
    monkeypatch.setattr(doctor, "_measured", lambda *_: None)
    assert main(["doctor", "--av-sync", "rtsp://admin:1234@10.0.0.7/cam"]) == 1
    said = capsys.readouterr()
    assert "FAIL  sound against pictures, rtsp://***@10.0.0.7/cam with source: no flash" in said.out
    assert "Nothing is missing" not in said.out
    assert "was asked for" in said.err


def test_gst_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gst", "env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert set(values) == {"GST_PLUGIN_PATH", "GST_REGISTRY", "AVIS_STREAM_VENV"}
    folder = Path(values["GST_PLUGIN_PATH"].split(os.pathsep)[0])
    assert (folder / "python" / "gstavis.py").exists()
    assert {path.name for path in folder.iterdir()} <= {"python", "__pycache__"}, (
        "GStreamer looks into every file there"
    )
