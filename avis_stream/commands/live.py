"""`avis-stream live`: what sounds in front of a camera, as a table, as JSON lines and as a film."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from avis_stream.commands.output import aligned
from avis_stream.errors import ConfigError, SourceError
from avis_stream.files import atomic_path
from avis_stream.sources.address import Address, audio_address, video_address
from avis_stream.stream.news import News, sentence
from avis_stream.stream.session import Session
from avis_stream.stream.stats import SessionStats
from avis_stream.types import AVPair, Event, LiveResult, OnlineResult
from avis_stream.writers.base import Writer, Writers
from avis_stream.writers.jsonl import JsonlWriter
from avis_stream.writers.recording import RecordingWriter, check_film_name

_TABLE_SECONDS = 0.5
_LINE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What a live run writes, and for how long."""

    json: str | None = None
    """JSON lines: a file to add to, or `-` for standard output. Each line is there at once."""
    save: Path | None = None
    """A film with masks and sound, complete however the run ends."""
    summary: Path | None = None
    """All statistics at the end, as JSON."""
    duration_seconds: float | None = None
    """Of the recording where it is not played at its own pace, else of the clock."""

    def check(self, video: str, audio: str | None) -> None:
        """Raises ConfigError if a name makes no sense, or a file would be lost: one that is read, or written as well.

        Args:
            video: Address of the pictures that are read. What a pipeline reads is not known.
            audio: Of the sound.
        """
        named = {"--json": self.json, "--save": self.save, "--summary": self.summary}
        wanted = {option: Path(target).resolve() for option, target in named.items() if target not in (None, "-")}
        addresses = (video_address(video), audio_address(audio))
        read = [Path(one.text).resolve() for one in addresses if isinstance(one, Address) and one.kind == "file"]
        for n, (option, target) in enumerate(wanted.items()):
            if any(_same(target, path) or path in target.parents for path in read):
                raise ConfigError(f"{option} must be another file than what is read, got {target}; it would be lost")
            if any(_same(target, other) for other in list(wanted.values())[:n]):
                raise ConfigError(f"{option} must be a file of its own, {target} is written to by another option")
            if target.is_dir():
                raise ConfigError(f"{option} must be a file, got the folder {target}; name a file in it")
        if self.save is not None:
            check_film_name(self.save)
        if self.json == "-" and sys.stdout is None:
            raise ConfigError("--json - must have a standard output, it is closed; give a file")


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file of which something could be lost."""
    if one.exists() and other.exists():
        return one.samefile(other) and not one.is_char_device()
    return one == other


def run_live(
    session: Session, classes: Sequence[str], options: LiveOptions, screen: TextIO = sys.stderr
) -> SessionStats:
    """Runs a session until it ends or fails, its time is over, or Ctrl-C or SIGTERM comes.

    What is asked for is written in each case: a run of hours cannot be had again.

    Args:
        session: Not begun.
        classes: Class names by `class_id`.
        options: What to write.
        screen: For the table; only where it is a terminal does the table stay in its place.
    Raises:
        SourceError: A source cannot be read, now or ever.
    """
    view = _View(screen, classes)
    log = logging.getLogger("avis_stream.stream.session")
    own = tuple(f"{source}: " for source in session.source_ids)

    def told_elsewhere(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(own)  # the view tells what happens to these

    with ExitStack() as stack:
        log.addFilter(told_elsewhere)
        stack.callback(log.removeFilter, told_elsewhere)
        interrupted = stack.enter_context(_gentle_interrupt())
        writers = stack.enter_context(Writers(list(_writers(options, classes)), keep=True))
        stack.enter_context(session)
        try:
            for result in _results(session, options.duration_seconds, view, interrupted):
                writers.write(result.pair, result)
                view.show(result, session)
        finally:
            session.stop()
            stats = session.stats()
            view.end(stats)
            if options.summary is not None:
                _write_summary(options.summary, session, stats)
    if stats.frames_in == 0 and not interrupted.is_set():
        raise SourceError(f"no picture came from {session.source_ids[0]} in {stats.seconds:.0f} s")
    return stats


def _write_summary(target: Path, session: Session, stats: SessionStats) -> None:
    record = {"sources": session.source_ids, "policy": session.config.policy} | stats.as_json()
    with atomic_path(target) as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _writers(options: LiveOptions, classes: Sequence[str]) -> Iterator[Writer]:
    if options.json is not None:
        yield _LiveLines(options.json, classes)
    if options.save is not None:
        yield RecordingWriter(options.save, classes)


class _LiveLines:
    """JSON lines with the two fields that only live results have, each in its place as soon as it is known."""

    def __init__(self, target: str, classes: Sequence[str]) -> None:
        self._file = None if target == "-" else _to_add_to(Path(target))
        self._lines = JsonlWriter(self._file or sys.stdout, classes)

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Writes one line."""
        assert isinstance(result, LiveResult)
        self._lines.write(pair, result, latency_ms=result.latency_ms, dropped=result.dropped_since_last)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    abort = close


