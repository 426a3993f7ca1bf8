"""Lanes: jobs beside each other, results in order, errors told once, no thread left."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from live_tools import StubSegmenter, wait_for
from small_model import open_config, small_model

from avis_stream.online import OnlineSegmenter
from avis_stream.stream.lanes import Lanes, beside, lanes_for


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not any(t.name.startswith("avis lane") for t in threading.enumerate()), 5, "the end of every lane")


def unexpected(error: Exception) -> None:
    raise AssertionError(str(error))


@pytest.mark.parametrize(
    ("threads", "wanted"), [(1, (1,)), (2, (1, 1)), (4, (1, 1, 1, 1)), (5, (2, 1, 1, 1)), (8, (2, 2, 2, 2))]
)
def test_threads_are_shared_out(threads: int, wanted: tuple[int, ...]) -> None:
    assert lanes_for(OnlineSegmenter(small_model(), open_config()), threads) == wanted
    assert lanes_for(StubSegmenter(), threads) == (threads,), "it does not say that it allows two at a time"


@pytest.mark.parametrize(("lanes", "on_lanes"), [(1, 0), (2, 8)])
def test_long_jobs_and_those_of_one_lane_are_done_by_whoever_gives_them(
    monkeypatch: pytest.MonkeyPatch, lanes: int, on_lanes: int
) -> None:
    monkeypatch.setattr("avis_stream.stream.lanes._QUICK_NS", -1)
    by: list[str] = []
    with Lanes[str]((1,) * lanes, unexpected) as given:
        for _ in range(12):
            given.put(lambda: threading.current_thread().name, by.append)
            given.drain()
    assert [name.startswith("avis lane") for name in by] == [True] * on_lanes + [False] * (12 - on_lanes)


def test_one_short_job_is_enough_to_go_on_in_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([9, 9, 9, 9, 1, 9, 9, 9, 9, 9])
    clock, now = threading.local(), [0]

    def monotonic_ns() -> int:
        """Goes on by the next of these between a job's beginning and its end."""
        if getattr(clock, "began", False):
            now[0] += next(took)
        clock.began = not getattr(clock, "began", False)
        return now[0]

    monkeypatch.setattr("avis_stream.stream.lanes._QUICK_NS", 5)
    monkeypatch.setattr("avis_stream.stream.lanes.time.monotonic_ns", monotonic_ns)
    by: list[str] = []
    with Lanes[str]((1, 1), unexpected) as given:
        for _ in range(10):
            given.put(lambda: threading.current_thread().name, by.append)
            given.drain()
    assert all(name.startswith("avis lane") for name in by)


def test_results_come_in_order_though_the_second_is_there_first() -> None:
    second_is_there, came = threading.Event(), []

    def first() -> int:
        assert second_is_there.wait(10), "the second job does not run beside the first"
        return 1

    def second() -> int:
        second_is_there.set()
        return 2

    with Lanes[int]((1, 1), unexpected) as lanes:
        for work in (first, second):
            lanes.wait()
            lanes.put(work, came.append)
        lanes.drain()
        assert came == [1, 2]


def test_whoever_gives_waits_for_a_free_lane() -> None:
    gate, chosen = threading.Event(), []

    def give(lanes: Lanes[int]) -> None:
        for n in range(3):
            lanes.wait()
            chosen.append(n)
            lanes.put(lambda: int(gate.wait(10)), lambda made: None)

    with Lanes[int]((1, 1), unexpected) as lanes:
        giver = threading.Thread(target=give, args=(lanes,))
        giver.start()
        wait_for(lambda: len(chosen) == 2, 5, "two jobs")
        giver.join(0.05)
        assert chosen == [0, 1], "a third would wait in a queue and grow old"
        gate.set()
        giver.join(10)
        assert chosen == [0, 1, 2]


@pytest.mark.parametrize("fails", ["work", "hand_on"])
def test_an_error_is_told_once_and_ends_the_handing_on(fails: str) -> None:
    told: list[Exception] = []
    came: list[int] = []

    def bad(*_: int) -> int:
        raise ValueError("no")

    with Lanes[int]((1, 1), told.append) as lanes:
        for n in range(5):
            work: Callable[[], int] = bad if n >= 2 and fails == "work" else (lambda n=n: n)  # type: ignore[misc]
            hand_on: Callable[[int], object] = bad if n >= 2 and fails == "hand_on" else came.append
            lanes.wait()
            lanes.put(work, hand_on)
        lanes.drain()
    assert came == [0, 1]
    assert [str(error) for error in told] == ["no"]


def test_nobody_waits_for_ever_because_telling_of_an_error_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []
    monkeypatch.setattr(threading, "excepthook", ended.append)

    def bad(*_: object) -> int:
        raise ValueError("no")

    with Lanes[int]((1, 1), bad) as lanes:
        for _ in range(2):
            lanes.put(bad, bad)
        lanes.drain()
    assert len(ended) == 1, "one lane is gone"


def test_what_was_begun_is_finished_when_the_context_is_left() -> None:
    came: list[int] = []
    with Lanes[int]((1, 1), unexpected) as lanes:
        for n in range(2):
            lanes.put(lambda n=n: n, came.append)  # type: ignore[misc]
    assert came == [0, 1]


def test_torch_gets_the_threads_of_a_lane_there_and_only_there() -> None:
    before, found = torch.get_num_threads(), []
    with Lanes[int]((before + 2, before + 2), unexpected) as lanes:
        lanes.put(torch.get_num_threads, found.append)
        lanes.drain()
        assert torch.get_num_threads() == before
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
    assert found == [before + 2, before]


@pytest.mark.parametrize("shares", [(1,), (1, 1), (1, 1, 1)], ids=str)
def test_beside_is_map(shares: tuple[int, ...]) -> None:
    assert list(beside(lambda n: n * n, range(20), shares)) == [n * n for n in range(20)]
    assert list(beside(lambda n: n * n, [], shares)) == []


def test_beside_raises_what_its_work_raises_after_what_came_before() -> None:
    came: list[int] = []
    with pytest.raises(ZeroDivisionError):
        came.extend(beside(lambda n: 12 // (3 - n), range(9), (1, 1)))
    assert came == [4, 6, 12]


def test_beside_can_be_left() -> None:
    for made in beside(lambda n: n, itertools.count(), (1, 1)):
        if made == 5:
            break
