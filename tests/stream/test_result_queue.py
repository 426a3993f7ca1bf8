"""Results that wait: in order, bounded, and nothing that one was to tell is lost with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avis_stream.stream.result_queue import ResultQueue
from avis_stream.types import AVPair, Event, OnlineResult, VideoFrame


def result(number: int, *kinds: str) -> OnlineResult:
    none = torch.zeros(0, dtype=torch.int64)
    return OnlineResult(
        pts_ns=number, frame_id=number, track_id=none, class_id=none, score=torch.zeros(0), sounding=none.bool(),
        mask=torch.zeros(0, 4, 6, dtype=torch.bool), box=torch.zeros(0, 4),
        events=tuple(Event(kind=kind, track_id=1) for kind in kinds),  # type: ignore[arg-type]
    )  # fmt: skip


def put(results: ResultQueue, number: int, *kinds: str, **dropped: int) -> None:
    frame = VideoFrame(image=torch.zeros(3, 4, 6, dtype=torch.uint8), pts_ns=number, frame_id=number)
    results.put(
        result(number, *kinds), AVPair(frame=frame, audio=torch.zeros(16_000)),
        refreshed=False, latency_ms=None, dropped=dropped, ready_ns=10 * number,
    )  # fmt: skip


def test_results_come_out_in_order_with_what_happened_before_them() -> None:
    results = ResultQueue(4)
    results.announce(Event(kind="lost", source_id="cam"))
    put(results, 1, "born", stale=2)
    put(results, 2, stale=2)
    put(results, 3, stale=5, queue_full=1)
    assert len(results) == 3
    taken = [results.take() for _ in range(3)]
    found = [entry for entry in taken if entry is not None]
    assert [(one.frame_id, ready) for one, ready in found] == [(1, 10), (2, 20), (3, 30)]
    assert [[event.kind for event in one.events] for one, _ in found] == [["lost", "born"], [], []]
    assert [one.dropped_since_last for one, _ in found] == [{"stale": 2}, {}, {"stale": 3, "queue_full": 1}]
    assert results.take() is None


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_a_dropped_result_leaves_everything_to_the_next(capacity: int) -> None:
    results = ResultQueue(capacity)
    for number in range(1, 9):
        assert results.is_full == (number > capacity)
        put(results, number, f"event{number}", stale=number)
    assert len(results) == capacity
    assert results.unread == 8 - capacity
    taken = results.take()
    assert taken is not None
    first = taken[0]
    assert first.frame_id == 9 - capacity
    assert [event.kind for event in first.events] == [f"event{number}" for number in range(1, first.frame_id + 1)]
    assert first.dropped_since_last == {"stale": first.frame_id, "unread": 8 - capacity}


def test_what_is_left_when_it_is_closed_is_unread_for_good() -> None:
    results = ResultQueue(2)
    for number in range(3):
        put(results, number)
    assert results.unread == 1
    for _ in range(2):  # once is enough
        results.close()
        assert results.unread == 3
    assert results.take() is not None
    assert results.unread == 3, "a counter does not go down"
    for number in (3, 4):  # of steps that could not be cut off; the second one drops what has been counted
        put(results, number)
        assert results.unread == number + 1


def test_the_first_can_be_looked_at_and_stays() -> None:
    results = ResultQueue(2)
    assert results.first is None
    for number in range(2):
        put(results, number)
    assert results.first is results.first is not None
    taken = results.take()
    assert taken is not None
    assert taken[0].frame_id == 0
    assert results.first.frame_id == 1


def test_what_is_about_no_identity_is_of_the_source() -> None:
    results = ResultQueue(1)
    frame = VideoFrame(image=torch.zeros(3, 4, 6, dtype=torch.uint8), pts_ns=1, frame_id=1, source_id="cam")
    told = replace(
        result(1, "born"), events=(Event(kind="born", track_id=1), Event(kind="full"), Event(kind="resized"))
    )
    pair = AVPair(frame=frame, audio=torch.zeros(16_000))
    results.put(told, pair, refreshed=False, latency_ms=None, dropped={}, ready_ns=0)
    taken = results.take()
    assert taken is not None
    assert [(e.kind, e.source_id) for e in taken[0].events] == [("born", ""), ("full", "cam"), ("resized", "cam")]


def test_events_can_be_taken_without_a_result() -> None:
    results = ResultQueue(2)
    for number in range(300):
        results.announce(Event(kind="lost", source_id=str(number)))
    events = results.take_events()
    assert [event.source_id for event in events] == [str(number) for number in range(44, 300)]
    put(results, 1)
    taken = results.take()
    assert taken is not None
    assert taken[0].events == ()
