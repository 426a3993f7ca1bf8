"""`Session`: sources, alignment, policy and model, each on its thread; results come out in order, in bounded time.

sources' threads --post--> inbox --ingest thread--> PairQueue --model thread--> ResultQueue --> whoever iterates
(processes)                (bounded)  Ingest                    TwoRates, Lanes  (bounded)

Threads and waits are here and in `lanes`; what is computed is in pure parts: `ingest`, `policy`, `two_rates`,
`result_queue`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from avis_stream.errors import AvisStreamError, SourceError
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.sources.address import video_address
from avis_stream.sources.items import Finished, Item, SessionClock, SoundOver, Source
from avis_stream.sources.live import LiveSource, without_passwords
from avis_stream.sources.open import Audio, Backend, Video, open_sources
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.stream.cores import model_threads
from avis_stream.stream.ingest import Ingest
from avis_stream.stream.lanes import Lanes, lanes_for
from avis_stream.stream.news import TROUBLE, sentence
from avis_stream.stream.policy import Policy
from avis_stream.stream.result_queue import ResultQueue
from avis_stream.stream.session_config import SessionConfig
from avis_stream.stream.stats import SessionStats, StatsKeeper
from avis_stream.stream.two_rates import RatesConfig, Segmenter, TwoRates
from avis_stream.threads import ComputingThread
from avis_stream.types import NANOSECONDS, AVPair, Event, LiveResult, OnlineResult, VideoFrame

Made = TypeVar("Made")
logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_STOP_SECONDS = 2.0
_INBOX = 64
_NOT_BEGUN = "a Session must be started before it has results; write: with session: ..."


class Session:
    """A live run: start it, iterate over it, stop it; or use it as a context manager; or only iterate over it.

    Several sessions may share one model.

    Args:
        model: From `avs.load`, or an `OnlineSegmenter` or anything with its methods.
        video: As in `open_sources`: camera, file, address, `gst:` pipeline, `synthetic://...`, own frames.
        audio: `source`, `mic`, `mic:NAME`, a file, own sound, or None.
        config: None: the usual.
        online: Settings of the tracker; None: those for live use.
        supervision: How patient to be with live sources; None: the usual.
        realtime: Of files and own frames; None: files on demand, but at their pace with `policy="latest"`.
        fps: Frames a second of a file to look at; None: all.
        backend: `auto`, `gstreamer` or `ffmpeg`.
        sources: Instead of `video` and `audio`: sources of your own making.

    Raises:
        ConfigError: Settings or addresses that make no sense.
        MediaError: A file that cannot be read.
    Example:
        >>> with Session(model, "synthetic://flashbeep?seconds=2") as session:
        ...     for result in session:
        ...         print(result.pts_seconds, result.track_id.tolist(), session.stats().dropped_frames)
    """

    def __init__(
        self, model: AVISM | Segmenter, video: Video = "0", audio: Audio = "source", *,
        config: SessionConfig | None = None, online: OnlineConfig | None = None,
        supervision: SupervisorConfig | None = None, realtime: bool | None = None, fps: float | None = None,
        backend: Backend = "auto", sources: Sequence[Source] | None = None,
    ) -> None:  # fmt: skip
        self.config = config or SessionConfig()
        self._segmenter: Segmenter = OnlineSegmenter(model, online) if isinstance(model, AVISM) else model
        if realtime is None and self.config.policy == "latest" and isinstance(video, (str, int, Path)):
            realtime = True if video_address(video).kind == "file" else None
        wants_previous = bool(getattr(model, "wants_previous", True))
        self._sources = list(sources) if sources is not None else open_sources(
            video, audio, realtime=realtime, fps=fps, backend=backend, previous=wants_previous,
            supervision=supervision,
        )  # fmt: skip
        self.live = any(source.live for source in self._sources)
        self._ingest = Ingest(self._sources, self.config, live=self.live, wants_previous=wants_previous)
        self._rates = TwoRates(self._segmenter, RatesConfig(
            refresh=self.config.refresh, keep_seconds=self.config.keep_seconds, on_gap=self.config.on_gap
        ))  # fmt: skip
        self._stats = StatsKeeper()
        self._results = ResultQueue(self.config.max_unread)
        self._clock = SessionClock()
        """From the moment on that it is started."""
        self._inbox: queue.Queue[tuple[Source, object]] = queue.Queue(_INBOX)
        self._change = threading.Condition()
        """Guards and announces: the pair queue, results and their events, counters, `_state`."""
        self._dropped: Counter[str] = Counter()
        self._model_busy = 0
        self._blocked_ns = 0
        """How long the ingest thread could not look at what its sources posted, since the model had to come first."""
        self._state: Literal["new", "running", "draining", "over"] = "new"
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    # --- for the caller ----------------------------------------------------------------------------------------------

    @property
    def source_ids(self) -> list[str]:
        """Names of the sources; without passwords."""
        return [source.source_id for source in self._sources]

    def start(self) -> Session:
        """Opens the sources and begins; a session runs once.

        Raises:
            AvisStreamError: It has begun before.
        """
        if self._state != "new":
            raise AvisStreamError("a Session must be new to be started, this one has begun; make another")
        self._clock = SessionClock()
        self._state = "running"
        try:
            for source in self._sources:
                source.start(self._clock, lambda what, source=source: self._post(source, what))  # type: ignore[misc]
        except BaseException:
            self.stop()  # those that have begun; nobody else would
            raise
        for name, run in (("ingest", self._take_in), ("model", self._run_model)):
            thread = ComputingThread(partial(self._guarded, run), end=partial(self._fail, None), name=f"avis {name}")
            self._threads.append(thread)
            thread.start()
        return self

    def stop(self) -> None:
        """Ends every thread and process; returns when they are gone, after 2 s at the latest. Harmless when they are.

        Results that wait can still be taken, but count as `unread`, as those do that come yet.

        A step of the model that is under way is not cut off. What has not ended by then, such a step or an iterator of
        the caller's that waits, is left alone: its thread ends when it can. The end of the program waits for such a
        step (`threads.py`), hardly for such an iterator.
        """
        deadline = time.monotonic() + _STOP_SECONDS  # one for all, however many are slow to go
        with self._change:
            self._state = "over"
            self._results.close()
            self._change.notify_all()
        for source in self._sources:
            source.stop()
        # The thread that takes in comes first: what it was just opening it stops itself. The model may be slowest.
        ending: Sequence[Source | threading.Thread] = (*self._threads[:1], *self._sources, *self._threads[1:])
        for one in ending:
            if one is not threading.current_thread():
                one.join(max(0.0, deadline - time.monotonic()))

    def stats(self) -> SessionStats:
        """What was measured so far."""
        stats, now = self._stats, self._clock.now() if self._threads else 0
        with self._change:
            # What is on its way to the model when the end has come stays there. Results do not tell of it: it is later
            # than they are.
            left = self._ingest.waiting if self._state == "over" else 0
            dropped = self._all_dropped() + Counter(stopped=left)
            waiting = self._ingest.waiting - left + self._model_busy
        steps, refreshes = stats.count("steps"), stats.count("refreshes")
        return SessionStats(
            seconds=round(now / NANOSECONDS, 3),
            frames_in=stats.count("frames") + self._ingest.lost,
            steps=steps,
            refreshes=refreshes,
            fps_in=stats.rate("frames", now),
            steps_hz=stats.rate("steps", now),
            masks_hz=round(stats.rate("steps", now) + stats.rate("refreshes", now), 2),
            dropped=dict(dropped),
            unread=self._results.unread,
            late_sound=self._ingest.aligner.late,
            reconnects=sum(s.reconnects for s in self._sources if isinstance(s, LiveSource)),
            waiting=waiting,
            stages={stage: stats.spread(stage) for stage in ("align", "queue", "step", "refresh", "deliver")},
            latency=stats.spread("latency"),
            skew_ms=round(self._ingest.drift.drift_ns / 1e6, 3),
        )

    def prometheus(self) -> str:
        """`stats()` as Prometheus text."""
        return self.stats().as_prometheus(self.source_ids[0])

    def take_events(self) -> tuple[Event, ...]:
        """Events of sources that no result has told yet; a source that is away has no results."""
        with self._change:
            return self._results.take_events()

    def next(self, timeout: float | None = None) -> LiveResult | None:
        """The next result; None: the session is over, or there was none within `timeout` seconds.

        Raises:
            AvisStreamError: A source or the model failed; or the session has not begun.
        """
        if self._state == "new":
            raise AvisStreamError(_NOT_BEGUN)
        with self._change:
            self._await_result(timeout)
            taken = self._results.take()
            if taken is None:
                return None
            self._change.notify_all()
        result, ready_ns = taken
        self._stats.time("deliver", self._clock.now() - ready_ns)
        return result

    def peek(self, timeout: float | None = None) -> LiveResult | None:
        """What `next` would return, or raise; a result stays where it is, until it is taken or, live, is too many."""
        if self._state == "new":
            raise AvisStreamError(_NOT_BEGUN)
        with self._change:
            self._await_result(timeout)
            return self._results.first

    def _await_result(self, timeout: float | None) -> None:
        """Until there is one or none will come; raises, once, what ended the session after its last result."""
        self._change.wait_for(lambda: self._results or self._state == "over", timeout)
        if not self._results and self._state == "over" and self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def over(self) -> bool:
        """No further result will come, nor an error that `next` would raise."""
        return self._state == "over" and not self._results and self._error is None

    def __iter__(self) -> Iterator[LiveResult]:
        if self._state == "new":  # then it is also ended, with the last result or when the loop is left
            with self:
                yield from self
        while (result := self.next()) is not None:
            yield result

    def __enter__(self) -> Session:
        return self.start() if self._state == "new" else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- threads -----------------------------------------------------------------------------------------------------

    def _guarded(self, run: Any) -> None:
        """Whatever goes wrong in a thread ends the session at once, and is raised where it is read."""
        try:
            run()
        except BaseException as error:  # a SystemExit of the caller's own segmenter, say: nobody else would hear of it
            self._fail(error)

    def _fail(self, error: BaseException | None) -> None:
        with self._change:
            if self._state != "over":
                self._error = error or self._error
            self._state = "over"
            self._change.notify_all()

    def _post(self, source: Source, what: object) -> bool:
        while self._state == "running":
            with contextlib.suppress(queue.Full):
                self._inbox.put((source, what), timeout=0.1)
                return True
        return False

    def _take_in(self) -> None:
        try:
            while self._state == "running":
                items: list[tuple[Source, Item]] = []
                with contextlib.suppress(queue.Empty):
                    source, what = self._inbox.get(timeout=self._patience())
                    items += [(source, item) for item in source.receive(what, self._attentive_now())]
                now = self._attentive_now()
                for source in self._sources:
                    items += [(source, item) for item in source.tick(now)]
                for source, item in items:
                    self._take_item(source, item)
                self._offer(self._ingest.ready(self._attentive_now()))
        finally:
            for source in self._sources:
                source.stop()

    def _attentive_now(self) -> int:
        """Session time without that which the ingest thread was blocked for: what came meanwhile did not come late."""
        return self._clock.now() - self._blocked_ns

    def _patience(self) -> float:
        """How long nothing can happen but for what is posted."""
        deadline = self._ingest.deadline_ns()
        if deadline is None:
            return _TICK_SECONDS
        return min(_TICK_SECONDS, max(0.001, (deadline - self._attentive_now()) / NANOSECONDS))

    def _take_item(self, source: Source, item: Item) -> None:
        if isinstance(item, Event):
            self._announce(item)
        elif isinstance(item, Finished):
            self._finish(source, item)
        else:
            if isinstance(item, (VideoFrame, AVPair)):
                self._stats.moment("frames", self._clock.now())
            with self._change:  # it counts losses, which others add up meanwhile
                pairs, events = self._ingest.take(item, self._attentive_now())
            for event in events:
                self._announce(event)
            self._offer(pairs)

    def _announce(self, event: Event) -> None:
        event = without_passwords(event)
        logger.log(logging.WARNING if event.kind in TROUBLE else logging.INFO, "%s", sentence(event))
        with self._change:
            self._results.announce(event)
            self._change.notify_all()

    def _finish(self, source: Source, item: Finished) -> None:
        if item.error is not None or source.gives_pictures:
            self._offer(self._ingest.rest())
            with self._change:
                if self._state == "running":
                    self._state, self._error = "draining", item.error  # raised after the last result
                self._change.notify_all()
        else:
            self._ingest.take(SoundOver(), self._attentive_now())

    def _offer(self, pairs: Iterable[AVPair]) -> None:
        waiting = list(pairs)
        for n, pair in enumerate(waiting):
            arrived = self._ingest.arrived_ns(pair)
            if arrived is not None:
                self._stats.time("align", self._attentive_now() - arrived)
            begin = self._clock.now()
            with self._change:
                # Only where nothing may be lost can it be refused; then the source waits too.
                while not self._ingest.queue.offer(pair):
                    if self._state == "over":
                        self._dropped["stopped"] += len(waiting) - n
                        return
                    self._change.wait(0.5)
                queued = self._clock.now()
                self._blocked_ns += queued - begin
                self._ingest.note_queued(pair, queued)
                self._change.notify_all()

    def _run_model(self) -> None:
        shares = lanes_for(self._segmenter, self.config.threads)
        try:
            with model_threads(self.config.threads), Lanes[OnlineResult](shares, self._fail) as lanes:
                self._follow(lanes)
        finally:
            with self._change:  # what was in work and has no result by now gets none, as after a failure
                self._dropped["stopped"] += self._model_busy
                self._model_busy = 0
        self._fail(None)

    def _follow(self, lanes: Lanes[OnlineResult]) -> None:
        """The pairs that are to be segmented, until there are no more; steps by themselves, with all threads."""
        while True:
            if self._rates.expects_step():
                lanes.drain()
            lanes.wait()  # before a pair is chosen, so that it is the newest
            pair, queued_ns = self._next_pair()
            if pair is None:
                break
            is_step = self._rates.is_step(pair)
            if is_step:
                lanes.drain()  # it consumes the state that they read
            if self._state == "over":
                break
            if queued_ns is not None:
                self._stats.time("queue", self._clock.now() - queued_ns)
            if is_step:
                done = self._timed("step", lambda pair=pair: self._rates(pair))  # type: ignore[misc]
                assert done is not None, "a step has a result"
                self._deliver(done[0], pair, refreshed=False)
            elif (refresh := self._rates.between(pair)) is not None:
                lanes.put(partial(self._timed, "refresh", refresh), partial(self._deliver, pair=pair, refreshed=True))
            else:
                with self._change:
                    self._dropped["between_steps"] += 1
                    self._model_busy -= 1

    def _timed(self, stage: str, work: Callable[[], Made]) -> Made:
        begin = self._clock.now()
        made = work()
        self._stats.time(stage, self._clock.now() - begin)
        return made

    def _next_pair(self) -> tuple[AVPair | None, int | None]:
        """With when it was queued, if that is known."""
        with self._change:
            while self._state != "over":
                pair = self._ingest.queue.take(self._clock.now())
                if pair is not None:
                    self._model_busy += 1
                    self._change.notify_all()
                    return pair, self._ingest.queued_ns(pair)
                if self._state == "draining":
                    return None, None
                self._change.wait(0.5)
        return None, None

    def _deliver(self, result: OnlineResult, pair: AVPair, *, refreshed: bool) -> None:
        now, latency = self._clock.now(), None
        if self.live:
            latency = (now - pair.frame.pts_ns) / 1e6
            self._stats.time("latency", now - pair.frame.pts_ns)
        with self._change:
            while not self.live and self._results.is_full and self._state != "over":
                self._change.wait(0.5)
            self._model_busy -= 1
            if not self.live and self._results.is_full:
                self._dropped["stopped"] += 1  # rather than take the place of one that waits
                return
            self._stats.moment("refreshes" if refreshed else "steps", now)
            self._results.put(
                result, pair, refreshed=refreshed, latency_ms=latency, dropped=self._all_dropped(), ready_ns=now
            )
            self._change.notify_all()

    def _all_dropped(self) -> Counter[str]:
        return self._dropped + self._ingest.dropped


def live(
    model: AVISM | Segmenter, video: Video = "0", audio: Audio = "source", *,
    policy: Policy = "auto", max_latency_ms: int = 500, num_threads: int | None = None,
    online: OnlineConfig | None = None, realtime: bool | None = None, fps: float | None = None,
    backend: Backend = "auto",
) -> Iterator[LiveResult]:  # fmt: skip
    """Results as they come, from any source, until it ends or the caller leaves the loop.

    A camera or an address that cannot be reached, or is lost, is tried again for ever, and the log is told (a
    warning); `Session` takes a `SupervisorConfig` that gives up.

    Args:
        model: From `avs.load`.
        video: Camera (`0`), file, address (`rtsp://...`), `gst:` pipeline, `synthetic://flashbeep`, own frames.
        audio: `source`, `mic`, `mic:NAME`, a file, own sound, or None.
        policy: `auto`: in order while the model keeps up, else the newest; `latest`: only the newest; `every`: all.
        max_latency_ms: Oldest frame that goes to the model while there is a newer one.
        num_threads: Of the model; None: all cores up to four, beyond that half of them.
        online: Settings of the tracker.
        realtime: Of files: at their own pace.
        fps: Of files: frames a second to look at; None: all.
        backend: `auto`, `gstreamer` or `ffmpeg`.
    Raises:
        ConfigError: Settings or addresses that make no sense.
        SourceError: A source cannot be read, now or ever.
    Example:
        >>> for result in live(model, video="rtsp://10.0.0.7/cam"):
        ...     print(result.pts_seconds, result.track_id.tolist(), result.latency_ms)
    """
    config = SessionConfig(policy=policy, max_latency_ms=max_latency_ms, num_threads=num_threads)
    session = Session(model, video, audio, config=config, online=online, realtime=realtime, fps=fps, backend=backend)

    def results() -> Iterator[LiveResult]:
        with session:
            yield from session

    return results()


__all__ = ["Session", "SessionConfig", "SourceError", "live"]
