"""RTSP, HTTP and UDP from real servers on loopback, by GStreamer and by FFmpeg: the same tests for both."""

from __future__ import annotations

import functools
import http.server
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from live_tools import RtspServer, StubSegmenter, flash_and_beep, free_port, need, need_gstreamer, wait_for

import avis_stream as avs
from avis_stream.errors import SourceError
from avis_stream.sources.open import Backend
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.sources.synthetic import beep_onsets, flash_onsets, skew_of
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import LiveResult

S = 1_000_000_000
BACKENDS = ["gstreamer", "ffmpeg"]
assert set(BACKENDS) < set(get_args(Backend))
PATIENT = SessionConfig(policy="every", max_unread=10_000)
"""Nothing is dropped for being late: the machine may be busy."""
QUICK = SupervisorConfig(stall_seconds=1.5, open_seconds=6.0, longest_wait_seconds=0.5)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "gstreamer":
        need_gstreamer()
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    children = worker_processes()
    yield
    wait_for(lambda: worker_processes() <= children, 5, "the end of every worker process")
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("avis ")]
    assert not threads


def worker_processes(parent: int | None = None) -> set[int]:
    """Of this process, or of another."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == (parent or os.getpid()) and b"sources/worker\0" in command:
            found.add(int(status.parent.name))
    return found


def is_at_work(process: int) -> bool:
    """One that has ended may stay listed, without a command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def open_session(url: str, backend: str, **options: object) -> Session:
    options = {"config": PATIENT, "supervision": QUICK} | options
    return Session(StubSegmenter(), url, backend=backend, **options)  # type: ignore[arg-type]


def results_until(session: Session, done: object, limit: float = 60.0) -> list[LiveResult]:
    """Results up to the first for which `done(result)`."""
    taken: list[LiveResult] = []

    def further() -> bool:
        result = session.next(0.2)
        if result is None:
            assert not session.over, "the session ended"
            return False
        taken.append(result)
        return bool(done(result))  # type: ignore[operator]

    try:
        wait_for(further, limit, "the result that was waited for")
    except AssertionError as error:
        raise AssertionError(f"{error}; {len(taken)} others did: {taken[-1:]}, {session.stats()}") from error
    return taken


def event_of(session: Session, kinds: tuple[str, ...], taken: list[LiveResult] | None = None) -> avs.Event:
    """The next event of such a kind, whether a result that was under way tells it or nobody does."""

    def look() -> avs.Event | None:
        events = list(session.take_events())
        while (result := session.next(0)) is not None:
            events += result.events
            if taken is not None:
                taken.append(result)
        return next((event for event in events if event.kind in kinds), None)

    found = wait_for(look, 60, f"an event {kinds}")
    assert found is not None
    return found


def events_of(results: list[LiveResult]) -> list[tuple[str, str]]:
    return [(event.kind, event.detail) for result in results for event in result.events if event.source_id]


def skew(results: list[LiveResult]) -> float | None:
    times = np.array([r.pts_ns for r in results])
    brightness = np.array([float(r.pair.frame.image[:, :40].float().mean()) for r in results])
    beeps = [beep_onsets(r.pair.audio.numpy(), (r.pair.end_ns or 0) - S) for r in results if r.pair.audio_valid > 0.99]
    return skew_of(flash_onsets(times, brightness), np.unique(np.round(np.concatenate(beeps), 3)))


def test_sound_and_pictures_of_a_stream_belong_together(backend: str, tmp_path: Path) -> None:
    with (
        RtspServer.of_file(flash_and_beep(tmp_path / "clip.mp4", seconds=20)) as server,
        open_session(server.url, backend) as session,
    ):
        first = results_until(session, lambda r: True)
        results = results_until(session, lambda r: r.pts_seconds > first[0].pts_seconds + 6)
    found = skew(results)
    assert found is not None
    assert abs(found) < 0.010
    assert [kind for kind, _ in events_of(first + results)] == ["connected"], "nothing was missing at any time"
    assert session.stats().latency.count > 0


