"""The model behind the GStreamer element: newest frame, newest answer, no waiting; and what is drawn of it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from live_tools import Held, StubSegmenter, Together, wait_for
from small_model import open_config, small_model

from avis_stream.errors import ShapeError
from avis_stream.interop.answer import Answer, Row, layer_of
from avis_stream.interop.follower import Follower
from avis_stream.online import OnlineSegmenter, OnlineState
from avis_stream.types import AVPair, OnlineResult
from avis_stream.writers.draw import draw_result

MS = 1_000_000
CLASSES = ("dog", "acoustic_guitar")


def follower(segmenter: StubSegmenter, **options: object) -> Follower:
    defaults = {"num_threads": 1, "audio_wait_ms": 50, "draw": lambda: False, "wants_previous": False}
    return Follower(segmenter, CLASSES, **(defaults | options))  # type: ignore[arg-type]


@dataclass
class Plain:
    """A picture in plain memory; how often it was read is counted."""

    values: np.ndarray
    read: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[0]

    def pixels(self) -> np.ndarray:
        self.read += 1
        return self.values.copy()


def picture(value: int = 0) -> Plain:
    return Plain(np.full((8, 12, 3), value, np.uint8))


def result() -> OnlineResult:
    mask = torch.zeros(2, 60, 80, dtype=torch.bool)
    mask[0, 10:30, 10:40] = True
    mask[1, 20:50, 30:70] = True
    return OnlineResult(
        pts_ns=0, frame_id=0, track_id=torch.tensor([3, 258]), class_id=torch.tensor([0, 1]),
        score=torch.tensor([0.9, 0.5]), sounding=torch.tensor([True, True]), mask=mask,
        box=torch.tensor([[10.0, 10, 30, 20], [30.0, 20, 40, 30]]),
    )  # fmt: skip


def test_frames_never_wait_and_the_newest_is_taken() -> None:
    class Gated(StubSegmenter):
        gate = threading.Event()

        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            self.gate.wait(20)
            return super().step_pair(pair, state)

    segmenter = Gated(hop_seconds=0.001)
    one = follower(segmenter)
    one.start()
    pictures = [picture(n) for n in range(10)]
    one.frame(pictures[0], 0)
    wait_for(lambda: one._newest is None, 10, "the model")  # it holds the first frame, at the gate
    for n in range(1, 10):
        one.frame(pictures[n], n * 40 * MS)
    assert one.answer is None
    segmenter.gate.set()
    wait_for(lambda: one.counts["answers"] == 2, 10, "two answers")
    one.stop()
    assert [p.frame.frame_id for p in segmenter.steps] == [0, 9]
    assert one.counts["passed_over"] == 8
    assert [n for n, one_picture in enumerate(pictures) if one_picture.read] == [0, 9], "others are not even copied"
    assert one.answer is not None
    assert one.answer.result.frame_id == 9


def test_a_motion_cue_gets_the_picture_before_and_few_are_held() -> None:
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter, wants_previous=True)
    for n in range(20):
        one.frame_sync(picture(n), n * 33 * MS)
    before = [None if p.frame.previous is None else int(p.frame.previous[0, 0, 0]) for p in segmenter.steps]
    assert before == [None] * 3 + list(range(17)), "99 ms earlier"
    assert len(one._earlier) <= 5
    one.frame_sync(picture(99), 5000 * MS)
    assert segmenter.steps[-1].frame.previous is None, "nothing so old"
    for n in range(20):
        one.frame_sync(picture(n), (5100 + n * 33) * MS)
    assert len(one._earlier) <= 5, "after an interruption as before"
    assert int(segmenter.steps[-1].frame.previous[0, 0, 0]) == 16


def test_of_a_slow_stream_few_frames_are_held_as_well() -> None:
    one = follower(StubSegmenter(), wants_previous=True)
    for n in range(20):
        one.frame_sync(picture(n), n * 500 * MS)
    assert len(one._earlier) <= 3


def test_a_model_that_fails_says_so_once() -> None:
    class Failing(StubSegmenter):
        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            raise MemoryError("no memory left")

    told: list[Exception] = []
    one = follower(Failing(), failed=told.append)
    assert one.frame_sync(picture(), 0) is None
    assert one.frame_sync(picture(), 1000 * MS) is None
    waiting = follower(Failing(), failed=told.append)
    waiting.start()
    waiting.frame(picture(), 0)
    wait_for(lambda: waiting.failure is not None, 10, "the failure")
    waiting.stop()
    assert [str(error) for error in told] == ["no memory left"] * 2


def test_the_second_of_sound_is_that_of_the_frame() -> None:
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter)
    one.sound(np.arange(32_000, dtype=np.float32) / 16_000, 0)
    one.frame_sync(picture(), 1000 * MS)
    heard = segmenter.steps[0].audio
    assert segmenter.steps[0].audio_valid == 1.0
    assert abs(float(heard[-1]) - 1.04) < 1e-3
    one.frame_sync(picture(), 2000 * MS)  # its sound ends 40 ms after what there is: waited for, then left out
    assert one.counts["late_sound"] == 1
    one.sound_over()
    one.frame_sync(picture(), 3000 * MS)
    assert one.counts["late_sound"] == 1


def test_sound_that_is_said_not_to_come_is_not_waited_for() -> None:
    """However long it is said of; what comes after it is heard."""
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter)
    one.sound(np.ones(8_000, np.float32), 0)
    one.no_sound(500 * MS, 1000 * MS)
    one.frame_sync(picture(), 960 * MS)
    one.no_sound(1000 * MS, 10**7 * MS)
    one.frame_sync(picture(), 9_999_000 * MS)
    one.sound(np.ones(16_000, np.float32), 10**7 * MS)
    one.frame_sync(picture(), 10**7 * MS)
    assert one.counts["late_sound"] == 0
    first, second, third = (pair.audio_valid for pair in segmenter.steps)
    assert first == pytest.approx(0.5, abs=0.05)
    assert second == 0.0
    assert third == 1.0
    assert {pair.valid_samples for pair in segmenter.steps} == {16_000}


def test_a_stream_without_sound_has_none() -> None:
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter)
    one.frame_sync(picture(), 960 * MS)
    assert segmenter.steps[0].valid_samples == 0


def test_frames_seconds_apart_hear_the_second_that_begins_with_them() -> None:
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter)
    one.sound(np.arange(6 * 16_000, dtype=np.float32) / 16_000, 0)
    for seconds in (1, 3, 5):
        one.frame_sync(picture(), seconds * 1000 * MS)
    assert one.counts["late_sound"] == 0
    assert abs(float(segmenter.steps[-1].audio[0]) - 5.0) < 1e-3


def test_after_a_reset_old_answers_are_gone_and_time_may_begin_anew() -> None:
    one = follower(StubSegmenter())
    assert one.frame_sync(picture(), 500 * MS) is not None
    assert one.frame_sync(picture(), 500 * MS) is None
    assert one.counts["out_of_order"] == 1
    one.reset()
    assert one.answer is None
    assert one.frame_sync(picture(), 0) is not None


@pytest.mark.parametrize("stray", [[], [3_600_000]])
def test_stamps_that_go_back_for_good_begin_anew(stray: list[int]) -> None:
    """Also those after a single one that was far ahead of them."""
    one = follower(StubSegmenter(), audio_wait_ms=0)
    for at in [900_000, 900_040, *stray]:
        assert one.frame_sync(picture(), at * MS) is not None
    back = [900_080 if stray else 0, 900_120 if stray else 40]
    assert [one.frame_sync(picture(), at * MS) for at in back] == [None] * 2
    answer = one.frame_sync(picture(), (back[-1] + 40) * MS)
    assert answer is not None
    assert answer.result.pts_ns == (back[-1] + 40) * MS
    assert one.frame_sync(picture(), (back[-1] + 80) * MS) is not None
    assert (one.counts["out_of_order"], one.counts["begun_anew"]) == (2, 1)


@pytest.mark.parametrize("late", [[9_960, 9_840, 9_920, 9_600, 9_700, 9_800], [5_000, 4_000, 3_000], [5_000, 5_040]])
def test_stamps_that_are_late_or_all_over_the_place_do_not(late: list[int]) -> None:
    one = follower(StubSegmenter(), audio_wait_ms=0)
    one.frame_sync(picture(), 10_000 * MS)
    assert [one.frame_sync(picture(), at * MS) for at in late] == [None] * len(late)
    assert one.frame_sync(picture(), 10_040 * MS) is not None
    assert (one.counts["out_of_order"], one.counts["begun_anew"]) == (len(late), 0)
    for n in range(5):
        assert one.frame_sync(picture(), (9_000 + 40 * n) * MS) is None
        assert one.frame_sync(picture(), (11_000 + 40 * n) * MS) is not None, "not in a row"


@pytest.mark.parametrize("sound_first", [True, False])
def test_sound_that_begins_anew_with_its_pictures_is_heard(sound_first: bool) -> None:
    """Five seconds over and over, of which the ring would still hold the first round."""
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter, audio_wait_ms=0)

    def show(tenths: int) -> None:
        one.frame_sync(picture(), tenths * 100 * MS)

    def play(tenths: int, value: float) -> None:
        one.sound(np.full(1_600, value, np.float32), tenths * 100 * MS)

    for loudness in (0.25, 0.5, 0.75):
        for tenths in range(50):
            for_both = [lambda at=tenths, by=loudness: play(at, by), lambda at=tenths: show(at)]
            for act in for_both if sound_first else reversed(for_both):
                act()
    assert one.counts["begun_anew"] == 2
    heard = segmenter.steps[-1]
    assert heard.frame.pts_ns == 4_900 * MS
    assert heard.audio_valid > 0.8
    assert float(heard.audio.max()) == 0.75


def test_a_frame_that_waited_for_sound_does_not_enter_the_stream_after_a_seek() -> None:
    segmenter = StubSegmenter()
    one = follower(segmenter, audio_wait_ms=60_000)
    one.expect_sound()
    one.start()
    one.frame(picture(), 500_000 * MS)
    wait_for(lambda: one._newest is None, 10, "the model")  # it waits for the frame's sound
    one.reset()
    one.frame(picture(), 0)
    wait_for(lambda: one.counts["answers"] == 1, 10, "an answer")
    one.stop()
    assert [pair.frame.pts_ns for pair in segmenter.steps] == [0]
    assert one.answer is not None
    assert one.answer.result.pts_ns == 0


def test_what_is_in_flight_may_be_waited_for() -> None:
    told: list[int] = []
    one = follower(StubSegmenter(), told=lambda _, answer: told.append(answer.result.frame_id))
    assert one.finish(0.0), "there is nothing"
    one.start()
    for n in range(5):
        one.frame(picture(), n * 40 * MS)
    assert one.finish(20.0)
    assert told[-1] == 4
    one.stop()


@pytest.mark.parametrize("end", ["stop", "flush", "fail", "nothing"])
def test_the_wait_for_an_answer_ends_when_none_will_come(end: str) -> None:
    """A frame that waits for its sound is let go, and one that waits in the model's is not waited for."""

    class Gated(StubSegmenter):
        gate, at_it = threading.Event(), threading.Event()

        def step_pair(self, pair, state):  # type: ignore[no-untyped-def]
            self.at_it.set()
            assert self.gate.wait(20)
            raise MemoryError("no memory left")

    one = follower(Gated(), audio_wait_ms=0)
    one.start()
    one.frame(picture(), 0)
    assert Gated.at_it.wait(20)
    one.frame(picture(), 40 * MS)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(one.finish(0.05 if end == "nothing" else 20.0)))
    waiting.start()
    if end == "flush":
        one.flush()
    elif end == "fail":
        Gated.gate.set()
    elif end == "stop":
        stopping = threading.Thread(target=one.stop)
        stopping.start()
    waiting.join(15)
    assert found == [end != "nothing"]
    Gated.gate.set()
    one.stop()
    if end == "stop":
        stopping.join(20)


