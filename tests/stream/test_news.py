"""What people are told of events: what concerns the source, and a state that lasts once."""

from __future__ import annotations

from avis_stream.stream.news import News, sentence
from avis_stream.types import Event


def full(number: int) -> Event:
    return Event(kind="full", detail=f"{number} without a place", source_id="cam")


def test_a_source_that_is_away_is_said_to_be_tried_again() -> None:
    away = Event(kind="unreachable", source_id="rtsp://h/x", detail="connection refused")
    assert sentence(away) == "rtsp://h/x: unreachable: connection refused; it is tried again"
    there = Event(kind="reconnected", source_id="rtsp://h/x", gap_seconds=1.25)
    assert sentence(there) == "rtsp://h/x: reconnected after 1.2 s"


def test_what_happens_to_one_identity_is_no_news() -> None:
    lost = Event(kind="lost", source_id="cam")
    assert News().of([Event(kind="born", track_id=1), lost, Event(kind="dead", track_id=1)]) == (lost,)


def test_a_full_table_is_told_when_it_begins_and_when_it_changes() -> None:
    news = News()
    assert news.of([full(1)], step=True) == (full(1),)
    assert news.of([]) == ()  # between steps nothing can change
    assert news.of([full(1)], step=True) == ()
    assert news.of([full(2)], step=True) == (full(2),)
    assert news.of([full(2), full(1)], step=True) == (full(1),)  # the first was of a result that nobody took
    assert news.of([], step=True) == ()
    assert news.of([full(1)], step=True) == (full(1),)