def test_two_cameras_at_once(backend: str) -> None:
    """Each in a session of its own; that one goes does not concern the other."""
    with RtspServer() as one, RtspServer() as other, open_session(other.url, backend) as second:
        with open_session(one.url, backend) as first:
            results_until(first, lambda r: r.pair.audio_valid > 0)
            results_until(second, lambda r: r.pair.audio_valid > 0)
            one.kill()
            assert event_of(first, ("lost",)).source_id == one.url
        reached = results_until(second, lambda r: True)[-1].pts_ns
        results_until(second, lambda r: r.pts_ns > reached + S)
        assert second.stats().reconnects == 0


def test_a_server_that_is_killed_is_found_again(backend: str) -> None:
    server = RtspServer()
    results: list[LiveResult] = []
    with server, open_session(server.url, backend) as session:
        for segment in range(3):
            results += results_until(
                session, lambda r, segment=segment: r.segment == segment and r.pair.audio_valid > 0
            )
            server.kill()
            event_of(session, ("lost",), results)
            server.start()
        results += results_until(session, lambda r: r.segment == 3)
        assert session.stats().reconnects == 3
    assert all(b.pts_ns > a.pts_ns for a, b in itertools.pairwise(results))
    assert {t for r in results for t in r.track_id.tolist()} == {1}
    back = [e for r in results for e in r.events if e.kind == "reconnected"]
    assert len(back) == 3
    assert all(e.gap_seconds is not None and e.gap_seconds > 0 for e in back)
    first_of = {r.segment: r for r in reversed(results)}
    assert all(first_of[segment].pair.frame.discontinuity for segment in (1, 2, 3))


def test_a_server_that_freezes_is_given_up_and_found_again(backend: str) -> None:
    server = RtspServer()
    with server, open_session(server.url, backend) as session:
        results_until(session, lambda r: True)
        server.freeze()
        lost = event_of(session, ("lost",))
        assert "nothing came for" in lost.detail or "end of stream" in lost.detail
        server.thaw()
        results = results_until(session, lambda r: r.segment == 1)
        assert ("reconnected", "") in events_of(results)


def test_a_server_that_is_absent_is_waited_for(backend: str) -> None:
    server = RtspServer()
    with open_session(server.url.replace("rtsp://", "rtsp://user:s3cr3t@"), backend) as session:
        (event,) = wait_for(session.take_events, 30, "an event")
        assert event.kind == "unreachable"
        assert event.detail
        assert "s3cr3t" not in repr(event)
        with server:
            results = results_until(session, lambda r: True)
    assert ("connected", "") in events_of(results)
    assert "s3cr3t" not in repr([r.source_id for r in results]) + session.prometheus()


def test_patience_may_end(backend: str) -> None:
    impatient = SupervisorConfig(give_up_seconds=0.5, open_seconds=2.0)
    url = f"rtsp://u:s3cr3t@127.0.0.1:{free_port()}/cam"
    with open_session(url, backend, supervision=impatient) as session, pytest.raises(SourceError) as raised:
        list(session)
    assert "s3cr3t" not in str(raised.value)


def test_a_stream_without_sound_does_not_wait_for_any(backend: str) -> None:
    with RtspServer(sound=False) as server, open_session(server.url, backend) as session:
        results = results_until(session, lambda r: r.frame_id >= 30)
    assert all(r.pair.audio_valid == 0 for r in results)
    assert "audio_missing" in [kind for kind, _ in events_of(results)]