@pytest.mark.parametrize("end", ["picture", "frames_over", "sound_over", "flush", "stop", "stuck", "paused"])
def test_sound_far_ahead_waits_for_pictures(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until one comes, or none will; and where they wait for it, it goes on, unless the whole is paused."""
    if end in ("stuck", "paused"):
        monkeypatch.setattr("avis_stream.interop.follower._STUCK_NS", 100 * MS)
    one = follower(StubSegmenter())
    one.expect_sound()
    one.frame(picture(), 0)
    assert one.await_pictures(0, lambda: True)
    assert one.await_pictures(7_000 * MS, lambda: True)
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(one.await_pictures(9_000 * MS, lambda: end != "paused")))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() == (end != "stuck")
    if end == "picture":
        one.frame(picture(), 40 * MS)
        waiting.join(0.2)
        assert waiting.is_alive(), "not yet far enough"
        one.frame(picture(), 2_000 * MS)
    elif end != "stuck":
        getattr(one, "stop" if end == "paused" else end)()
    waiting.join(15)
    assert found == [end != "stuck"]


class Clock:
    """Of the follower, in the place of `time` and of its waits: each look at it lets time go by."""

    def __init__(self, one: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns, self.one = 0, one
        self.end_ns = 3_600_000 * MS
        """The follower is stopped then."""
        monkeypatch.setattr("avis_stream.interop.follower.time.monotonic_ns", lambda: self.ns)
        monkeypatch.setattr(one._change, "wait", self.wait)
        one.reset()
        one.expect_sound()

    def wait(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        if self.ns > self.end_ns:
            self.one.stop()


def hear(one: Follower, seconds: Iterable[int]) -> list[bool]:
    """A second of sound at each of these times, each when it may come; whether pictures were not given up."""
    paced = []
    for at in seconds:
        paced.append(one.await_pictures(at * 1000 * MS, lambda: True))
        one.sound(np.ones(16_000, np.float32), at * 1000 * MS)
    return paced


def test_a_frame_that_downstream_holds_is_no_missing_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    one = follower(StubSegmenter(), audio_wait_ms=0)
    clock = Clock(one, monkeypatch)
    one.frame(picture(), 0)
    clock.end_ns = 60_000 * MS
    with one.in_hand():
        assert one.await_pictures(9_000 * MS, lambda: True)
    assert clock.ns > clock.end_ns, "it was held for as long as the frame"
    assert one.counts["let_go"] == 0


def test_sound_through_a_hole_in_the_pictures_is_still_there_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter, audio_wait_ms=0)
    clock = Clock(one, monkeypatch)
    one.frame_sync(picture(), 0)
    assert hear(one, range(9)) == [True] * 9
    assert clock.ns == 0, "nothing had to wait"
    assert hear(one, range(9, 31)) == [False] + [True] * 21, "told of once"
    assert 10_000 * MS < clock.ns < 16_000 * MS
    one.frame_sync(picture(), 29_000 * MS)
    assert segmenter.steps[-1].audio_valid == 1.0
    before = clock.ns
    assert all(hear(one, range(31, 38)))
    assert clock.ns == before
    assert all(hear(one, [38]))
    assert clock.ns > before + 10_000 * MS, "paced as in the beginning"


def test_sound_that_lies_far_ahead_of_its_pictures_is_let_go_as_they_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some files have them: each picture comes when twelve more seconds of sound have been taken."""
    segmenter = StubSegmenter(hop_seconds=0.001)
    one = follower(segmenter, audio_wait_ms=0)
    clock = Clock(one, monkeypatch)
    hear(one, range(13))
    for at in range(1, 100):
        one.frame_sync(picture(), at * 1000 * MS)
        hear(one, [at + 12])
    assert clock.ns < 40_000 * MS
    assert {pair.audio_valid for pair in segmenter.steps[1:]} == {1.0}


def test_where_no_picture_is_to_come_sound_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = follower(StubSegmenter(), audio_wait_ms=0)
    clock = Clock(one, monkeypatch)
    one.no_frame(10 * MS)
    assert all(hear(one, range(100, 109))), "sound begins later than that gap ends"
    one.no_frame(130_000 * MS)
    assert all(hear(one, range(109, 139)))
    assert clock.ns == 0


def test_a_flush_lets_go_a_frame_that_waits_for_sound_though_more_of_it_comes() -> None:
    segmenter = StubSegmenter()
    one = follower(segmenter, audio_wait_ms=60_000)
    one.expect_sound()
    one.start()
    one.frame(picture(), 500_000 * MS)
    wait_for(lambda: one._newest is None, 10, "the model")
    one.flush()
    one.sound(np.zeros(160, np.float32), 0)
    wait_for(lambda: one.counts["answers"] == 1, 10, "an answer")
    one.stop()
    assert one.counts["late_sound"] == 0


def test_a_pair_taken_just_before_a_seek_leaves_the_new_stream_untouched() -> None:
    class Seeking(Follower):
        def _think(self, pair, rates):  # type: ignore[no-untyped-def]
            self.reset()
            super()._think(pair, rates)

    segmenter = StubSegmenter()
    one = Seeking(segmenter, CLASSES, num_threads=1, audio_wait_ms=0, draw=lambda: False, wants_previous=False)
    assert one.frame_sync(picture(), 500 * MS) is None
    assert one._rates.state == 0, "as init_state made it"
    assert not segmenter.steps


def large(number: int) -> Plain:
    return Plain(np.full((48, 64, 3), 20 * number % 256, np.uint8))


def two_lanes(segmenter: OnlineSegmenter, **options: object) -> Follower:
    defaults = {"num_threads": 2, "audio_wait_ms": 0, "draw": lambda: False, "wants_previous": False}
    return Follower(segmenter, segmenter.model.classes, **(defaults | options))  # type: ignore[arg-type]


def give(one: Follower, numbers: Iterable[int]) -> None:
    """So many frames, each when the one before it is in hand."""
    for n in numbers:
        one.frame(large(n), n * 40 * MS)
        wait_for(lambda: one._newest is None, 20, "a lane")


def test_pictures_between_steps_are_worked_on_beside_each_other_and_answered_in_order() -> None:
    answers: list[tuple[int, int]] = []
    one = two_lanes(
        Together(small_model(), open_config()),
        told=lambda pair, answer: answers.append((pair.frame.frame_id, answer.number)),
    )
    one.start()
    try:
        give(one, range(5))
        assert one.finish(30)
    finally:
        one.stop()
    assert answers == [(n, n + 1) for n in range(5)]
    assert (one.counts["steps"], one.counts["refreshes"], one.counts["passed_over"]) == (1, 4, 0)


def test_a_picture_that_fails_on_its_lane_ends_the_answers() -> None:
    class Failing(OnlineSegmenter):
        def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
            raise ShapeError("no such picture")

    told: list[Exception] = []
    one = two_lanes(Failing(small_model(), open_config()), failed=told.append)
    one.start()
    try:
        give(one, range(2))
        wait_for(lambda: one.failure is not None, 20, "the failure")
        assert one.finish(5), "nothing more comes"
        one.frame(large(30), 30 * 40 * MS)  # a step, if there were any
    finally:
        one.stop()
    assert [str(error) for error in told] == ["no such picture"]
    assert one.counts["answers"] == 1


def test_a_seek_forgets_what_the_lanes_have_in_hand() -> None:
    segmenter = Held(small_model(), open_config())
    one = two_lanes(segmenter)
    one.start()
    try:
        give(one, range(3))
        assert all(segmenter.begun.acquire(timeout=20) for _ in range(2))
        one.reset()
        segmenter.let.set()
        one.frame(large(0), 0)
        assert one.finish(30)
    finally:
        one.stop()
    assert (one.counts["steps"], one.counts["refreshes"]) == (2, 0), "the step before the seek, and one after it"
    assert one.answer is not None
    assert one.answer.result.frame_id == 3


def test_who_is_told_may_end_it_from_a_lane() -> None:
    """As an application does that stops its pipeline in the handler of a message."""
    one = two_lanes(OnlineSegmenter(small_model(), open_config()), told=lambda pair, answer: stop(answer))
    ended = threading.Event()

    def stop(answer: Answer) -> None:
        if answer.number == 2:
            one.stop()
            ended.set()

    one.start()
    give(one, range(2))
    assert ended.wait(20), "it waits for its own end"
    wait_for(lambda: not any(t.name.startswith("avis ") for t in threading.enumerate()), 20, "the end of every thread")


def test_a_layer_draws_what_the_writer_draws() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    layer = layer_of(result(), CLASSES)
    assert layer is not None
    mine = image.copy()
    layer.blend(mine)
    drawn = draw_result(image, result(), CLASSES)
    assert np.abs(mine.astype(int) - drawn.astype(int)).max() <= 2  # rounding of 8 bits, twice
    assert (mine != image).any()


def test_where_nothing_sounds_nothing_is_drawn() -> None:
    empty = OnlineResult(
        pts_ns=0, frame_id=0, track_id=torch.zeros(0).long(), class_id=torch.zeros(0).long(), score=torch.zeros(0),
        sounding=torch.zeros(0).bool(), mask=torch.zeros(0, 4, 4).bool(), box=torch.zeros(0, 4),
    )  # fmt: skip
    assert layer_of(empty, CLASSES) is None
    assert not Answer(empty, 1, None).id_map().any()


def test_the_id_map_and_the_rows() -> None:
    ids = Answer(result(), 1, None).id_map()
    assert ids[15, 15] == 3
    assert ids[25, 35] == 3, "the better one is on top"
    assert ids[45, 60] == 3, "258 is shown as 3, for lack of bits"
    assert Answer(result(), 1, None).id_map(np.uint16)[45, 60] == 258
    rows = Row.all_of(result(), CLASSES)
    assert [(row.track_id, row.label, row.box) for row in rows] == [
        (3, "dog", (10, 10, 30, 20)), (258, "acoustic_guitar", (30, 20, 40, 30)),
    ]  # fmt: skip
