"""Results on their way to whoever reads them: bounded, and nothing that one was to tell is lost with it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import fields, replace

from avis_stream.types import AVPair, Event, LiveResult, OnlineResult

_KEPT_EVENTS = 256


class ResultQueue:
    """Finished results, oldest first, each with the events and the losses since the one before it.

    Pure: whoever calls guards it, says what time it is, and does the waiting.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: results that may wait; a full queue drops its oldest."""
        self._capacity = capacity
        self._results: deque[tuple[LiveResult, int]] = deque()
        self._events: list[Event] = []
        """That no result has told yet."""
        self._told: Counter[str] = Counter()
        """Losses, by cause, that results have told."""
        self.unread = 0
        """Results that nobody took while it was open: dropped, or left when it was closed. It never goes down."""
        self._closed = False

    def __len__(self) -> int:
        return len(self._results)

    @property
    def first(self) -> LiveResult | None:
        """The oldest result, which stays; None: there is none."""
        return self._results[0][0] if self._results else None

    @property
    def is_full(self) -> bool:
        """Whether another result would drop the oldest."""
        return len(self._results) >= self._capacity

    def close(self) -> None:
        """Nobody is expected to take what is left, or comes yet: it is `unread`, though it can still be taken."""
        if not self._closed:
            self.unread += len(self._results)
        self._closed = True

    def announce(self, event: Event) -> None:
        """Leaves an event of a source to the next result."""
        self._events.append(event)
        del self._events[:-_KEPT_EVENTS]

    def take_events(self) -> tuple[Event, ...]:
        """Events that wait for a result; they are told with this."""
        events, self._events = tuple(self._events), []
        return events

    def put(
        self, result: OnlineResult, pair: AVPair, *,
        refreshed: bool, latency_ms: float | None, dropped: Mapping[str, int], ready_ns: int,
    ) -> None:  # fmt: skip
        """Adds a result at the end. Events of its own that are about no identity get the name of its source.

        Args:
            result: What the model found.
            pair: What it was given.
            refreshed: Whether it is between two steps: masks, and who sounds, are new; identities are not.
            latency_ms: Since the frame's stamp; None where that means nothing.
            dropped: Frames lost since the session began, by cause.
            ready_ns: When it was finished; handed back by `take`.
        """
        known = {f.name: getattr(result, f.name) for f in fields(OnlineResult)}
        source = pair.frame.source_id
        own = (e if e.track_id is not None or e.source_id else replace(e, source_id=source) for e in result.events)
        known["events"] = (*self.take_events(), *own)
        since = dict(Counter(dropped) - self._told)
        self._told = Counter(dropped)
        made = LiveResult(
            **known, pair=pair, latency_ms=latency_ms, refreshed=refreshed, dropped_since_last=since
        )  # fmt: skip
        lost = self._results.popleft()[0] if self.is_full else None
        self._results.append((made, ready_ns))
        self.unread += self._closed or lost is not None  # what is lost after that has been counted
        if lost is not None:
            self._hand_down(lost)

    def take(self) -> tuple[LiveResult, int] | None:
        """The oldest result, and when it was finished; None: there is none."""
        return self._results.popleft() if self._results else None

    def _hand_down(self, lost: LiveResult) -> None:
        """A result that nobody took leaves its events and its losses to the next one."""
        heir, ready_ns = self._results[0]
        dropped = Counter(lost.dropped_since_last) + Counter(heir.dropped_since_last) + Counter(unread=1)
        self._results[0] = (
            replace(heir, events=(*lost.events, *heir.events), dropped_since_last=dict(dropped)),
            ready_ns,
        )
