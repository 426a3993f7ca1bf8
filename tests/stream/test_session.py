"""Sessions with sources that need no device: recordings, made scenes, the caller's own frames and sound."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_tools import StubSegmenter, Together, flash_and_beep, free_port, wait_for
from PIL import Image
from small_model import open_config, small_model

import avis_stream as avs
from avis_stream.errors import AvisStreamError, ConfigError, MediaError, ShapeError, SourceError
from avis_stream.online import OnlineSegmenter, OnlineState
from avis_stream.sources.child import Message
from avis_stream.sources.items import ItemSource, Lost
from avis_stream.sources.live import LiveSource
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.sources.synthetic import beep_onsets, flash_onsets, skew_of
from avis_stream.sources.worker import wire
from avis_stream.stream.session import Session, SessionConfig, live
from avis_stream.types import SAMPLE_RATE, AudioChunk, AVPair, LiveResult, OnlineResult, VideoFrame

MS = 1_000_000
S = 1_000_000_000


def avis_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("avis ")]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    wait_for(lambda: not avis_threads(), 5, "the end of every thread")


def onsets_in(results: list[LiveResult]) -> float | None:
    """How much later than the flash the tone begins, as the model got them."""
    times = np.array([r.pts_ns for r in results])
    brightness = np.array([float(r.pair.frame.image[:, :40].float().mean()) for r in results])
    beeps = []
    for result in results:
        end_ns = result.pair.end_ns
        assert end_ns is not None
        beeps.append(beep_onsets(result.pair.audio.numpy(), end_ns - S))
    every = np.unique(np.round(np.concatenate(beeps), 3))
    return skew_of(flash_onsets(times, brightness), every)


def frames(count: int, fps: int = 25) -> Iterator[VideoFrame]:
    for n in range(count):
        image = torch.full((3, 12, 16), n % 256, dtype=torch.uint8)
        yield VideoFrame(image=image, pts_ns=n * S // fps, frame_id=n, source_id="mine")


def sound(seconds: float) -> Iterator[AudioChunk]:
    block = SAMPLE_RATE // 20
    for begin in range(0, round(seconds * SAMPLE_RATE), block):
        samples = torch.arange(begin, begin + block) / SAMPLE_RATE
        yield AudioChunk(samples=samples, pts_ns=begin * S // SAMPLE_RATE)


def test_a_recording_is_read_to_its_end_and_nothing_is_lost(tmp_path: Path) -> None:
    segmenter = StubSegmenter()
    results = list(live(segmenter, flash_and_beep(tmp_path / "clip.mp4", seconds=4)))
    assert [r.frame_id for r in results] == list(range(100))
    assert [r.refreshed for r in results].count(False) == 4
    assert all(r.latency_ms is None for r in results)
    assert all(b.pts_ns > a.pts_ns for a, b in itertools.pairwise(results))
    assert results[60].pair.frame.previous is not None
    skew = onsets_in(results)
    assert skew is not None
    assert abs(skew) < 0.005


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".mkv", "aac"), (".ts", "aac"), (".mkv", "pcm_s16le")])
def test_sound_and_pictures_of_files_belong_together(tmp_path: Path, suffix: str, codec: str) -> None:
    path = flash_and_beep(tmp_path / f"clip{suffix}", codec=codec)
    skew = onsets_in(list(live(StubSegmenter(), path)))
    assert skew is not None
    assert abs(skew) < 0.005


def test_a_made_scene_on_demand() -> None:
    results = list(
        live(StubSegmenter(), "synthetic://flashbeep?fps=30&seconds=3&size=64x48&skew_ms=50", realtime=False)
    )
    assert len(results) == 90
    assert all(r.pair.audio_valid == 1.0 for r in results[30:])
    skew = onsets_in(results)
    assert skew == pytest.approx(0.050, abs=0.005)


def test_the_callers_own_frames_and_sound() -> None:
    results = list(live(StubSegmenter(), frames(100), sound(4.0)))
    assert [r.frame_id for r in results] == list(range(100))
    for result in results[25:]:
        assert result.pair.audio_valid == 1.0
        ends = (result.pts_ns + 40 * MS) / S
        assert float(result.pair.audio[-1]) == pytest.approx(ends - 1 / SAMPLE_RATE, abs=1e-4)


def test_the_callers_own_sound_may_end_before_the_frames() -> None:
    drawn = []
    counted = (drawn.append(frame.frame_id) or frame for frame in frames(1000))
    results = live(StubSegmenter(), counted, sound(1.0))
    taken = [next(results) for _ in range(60)]
    assert len(drawn) < 300, "frames without sound do not wait for the last frame"
    taken += results
    assert [result.frame_id for result in taken] == list(range(1000))
    heard = [result.pair.audio_valid for result in taken]
    assert heard[24] == 1.0
    assert heard[37] == pytest.approx(0.48)
    assert heard[60] == 0.0


def test_the_callers_own_sound_may_come_in_one_block() -> None:
    """Longer than what is kept of it."""
    block = AudioChunk(samples=torch.cat([chunk.samples for chunk in sound(20)]), pts_ns=0)
    _, *results = live(StubSegmenter(), frames(20, fps=1), [block])  # how long the first is shown nobody knows yet
    assert [result.pair.audio_valid for result in results] == [1.0] * 19
    for second, result in enumerate(results, 1):
        assert torch.equal(result.pair.audio, block.samples[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE])


def test_sound_may_begin_late() -> None:
    """Two seconds after the pictures: none waits, and each says how much of its second was heard."""
    late = (chunk for chunk in sound(4.0) if chunk.pts_ns >= 2 * S)
    results = list(live(StubSegmenter(), frames(100), late))
    assert [result.frame_id for result in results] == list(range(100))
    heard = [result.pair.audio_valid for result in results]
    assert set(heard[:49]) == {0.0}
    assert heard[62] == pytest.approx(0.52)
    assert set(heard[75:]) == {1.0}


def test_a_film_whose_sound_is_not_asked_for(tmp_path: Path) -> None:
    results = list(live(StubSegmenter(), flash_and_beep(tmp_path / "clip.mp4", seconds=1), None, fps=5))
    assert [(r.pair.audio_valid, r.pair.valid_samples) for r in results] == [(0.0, 0)] * 5


def test_the_callers_own_frames_without_sound() -> None:
    results = list(live(StubSegmenter(), frames(10), None))
    assert [(r.pair.audio_valid, r.pair.valid_samples) for r in results] == [(0.0, 0)] * 10


def test_a_real_model_through_a_session() -> None:
    with Session(
        small_model(), "synthetic://flashbeep?fps=5&seconds=3", realtime=False, online=open_config()
    ) as session:
        results = list(session)
    assert len(results) == 15
    assert isinstance(results[0], avs.OnlineResult)
    stats = session.stats()
    assert (stats.steps, stats.refreshes, stats.frames_in, stats.dropped_frames) == (3, 12, 15, 0)
    assert stats.stages["step"].count == 3
    assert stats.waiting == 0


def test_two_sessions_share_a_model() -> None:
    alone = [r.track_id.tolist() for r in live(small_model(), "synthetic://flashbeep?fps=2&seconds=3", realtime=False)]
    sessions = [Session(small_model(), "synthetic://flashbeep?fps=2&seconds=3", realtime=False) for _ in range(2)]
    with sessions[0] as one, sessions[1] as other:
        pairs = [(one.next(), other.next()) for _ in range(6)]
    assert [a.track_id.tolist() for a, _ in pairs if a is not None] == alone
    assert [b.track_id.tolist() for _, b in pairs if b is not None] == alone


def test_pictures_between_steps_are_worked_on_beside_each_other() -> None:
    model, scene = small_model(), "synthetic://flashbeep?fps=3&seconds=3"
    config = SessionConfig(num_threads=2)
    with Session(Together(model, open_config()), scene, realtime=False, config=config) as session:
        results = list(session)
    assert [r.frame_id for r in results] == list(range(9))
    assert [r.refreshed for r in results] == [False, True, True] * 3
    stats = session.stats()
    assert (stats.steps, stats.refreshes, stats.dropped_frames, stats.waiting) == (3, 6, 0, 0)
    alone = live(model, scene, realtime=False, num_threads=1, online=open_config())
    for one, other in zip(results, alone, strict=True):
        assert one.track_id.tolist() == other.track_id.tolist()
        assert (one.mask == other.mask).float().mean() > 0.999, "sums in another order, no more"


def test_a_picture_that_fails_on_its_lane_ends_the_session_and_is_raised_once() -> None:
    class Failing(OnlineSegmenter):
        def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
            raise ShapeError("no such picture")

    config, scene = SessionConfig(num_threads=2), "synthetic://flashbeep?fps=3&seconds=3"
    with Session(Failing(small_model(), open_config()), scene, realtime=False, config=config) as session:
        first = session.next()
        assert first is not None
        assert not first.refreshed
        with pytest.raises(ShapeError, match="no such picture"):
            list(session)
        assert session.next() is None
    assert session.stats().refreshes == 0


def test_a_session_is_stopped_while_lanes_hold_results_that_nobody_takes() -> None:
    segmenter, config = OnlineSegmenter(small_model(), open_config()), SessionConfig(num_threads=2, max_unread=1)
    with Session(segmenter, "synthetic://flashbeep?fps=25&seconds=2", realtime=False, config=config) as session:
        wait_for(lambda: session.stats().waiting > 2, 20, "pictures in hand")


def test_a_model_that_is_too_slow_loses_frames_and_says_which() -> None:
    """In real time, but nothing here depends on how fast the machine is: every frame is accounted for."""
    segmenter = StubSegmenter(step_seconds=0.3, refresh_seconds=0.3)
    config = SessionConfig(max_latency_ms=200)
    with Session(segmenter, "synthetic://flashbeep?fps=25&seconds=3&size=32x24", config=config) as session:
        results = list(session)
    stats = session.stats()
    assert stats.frames_in == 75
    assert len(results) + stats.unread == stats.steps + stats.refreshes
    assert stats.steps + stats.refreshes + stats.dropped_frames == 75
    assert stats.dropped["stale"] > 0
    told = sum((n for r in results for cause, n in r.dropped_since_last.items() if cause != "unread"), 0)
    assert told <= stats.dropped_frames
    assert all(b.frame_id > a.frame_id for a, b in itertools.pairwise(results))
    assert stats.latency.count == stats.steps + stats.refreshes


def test_the_next_result_can_be_looked_at() -> None:
    """It stays; what ended the session is raised after the last one, once."""
    segmenter = StubSegmenter(hop_seconds=0.04)
    segmenter.fail_after = 1
    session = Session(segmenter, frames(3), None)
    with pytest.raises(AvisStreamError, match="must be started before"):
        session.peek()
    with session:
        ahead = session.peek(20)
        assert ahead is session.peek(0) is session.next(0)
        with pytest.raises(RuntimeError, match="the model failed"):
            session.peek(20)
        assert session.peek(0) is None
    assert session.stats().unread == 0


def test_results_that_nobody_takes_hand_their_events_down() -> None:
    config = SessionConfig(max_unread=2)
    with Session(StubSegmenter(), "synthetic://flashbeep?fps=25&seconds=1&size=32x24", config=config) as session:
        wait_for(lambda: session.stats().unread >= 5, 20, "results that nobody takes")
        results = list(session)
    first = results[0]
    assert [event.kind for event in first.events] == ["born"]
    assert first.dropped_since_last.get("unread", 0) >= 5


class EndlessCamera:
    """Stands in for a worker process: at once, as many pictures as are taken, each before its 40 ms of sound."""

    def __init__(self, request: Any, deliver: Any, *, name: str) -> None:
        self._deliver, self._over = deliver, threading.Event()
        self._thread = threading.Thread(target=self._speak, name=name, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        self._over.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _speak(self) -> None:
        picture, sound = bytearray(3 * 16 * 12), bytearray(4 * SAMPLE_RATE // 25)
        begin = time.monotonic_ns()
        self._deliver(Message(wire.OPENED, bytearray(b"{}"), None, begin, (0, 0), 0))
        for n in itertools.count():
            stamp = begin + n * 40 * MS
            for kind, payload, sizes in ((wire.VIDEO, picture, (16, 12)), (wire.AUDIO, sound, (SAMPLE_RATE, 0))):
                if self._over.is_set():
                    return
                self._deliver(Message(kind, payload, stamp, stamp, sizes, 0))


def test_a_source_is_not_lost_because_the_model_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `every` sources wait for the model; that is no silence and no loss of theirs."""

    class SlowToBegin(StubSegmenter):
        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            self.step_seconds = 0.0 if self.steps else 1.7
            return super().step_pair(pair, state)

    monkeypatch.setattr("avis_stream.sources.live.Child", EndlessCamera)
    patience = SupervisorConfig(stall_seconds=1.0)
    camera = LiveSource("cam", {"reader": "gstreamer"}, gives_pictures=True, gives_sound=True, config=patience)
    with Session(SlowToBegin(), sources=[camera], config=SessionConfig(policy="every", max_unread=10_000)) as session:
        results = [session.next() for _ in range(100)]
    told = [event.kind for result in results if result is not None for event in result.events if event.source_id]
    assert told == ["connected"]
    assert [result.frame_id for result in results if result is not None] == list(range(100))
    assert all(result.pair.audio_valid == 1 for result in results[30:] if result is not None)