def _to_add_to(path: Path) -> TextIO:
    """The file, open at its end; a line that a crash cut off there is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as there:
            there.seek(-1, os.SEEK_END)
            cut_off = there.read() != b"\n"
    file = path.open("a", encoding="utf-8")
    if cut_off:
        file.write("\n")
    return file


@contextmanager
def _gentle_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM sets the event, so that what is being written gets whole; a second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, _: object) -> None:
        event.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _results(
    session: Session, seconds: float | None, view: _View, interrupted: threading.Event
) -> Iterator[LiveResult]:
    """Until the time is over, or it is interrupted: what waits then is still taken, what comes later is not."""
    limit = math.inf if seconds is None else seconds
    end = time.monotonic() + limit if session.live else math.inf
    first: float | None = None
    while not session.over and not interrupted.is_set() and time.monotonic() < end:
        ahead = session.peek(_TABLE_SECONDS)
        if ahead is None:
            view.tell(session.take_events())
            continue
        first = ahead.pts_seconds if first is None else first
        if not session.live and ahead.pts_seconds - first >= limit:
            return
        if (result := session.next(0)) is not None:
            yield result
    for _ in range(session.config.max_unread):  # the session goes on meanwhile
        if (result := session.next(0)) is None:
            return
        yield result


class _View:
    """A table that is drawn over itself on a terminal, and a line now and then elsewhere."""

    def __init__(self, screen: TextIO, classes: Sequence[str]) -> None:
        self._screen, self._classes = screen, classes
        self._terminal = screen.isatty()
        self._news = News()
        self._lines = 0
        self._next = time.monotonic() + (0 if self._terminal else _LINE_SECONDS)

    def tell(self, events: Sequence[Event], *, step: bool = False) -> None:
        """Says what happened to sources; `step` as `News.of` has it."""
        for event in self._news.of(events, step=step):
            self._print(sentence(event))

    def show(self, result: LiveResult, session: Session) -> None:
        """Draws the table, if it is time."""
        self.tell(result.events, step=not result.refreshed)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_TABLE_SECONDS if self._terminal else _LINE_SECONDS)
        stats = session.stats()
        if not self._terminal:
            self._print(_line(stats))
            return
        self._clear()
        text = f"{_line(stats)}\n\n{self._table(result)}\n"
        self._screen.write(text)
        self._screen.flush()
        self._lines = text.count("\n")

    def end(self, stats: SessionStats) -> None:
        """Sums up."""
        stages = ", ".join(f"{name} {s.p50:.0f}/{s.p95:.0f}/{s.p99:.0f}" for name, s in stats.stages.items() if s.count)
        self._print(_line(stats))
        self._print(
            f"{stats.frames_in} frames in {stats.seconds:.1f} s: {stats.steps} steps, {stats.refreshes} refreshes, "
            f"{stats.dropped_frames} dropped {dict(stats.dropped)}; ms p50/p95/p99: {stages}"
        )

    def _table(self, result: LiveResult) -> str:
        rows = [["id", "class", "score", "sounding"]]
        for n in range(len(result)):
            label = self._classes[int(result.class_id[n])].replace("_", " ")
            sounds = "yes" if result.sounding[n] else ""
            rows.append([f"#{int(result.track_id[n])}", label, f"{float(result.score[n]):.2f}", sounds])
        return aligned(rows) if len(rows) > 1 else "nothing is known yet"

    def _print(self, text: str) -> None:
        self._clear()
        self._screen.write(text + "\n")
        self._screen.flush()

    def _clear(self) -> None:
        if self._lines:
            self._screen.write(f"\x1b[{self._lines}A\x1b[J")
            self._lines = 0


def _line(stats: SessionStats) -> str:
    latency = f"latency p95 {stats.latency.p95:.0f} ms, " if stats.latency.count else ""
    return (
        f"{stats.seconds:.0f} s: in {stats.fps_in:.1f} fps, masks {stats.masks_hz:.1f} Hz, "
        f"steps {stats.steps_hz:.1f} Hz, {latency}dropped {stats.dropped_frames}, reconnects {stats.reconnects}"
    )