def test_a_session_ends_at_once_while_connecting_to_nobody(backend: str) -> None:
    """A server that accepts and then says nothing: both libraries wait for seconds, in C."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        session = open_session(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/cam", backend).start()
        wait_for(worker_processes, 20, "the worker")
        session.stop()
        assert not worker_processes()


def test_a_worker_that_dies_is_replaced(backend: str) -> None:
    with RtspServer() as server, open_session(server.url, backend) as session:
        results_until(session, lambda r: True)
        for process in worker_processes():
            os.kill(process, signal.SIGSEGV)
        results = results_until(session, lambda r: r.segment == 1)
    assert any(kind == "lost" and "reader process ended" in why for kind, why in events_of(results))


def test_ctrl_c_in_a_terminal_is_no_loss(backend: str) -> None:
    """It goes to every process of the terminal; who asked for the worker ends it."""
    with RtspServer() as server, open_session(server.url, backend) as session:
        first = results_until(session, lambda r: True)
        workers = worker_processes()
        assert workers
        for process in workers:
            os.kill(process, signal.SIGINT)
        results = results_until(session, lambda r: r.pts_ns > first[-1].pts_ns + 2 * S)
    assert "lost" not in {kind for kind, _ in events_of(results)}


_READS_FOR_EVER = """
import sys
from avis_stream.stream.session import Session
from live_tools import StubSegmenter
for _ in Session(StubSegmenter(), sys.argv[1], backend=sys.argv[2]):
    print("up", flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(backend: str) -> None:
    folder = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
    with RtspServer() as server, subprocess.Popen(
        [sys.executable, "-c", _READS_FOR_EVER, server.url, backend], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:  # fmt: skip
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "up\n"
            workers = worker_processes(parent.pid)
        finally:
            parent.kill()
        parent.wait()
        assert workers
        wait_for(lambda: not any(map(is_at_work, workers)), 10, "the end of the workers")


def test_a_film_over_http_ends(backend: str, tmp_path: Path) -> None:
    flash_and_beep(tmp_path / "clip.ts", seconds=40)
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_session(f"http://127.0.0.1:{server.server_port}/clip.ts", backend, config=SessionConfig(
            policy="every", max_unread=10_000)) as session:  # fmt: skip
            results = list(session)
    finally:
        server.shutdown()
        server.server_close()
    # What a live stream's reader passes over at the beginning is half a second; a file is read faster than that.
    assert session.stats().frames_in == 1000
    assert len(results) + session.stats().dropped_frames == 1000
    # The first second begins before the film, and what FFmpeg's reader passes over has no sound either.
    assert sum(r.pair.audio_valid > 0.99 for r in results) > 940


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_transport_stream_over_udp(backend: str, tmp_path: Path) -> None:
    need(os.access("/usr/bin/ffmpeg", os.X_OK), "gst", "ffmpeg is not there (make test prints what to install)")
    clip = flash_and_beep(tmp_path / "clip.ts", seconds=20)
    port = free_port()
    sender = subprocess.Popen(
        ["ffmpeg", "-loglevel", "error", "-re", "-i", str(clip), "-c", "copy", "-f", "mpegts",
         f"udp://127.0.0.1:{port}?pkt_size=1316"], stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with open_session(f"udp://127.0.0.1:{port}", backend) as session:
            first = results_until(session, lambda r: r.pair.audio_valid > 0)
            results = results_until(session, lambda r: r.pts_seconds > first[-1].pts_seconds + 4)
    finally:
        sender.kill()
        sender.wait()
    found = skew(results)
    assert found is not None
    # The bar of 10 ms is RTSP's, whose stamps are the sender's. These follow arrivals, which a busy machine delays.
    assert abs(found) < 0.040


# --- what only GStreamer does -----------------------------------------------------------------------------------------

_TEXT = (
    "gst: videotestsrc is-live=true num-buffers=40 ! video/x-raw,width=322,height=50,framerate=25/1 ! videoconvert ! "
    "appsink name=video audiotestsrc is-live=true num-buffers=100 samplesperbuffer=960 ! audio/x-raw,rate=48000 ! "
    "audioconvert ! audioresample ! appsink name=audio"
)


_FILM = (
    "gst: filesrc location={path} ! decodebin name=d d. ! queue ! videoconvert ! appsink name=video "
    "d. ! queue ! audioconvert ! audioresample ! appsink name=audio"
)


def test_a_film_in_a_pipeline_happens_now_and_is_heard(tmp_path: Path) -> None:
    """Nobody but the reader paces it; its sound must not run away from its pictures."""
    need_gstreamer()
    clip = flash_and_beep(tmp_path / "clip.mp4", seconds=30)
    with open_session(_FILM.format(path=clip), "auto") as session:
        begin = time.monotonic()
        results = results_until(session, lambda r: r.frame_id >= 75)
        assert time.monotonic() - begin > 2, "three seconds of film"
    assert all(r.pair.audio_valid > 0.99 for r in results[30:])


def test_any_pipeline_with_two_appsinks() -> None:
    need_gstreamer()
    with open_session(_TEXT, "auto") as session:
        results = results_until(session, lambda r: r.frame_id == 30)
    assert results[0].pair.frame.image.shape == (3, 50, 322), "rows of 966 bytes are padded to 968"
    assert results[-1].pair.audio_valid > 0.9
    red = results[-1].pair.frame.image[:, :30, 235].tolist()  # bars: the sixth of seven is red
    assert all(value > 180 for value in red[0])
    assert all(value < 40 for value in red[1] + red[2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gst: videotestsrc ! nosuchelement ! appsink name=video", "nosuchelement"),
        ("gst: videotestsrc ! fakesink", "no appsink named video"),
    ],
)
def test_a_wrong_pipeline_is_an_error(text: str, words: str) -> None:
    need_gstreamer()
    with open_session(text, "auto") as session, pytest.raises(SourceError, match=words):
        list(session)


def test_a_stream_that_is_added_late_is_decoded_all_the_same() -> None:
    """rtspsrc's streams are added by threads of their own, and one says "no more" before another has added its own."""
    need_gstreamer()
    script = Path(__file__).with_name("late_stream.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["video:linked", "more", "audio:linked"], done.stderr


def test_pictures_go_on_without_sound_that_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    need_gstreamer()
    with RtspServer() as server:
        decoders = ["avdec_aac", "avdec_aac_fixed", "avdec_aac_latm", "faad", "fdkaacdec"]
        monkeypatch.setenv("GST_PLUGIN_FEATURE_RANK", ",".join(f"{name}:NONE" for name in decoders))
        with open_session(server.url, "gstreamer") as session:
            results = results_until(session, lambda r: r.frame_id >= 30)
    assert {r.pair.audio_valid for r in results} == {0.0}
    assert ("audio_missing", "it has no sound") in events_of(results)


def test_pictures_may_change_their_size(tmp_path: Path) -> None:
    """As a camera's do when it turns: identities go on, and the result says so."""
    need_gstreamer()
    text = (
        "gst: concat name=c ! appsink name=video "
        "videotestsrc num-buffers=30 is-live=true ! video/x-raw,format=RGB,width=160,height=90,framerate=25/1 ! c. "
        "videotestsrc num-buffers=60 is-live=true ! video/x-raw,format=RGB,width=90,height=160,framerate=25/1 ! c."
    )
    from small_model import open_config, small_model

    with Session(small_model(), text, None, config=PATIENT, online=open_config()) as session:
        results = results_until(session, lambda r: "resized" in [e.kind for e in r.events])
    assert {tuple(r.mask.shape[1:]) for r in results} == {(90, 160), (160, 90)}
    for frame in (result.pair.frame for result in results):
        assert frame.previous is None or frame.previous.shape == frame.image.shape


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there_is_waited_for(backend: str) -> None:
    with open_session("/dev/video97", backend) as session:
        (event,) = wait_for(session.take_events, 30, "an event")
    assert (event.kind, event.source_id) == ("unreachable", "camera:/dev/video97")
    assert isinstance(event, avs.Event)