@pytest.mark.parametrize("policy", ["auto", "latest", "every"])
def test_a_fast_model_loses_nothing(policy: str) -> None:
    config = SessionConfig(policy=policy, max_unread=100, max_latency_ms=60_000)  # type: ignore[arg-type]
    with Session(StubSegmenter(), "synthetic://flashbeep?fps=10&seconds=1.5&size=16x12", config=config) as session:
        results = list(session)
    stats = session.stats()
    numbers = [result.frame_id for result in results]
    assert numbers == sorted(set(numbers))
    assert len(results) + stats.dropped_frames == stats.frames_in == 15
    if policy == "latest":  # a busy machine may pass one over, for a newer one alone, and counts it
        assert {cause for cause, count in stats.dropped.items() if count} <= {"stale"}
        assert numbers[-1] == 14, "nothing is newer than the last one"
    else:
        assert len(results) == 15


def test_stopping_from_any_state_ends_everything() -> None:
    never = Session(StubSegmenter(), "synthetic://flashbeep")
    never.stop()
    assert never.stats().seconds == 0
    assert never.next() is None
    for wait_results in (0, 1):
        session = Session(StubSegmenter(), "synthetic://flashbeep?size=32x24").start()
        for _ in range(wait_results):
            assert session.next() is not None
        session.stop()
        session.stop()
        assert not avis_threads()
        while session.next() is not None:  # what was there when it was stopped can still be read
            pass
        assert session.over
    blocked = Session(StubSegmenter(), frames(10_000), None).start()  # its results fill up and everything waits
    assert blocked.next() is not None
    blocked.stop()
    assert not avis_threads()


