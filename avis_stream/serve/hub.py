"""Takes results off a session and has the newest ready for any number of viewers, none of whom it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

from avis_stream.serve.message import drawn_picture_of, ids_of, is_text, packed, picture_of, viewer_record
from avis_stream.stream.news import TROUBLE, News, sentence
from avis_stream.stream.session import Session
from avis_stream.types import Event, LiveResult
from avis_stream.writers.colors import identity_color
from avis_stream.writers.jsonl import result_record

_HISTORY_SECONDS = 60.0
_EVENTS = 50
_STALLED_SECONDS = 10.0


class Slot:
    """What waits for one viewer, in the order in which it came: texts, and of pictures only the newest.

    So that nothing overtakes: after the text that says that all is over there is nothing more.
    """

    def __init__(self, kind: str, *, most: int = _EVENTS) -> None:
        """`most`: texts that may wait; when they are too many the oldest go."""
        self.kind = kind
        """`ws`, `mjpeg` or `lines`."""
        self._most = most
        self._ready = asyncio.Event()
        self._waiting: deque[bytes] = deque()

    def put(self, message: bytes) -> None:
        """Adds a message, in the place of one that is too old now; on the loop's thread."""
        text = is_text(message)
        alike = [other for other in self._waiting if is_text(other) == text]
        if len(alike) >= (self._most if text else 1):
            self._waiting.remove(alike[0])
        self._waiting.append(message)
        self._ready.set()

    async def take(self, timeout: float) -> bytes | None:
        """The next message; None: nothing is there, though all that waited for the loop has been put in."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), timeout)
        if not self._ready.is_set():  # that time is up says nothing: with 0 Python 3.11 has not even looked
            return None
        message = self._waiting.popleft()
        if not self._waiting:
            self._ready.clear()
        return message


class LineSlot(Slot):
    """For programs: some lines may wait; when they are too many the oldest go, which their `frame_id`s show."""

    def __init__(self) -> None:
        super().__init__("lines", most=256)


class Hub:
    """One session, many viewers."""

    def __init__(self, session: Session, classes: Sequence[str]) -> None:
        self.session, self.classes = session, tuple(classes)
        self._id = secrets.token_hex(8)
        """Tells viewers that come back whether the identities that they know are those of this session."""
        self.error: str | None = None
        """Why the session ended, unless it ended well."""
        self._trouble: dict[str, str] = {}
        """What keeps each source away that is at the moment."""
        self.over = False
        self.last_result_at: float | None = None
        """On the monotonic clock."""
        self._slots: set[Slot] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._history: deque[tuple[float, list[list[Any]]]] = deque()
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._news = News()

    # --- on the loop -------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the session and the thread that reads it."""
        self._loop = loop
        self.session.start()
        self._thread = threading.Thread(target=self._run, name="avis hub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends both."""
        self._stop.set()
        self.session.stop()
        if self._thread is not None:
            self._thread.join(2.0)

    def join(self, slot: Slot) -> Slot:
        """A viewer comes."""
        self._slots.add(slot)
        return slot

    def leave(self, slot: Slot) -> None:
        """A viewer goes."""
        self._slots.discard(slot)

    @property
    def viewers(self) -> int:
        """How many watch."""
        return len(self._slots)

    @property
    def seconds_since_result(self) -> float | None:
        """None: there was none yet."""
        return None if self.last_result_at is None else time.monotonic() - self.last_result_at

    @property
    def state(self) -> Literal["ok", "no results", "over"]:
        """`no results`: none for 10 s, or none yet."""
        age = self.seconds_since_result
        return "over" if self.over else "ok" if age is not None and age < _STALLED_SECONDS else "no results"

    @property
    def reason(self) -> str | None:
        """Why no results come, as far as that is known."""
        if self.error is not None or self.state != "no results":
            return self.error
        return "; ".join(self._trouble.values()) or None

    def hello(self) -> dict[str, Any]:
        """What a viewer needs to know of the time before it came."""
        return {
            "hello": True, "session": self._id, "sources": self.session.source_ids,
            "history_seconds": _HISTORY_SECONDS,
            "history": [[pts, sounding] for pts, sounding in list(self._history)], "events": list(self._events),
            "away": bool(self._trouble), "over": self.over, "error": self.error,
        }  # fmt: skip

    # --- on its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                result = self.session.next(0.5)  # raises what ended the session, after its last result
                if result is not None:
                    self._take(result)
                    continue
                self._tell(self._news.of(self.session.take_events()))
                if self.session.over:
                    break
        except Exception as error:  # a source that is missing for good; the page says so
            self.error = str(error)
        self.over = True
        self._publish("ws", lambda: json.dumps(self.hello()).encode())

    def _take(self, result: LiveResult) -> None:
        self.last_result_at = time.monotonic()
        self._tell(self._news.of(result.events, step=not result.refreshed))
        sounding = [
            [int(i), self.classes[int(c)], identity_color(int(i))]
            for i, c, s in zip(result.track_id, result.class_id, result.sounding, strict=True) if s
        ]  # fmt: skip
        self._history.append((round(result.pts_seconds, 3), sounding))
        while self._history[0][0] < result.pts_seconds - _HISTORY_SECONDS:
            self._history.popleft()
        # Nothing is encoded that nobody looks at, and everything once for all.
        self._publish("lines", lambda: self._line(result))
        self._publish("ws", lambda: packed(
            viewer_record(result, self.classes, self.session.stats()), picture_of(result), ids_of(result)
        ))  # fmt: skip
        self._publish("mjpeg", lambda: drawn_picture_of(result, self.classes))

    def _line(self, result: LiveResult) -> bytes:
        record = result_record(
            result.pair, result, self.classes, latency_ms=result.latency_ms, dropped=result.dropped_since_last
        )
        return (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()

    def _tell(self, events: Sequence[Event]) -> None:
        told = [
            {"at": time.time(), "kind": e.kind, "source": e.source_id, "detail": e.detail, "gap": e.gap_seconds}
            for e in events
        ]  # fmt: skip
        self._events.extend(told)
        for event in events:
            if event.kind in TROUBLE:
                self._trouble[event.source_id] = sentence(event)
            elif event.kind in ("connected", "reconnected"):
                self._trouble.pop(event.source_id, None)
        if told:
            self._publish("ws", lambda: json.dumps({"events": told, "away": bool(self._trouble)}).encode())

    def _publish(self, kind: str, make: Callable[[], bytes]) -> None:
        slots = [slot for slot in list(self._slots) if slot.kind == kind]
        if not slots or self._loop is None or self._loop.is_closed():
            return
        message = make()

        def put() -> None:
            for slot in slots:
                slot.put(message)

        self._loop.call_soon_threadsafe(put)
