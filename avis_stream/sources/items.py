"""What sources hand out, from threads of their own: frames and sound on the session clock, and what happens to them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from avis_stream.errors import AvisStreamError, SourceError
from avis_stream.threads import ComputingThread
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AudioChunk, AVPair, Event, VideoFrame

_ITERATOR_SECONDS = 2.0
"""How long an iterator of the caller's that waits may hold up the end of the program."""


@dataclass(frozen=True, slots=True)
class SoundOver:
    """No sound comes, for now or for good: no frame should wait for it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """So many frames were lost before anything could be done with them."""

    count: int
    cause: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The source is at its end."""

    error: AvisStreamError | None = None
    """Why, unless it ended well."""


Item = VideoFrame | AudioChunk | AVPair | Event | SoundOver | Lost | Finished
Post = Callable[[object], bool]
"""Hands something to the session, waiting while it is busy; False: the session is over."""


class SessionClock:
    """Nanoseconds since the session began."""

    def __init__(self) -> None:
        self.origin_ns = time.monotonic_ns()
        """Of the session, on the monotonic clock."""
        self._wall = time.time()

    def now(self) -> int:
        """Session time."""
        return time.monotonic_ns() - self.origin_ns

    def wall(self, pts_ns: int) -> float:
        """Seconds since the Unix epoch at a session time."""
        return round(self._wall + pts_ns / NANOSECONDS, 6)


class Source(Protocol):
    """What a session needs of a source."""

    @property
    def source_id(self) -> str: ...

    @property
    def live(self) -> bool: ...

    @property
    def gives_pictures(self) -> bool: ...

    @property
    def gives_sound(self) -> bool: ...

    def start(self, clock: SessionClock, post: Post) -> None:
        """Begins; whatever is posted comes back through `receive`, on the session's own thread."""

    def receive(self, what: object, now_ns: int) -> Iterable[Item]:
        """Makes items of what was posted."""

    def tick(self, now_ns: int) -> Iterable[Item]:
        """Is called every few hundredths of a second."""

    def stop(self) -> None:
        """Tells every thread and process to end, and waits for none. Harmless when nothing runs."""

    def join(self, timeout: float) -> None:
        """Returns when all that `stop` told to end is gone, or after `timeout` seconds. Harmless when nothing runs."""


class ItemSource:
    """Items from an iterator in order of time: a recording, a made scene, or the caller's own frames and sound."""

    def __init__(
        self, source_id: str, items: Iterable[Item], *, realtime: bool, gives_pictures: bool, gives_sound: bool,
        own_clock: bool = False,
    ) -> None:  # fmt: skip
        """Takes the iterator; it is read from a thread.

        Args:
            source_id: Name for results and events.
            items: May wait in `next`; a session that ends meanwhile leaves its thread there, until it returns.
            realtime: Hand each out when its time has come; else as fast as they are taken.
            gives_pictures: Whether there are frames or pairs among them.
            gives_sound: Whether there is sound among them.
            own_clock: With `realtime`: stamps are of `time.monotonic_ns()`, and items come when they come.
        """
        self.source_id = source_id
        self.live = realtime
        self.gives_pictures = gives_pictures
        self.gives_sound = gives_sound
        self._items = items
        self._own_clock = own_clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, clock: SessionClock, post: Post) -> None:
        """Starts the thread."""
        self._thread = ComputingThread(
            partial(self._run, clock, post), end=self.stop, name=f"avis source {self.source_id}",
            patience_seconds=_ITERATOR_SECONDS,
        )  # fmt: skip
        self._thread.start()

    def receive(self, what: object, now_ns: int) -> Iterable[Item]:
        """Items as they are."""
        return (what,)  # type: ignore[return-value]

    def tick(self, now_ns: int) -> Iterable[Item]:
        """Nothing."""
        return ()

    def stop(self) -> None:
        """The thread ends after the item at hand."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Waits for the thread."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self, clock: SessionClock, post: Post) -> None:
        try:
            for item in self._paced(clock) if self.live else self._items:
                if self._stop.is_set() or not post(item):
                    return
            post(Finished())
        except AvisStreamError as error:
            post(Finished(error))
        except BaseException as error:  # as generators of the caller's may raise anything
            wrapped = SourceError(f"{self.source_id}: frames must come, {type(error).__name__} came: {error}")
            wrapped.__cause__ = error
            post(Finished(wrapped))
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()

    def _paced(self, clock: SessionClock) -> Iterator[Item]:
        begin: int | None = -clock.origin_ns if self._own_clock else None
        for item in self._items:
            time_ns = begin_of(item)
            if time_ns is None:
                yield item
                continue
            if begin is None:
                begin = clock.now() - time_ns
            if not self._own_clock:
                due = begin + end_of(item)
                if self._stop.wait(max(0, due - clock.now()) / NANOSECONDS):
                    return
            yield moved(item, begin, clock)


def begin_of(item: Item) -> int | None:
    """Stamp of an item; None for those without time."""
    if isinstance(item, AVPair):
        return item.frame.pts_ns
    return item.pts_ns if isinstance(item, (VideoFrame, AudioChunk)) else None


def end_of(item: Item) -> int:
    """When an item has happened as a whole: sound is there only once it has sounded."""
    if isinstance(item, AVPair):
        return item.end_ns or item.frame.pts_ns
    if isinstance(item, AudioChunk):
        return item.pts_ns + len(item.samples) * NANOSECONDS // SAMPLE_RATE
    return item.pts_ns if isinstance(item, VideoFrame) else 0


def moved(item: Item, by_ns: int, clock: SessionClock) -> Item:
    """The item at another time."""
    if isinstance(item, AVPair):
        frame = item.frame
        time_ns = frame.pts_ns + by_ns
        frame = replace(frame, pts_ns=time_ns, wall_utc=clock.wall(time_ns))
        return replace(item, frame=frame, end_ns=None if item.end_ns is None else item.end_ns + by_ns)
    if isinstance(item, VideoFrame):
        return replace(item, pts_ns=item.pts_ns + by_ns, wall_utc=clock.wall(item.pts_ns + by_ns))
    return replace(item, pts_ns=item.pts_ns + by_ns) if isinstance(item, AudioChunk) else item


def interleaved(frames: Iterable[VideoFrame | AVPair], sound: Iterable[AudioChunk] | None) -> Iterator[Item]:
    """Frames and sound in order of time, sound first, so that no frame waits longer than it must.

    Where the sound ends it is said at once, since all later frames would wait for it.
    """
    end: tuple[Item, ...] = (SoundOver(),)
    chunks: Iterator[Item] = itertools.chain(sound or (), end)
    chunk = next(chunks, None)
    end_ns = 0
    for frame in frames:
        time_ns = begin_of(frame) or 0
        while chunk is not None and (begin_of(chunk) or 0) <= time_ns:
            yield chunk
            chunk = next(chunks, None)
        yield frame
        end_ns = time_ns + NANOSECONDS
    while chunk is not None and (begin_of(chunk) or 0) < end_ns:
        yield chunk
        chunk = next(chunks, None)
    if chunk is not None:
        yield SoundOver()