@pytest.mark.parametrize("taken", [0, 3])
@pytest.mark.parametrize("realtime", [False, True])
def test_a_session_that_is_stopped_early_has_counted_every_frame(realtime: bool, taken: int) -> None:
    class Stopped(StubSegmenter):
        """Whose second step lasts until the session is stopped."""

        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            if self.steps:
                stopping.wait(20)
            return super().step_pair(pair, state)

    stopping = threading.Event()
    scene, config = "synthetic://flashbeep?fps=25&seconds=60&size=16x12", SessionConfig(max_unread=64)
    with Session(Stopped(), scene, realtime=realtime, config=config) as session:
        for _ in range(taken):
            assert session.next(20) is not None
        wait_for(lambda: session.stats().steps + session.stats().refreshes >= 20, 20, "results that wait")
        wait_for(lambda: session.stats().waiting > 1, 20, "frames that wait")
        assert session.stats().unread == 0
        threading.Timer(0.1, stopping.set).start()
    wait_for(lambda: not avis_threads(), 20, "the end of the step, which may outlast that of the session")
    stats = session.stats()
    made = stats.steps + stats.refreshes
    assert stats.waiting == 0
    assert stats.dropped["stopped"] > 0
    assert stats.unread == made - taken
    assert stats.frames_in == made + stats.dropped_frames
    assert session.next(0) is not None, "they can still be read"
    assert session.stats().unread == stats.unread, "a counter does not go down"


def test_frames_of_a_step_that_fails_are_counted() -> None:
    segmenter = StubSegmenter(hop_seconds=0.04)
    segmenter.fail_after = 2
    with Session(segmenter, frames(10), None) as session, pytest.raises(RuntimeError, match="the model failed"):
        list(session)
    stats = session.stats()
    assert (stats.steps, stats.waiting, stats.unread) == (2, 0, 0)
    assert stats.dropped == {"stopped": stats.frames_in - 2}


def test_a_source_that_does_not_begin_leaves_none_behind() -> None:
    class Broken(ItemSource):
        def start(self, clock: object, post: object) -> None:
            raise OSError("no such device")

    items = [ItemSource("mine", frames(10_000), realtime=False, gives_pictures=True, gives_sound=False)]
    items.append(Broken("other", (), realtime=False, gives_pictures=False, gives_sound=True))
    with pytest.raises(OSError, match="no such device"), Session(StubSegmenter(), sources=items):
        pass
    assert not avis_threads()


class StuckSource:
    """A source that does not end: whoever waits for it waits as long as they said they would."""

    live = True

    def __init__(self, name: str, told: list[str], wait: Callable[[float], None], *, gives_pictures: bool) -> None:
        self.source_id, self.gives_pictures, self.gives_sound = name, gives_pictures, not gives_pictures
        self._told, self._wait = told, wait

    def start(self, clock: object, post: object) -> None: ...

    def receive(self, what: object, now_ns: int) -> tuple[()]:
        return ()

    def tick(self, now_ns: int) -> tuple[()]:
        return ()

    def stop(self) -> None:
        self._told.append(f"stop {self.source_id}")

    def join(self, timeout: float) -> None:
        self._told.append(f"join {self.source_id} {timeout:g}")
        self._wait(timeout)


def test_whoever_is_slow_to_end_shares_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = [100.0]

    def wait(timeout: float) -> None:
        now[0] += min(1.5, timeout)

    sources = [StuckSource(name, told, wait, gives_pictures=name == "cam") for name in ("cam", "mic", "line")]
    session = Session(StubSegmenter(), sources=sources)
    monkeypatch.setattr("avis_stream.stream.session.time.monotonic", lambda: now[0])
    session.stop()
    assert told == ["stop cam", "stop mic", "stop line", "join cam 2", "join mic 0.5", "join line 0"]


@pytest.mark.slow
def test_two_sources_that_do_not_end_hold_nobody_for_more_than_the_deadline() -> None:
    released = threading.Event()

    def stuck() -> Iterator[VideoFrame]:
        yield from frames(2)
        released.wait(30)

    sources = [
        ItemSource("frames", stuck(), realtime=False, gives_pictures=True, gives_sound=False),
        StuckSource("mic", [], time.sleep, gives_pictures=False),
    ]
    session = Session(StubSegmenter(), sources=sources).start()
    try:
        assert session.next(20) is not None
        begin = time.monotonic()
        session.stop()
        assert time.monotonic() - begin < 2.5
    finally:
        released.set()


def test_leaving_the_loop_ends_everything() -> None:
    results = live(StubSegmenter(), frames(10_000), None)
    assert next(results).frame_id == 0
    results.close()  # type: ignore[attr-defined]
    assert not avis_threads()


def test_the_newest_of_a_file_is_what_is_shown_now(tmp_path: Path) -> None:
    path = flash_and_beep(tmp_path / "clip.mp4", seconds=1)
    newest = SessionConfig(policy="latest")
    for video in (path, str(path), f"file://{path}"):
        assert Session(StubSegmenter(), video, config=newest).live, f"{video!r}: at its own pace"
        assert not Session(StubSegmenter(), video).live
    assert not Session(StubSegmenter(), path, config=newest, realtime=False).live


def test_a_session_that_was_not_started() -> None:
    session = Session(StubSegmenter(), frames(3), None)
    with pytest.raises(AvisStreamError, match="must be started"):
        session.next(0)
    assert [result.frame_id for result in session] == [0, 1, 2], "the loop starts it"
    assert not avis_threads()


def test_losses_are_counted_while_others_add_them_up() -> None:
    """Every cause is a new key of a dictionary that `stats()` walks through."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    items = (Lost(1, f"cause {n}") for n in range(3000))
    source = ItemSource("mine", items, realtime=False, gives_pictures=True, gives_sound=False)
    try:
        with Session(StubSegmenter(), sources=[source]) as session:
            while not session.over:
                session.stats()
        assert session.stats().dropped_frames == 3000
    finally:
        sys.setswitchinterval(before)


def test_a_session_runs_once() -> None:
    session = Session(StubSegmenter(), frames(3), None)
    with session:
        assert len(list(session)) == 3
    with pytest.raises(AvisStreamError, match="make another"):
        session.start()


def test_failures_are_raised_where_results_are_read() -> None:
    segmenter = StubSegmenter(hop_seconds=0.04)
    segmenter.fail_after = 2
    with Session(segmenter, frames(10), None) as session, pytest.raises(RuntimeError, match="the model failed"):
        list(session)

    def breaks() -> Iterator[VideoFrame]:
        yield from frames(2)
        raise ValueError("no more film")

    taken = []
    with pytest.raises(SourceError, match="no more film"):
        taken.extend(live(StubSegmenter(), breaks(), None))


@pytest.mark.parametrize("audio", ["source", None])
def test_a_recording_that_breaks_off_is_not_taken_for_whole(tmp_path: Path, audio: str | None) -> None:
    for number in range(1, 6):
        Image.new("RGB", (48, 32), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    taken: list[LiveResult] = []
    with Session(StubSegmenter(step_seconds=0.05), tmp_path, audio) as session:
        with pytest.raises(MediaError, match="image 4 of 5"):
            taken.extend(session)
        events = [*(e for result in taken for e in result.events), *session.take_events()]
    assert [result.frame_id for result in taken] == [0, 1, 2], "what came before has its results"
    assert [event.detail for event in events if event.kind == "broken"]


@pytest.mark.parametrize(
    ("video", "options", "kind", "words"),
    [
        ("missing.mp4", {}, MediaError, "no such file"),
        ("synthetic://flashbeep?speed=3", {}, ConfigError, "takes fps"),
        ("synthetic://flashbeep?fps=0", {}, ConfigError, "fps"),
        ("rtsp://h/x", {"fps": 3.0}, ConfigError, "unless the video is a file"),
        ("synthetic://flashbeep", {"audio": "rtsp://u:pw@h/x"}, ConfigError, r"\*\*\*@h"),
        ("0", {"backend": "vlc"}, ConfigError, "gstreamer or ffmpeg"),
        ("synthetic://flashbeep", {"config": None, "policy": "newest"}, TypeError, "policy"),
    ],
)
def test_wrong_use(video: str, options: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Session(StubSegmenter(), video, **options)  # type: ignore[arg-type]


def test_the_models_thread_alone_is_capped() -> None:
    seen = []

    class Counting(StubSegmenter):
        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            seen.append(torch.get_num_threads())
            return super().step_pair(pair, state)

    before = torch.get_num_threads()
    with Session(Counting(), frames(3), None, config=SessionConfig(num_threads=1)) as session:
        list(session)
    assert seen == [1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("video", [["rtsp://u:s3cr3t@h/a", "rtsp://h/b"], [1, 2]])
def test_two_sources_are_two_sessions(video: Any) -> None:
    with pytest.raises(ConfigError, match="of two sources each has a Session of its own") as caught:
        list(live(StubSegmenter(), video))
    assert "s3cr3t" not in str(caught.value)


def test_frames_of_the_callers_own_are_let_go() -> None:
    ended = threading.Event()

    def frames() -> Iterator[VideoFrame]:
        try:
            for n in itertools.count():
                yield VideoFrame(image=torch.zeros(3, 4, 4, dtype=torch.uint8), pts_ns=n * 10**8, frame_id=n)
        finally:
            ended.set()

    kept = frames()
    with Session(StubSegmenter(), kept, None) as session:
        session.next(30)
    wait_for(ended.is_set, 30, "the end of the generator")


def test_the_log_is_told_of_a_source_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with Session(StubSegmenter(), f"rtsp://127.0.0.1:{free_port()}/cam", backend="ffmpeg"):
        wait_for(lambda: any("unreachable" in record.getMessage() for record in caplog.records), 30, "a warning")
