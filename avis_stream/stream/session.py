"""`Session`: sources, alignment, policy and model, each on its thread; results come out in order, in bounded time.

sources' threads --post--> inbox --ingest thread--> PairQueue --model thread--> results --> whoever iterates
(processes)                (bounded)  aligns                    steps, refreshes   (bounded)
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Literal

import torch

from avis_stream.checks import require
from avis_stream.errors import AvisStreamError, SourceError
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.sources.items import Finished, Item, Lost, SessionClock, SoundOver, Source, end_of
from avis_stream.sources.live import LiveSource, without_passwords
from avis_stream.sources.open import Audio, Backend, Video, open_sources
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.stream.align import AlignerConfig, AVAligner
from avis_stream.stream.drift import DriftWatch
from avis_stream.stream.policy import POLICIES, PairQueue, Policy
from avis_stream.stream.stats import SessionStats, StatsKeeper
from avis_stream.stream.two_rates import EarlierPictures, FramePeriod, RatesConfig, Segmenter, TwoRates
from avis_stream.types import NANOSECONDS, AudioChunk, AVPair, Event, LiveResult, OnlineResult, VideoFrame

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_STOP_SECONDS = 2.0
_INBOX = 64
_WAIT_FOR_EVER_MS = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session runs."""

    policy: Policy = "auto"
    max_latency_ms: int = 500
    """With `auto`: no frame that is older goes to the model while there is a newer one."""
    audio_wait_ms: int = 200
    """A live frame waits so long for the end of its second of sound."""
    audio_offset_ms: int = 0
    """Added to the time of sound; `avis-stream doctor --av-sync` measures what your devices need."""
    num_threads: int | None = None
    """Of the model; None: half of the cores. More is slower where others work too."""
    max_unread: int = 8
    """Results that may wait for the reader; of live sources the oldest go, others wait."""
    refresh: bool = True
    """Masks on every frame; False: results only once a hop."""
    keep_seconds: float = 10.0
    on_gap: Literal["keep", "reset"] = "keep"
    """After an interruption of more than `keep_seconds`: each identity must be recognised, or all begins anew."""

    def __post_init__(self) -> None:
        require(self.policy in POLICIES, "policy", self.policy, "one of " + ", ".join(POLICIES))
        require(self.max_latency_ms > 0, "max_latency_ms", self.max_latency_ms, "> 0")
        require(self.max_unread > 0, "max_unread", self.max_unread, "> 0")
        require(self.num_threads is None or self.num_threads > 0, "num_threads", self.num_threads, "> 0 or None")

    @property
    def threads(self) -> int:
        """Threads that the model uses."""
        return self.num_threads or max(1, (os.cpu_count() or 1) // 2)


class Session:
    """A live run: start it, iterate over it, stop it; or use it as a context manager.

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
        if realtime is None and self.config.policy == "latest" and isinstance(video, str) and "://" not in video:
            realtime = None if video.isdigit() or video.startswith(("/dev/video", "gst:")) else True
        wants_previous = bool(getattr(model, "wants_previous", True))
        self._sources = list(sources) if sources is not None else open_sources(
            video, audio, realtime=realtime, fps=fps, backend=backend, previous=wants_previous,
            supervision=supervision,
        )  # fmt: skip
        self.live = any(source.live for source in self._sources)
        self._ingest = _Ingest(self._sources, self.config, live=self.live, wants_previous=wants_previous)
        self._rates = TwoRates(self._segmenter, RatesConfig(
            refresh=self.config.refresh, keep_seconds=self.config.keep_seconds, on_gap=self.config.on_gap
        ))  # fmt: skip
        self._stats = StatsKeeper()
        self._results: deque[tuple[LiveResult, int]] = deque()
        self._change = threading.Condition()
        """Guards and announces: the pair queue, results, events, counters, `_state`."""
        self._events: list[Event] = []
        self._dropped: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._unread = 0
        self._model_busy = 0
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
        self._state = "running"
        self._clock = SessionClock()
        self._inbox: queue.Queue[tuple[Source, object]] = queue.Queue(_INBOX)
        for source in self._sources:
            source.start(self._clock, lambda what, source=source: self._post(source, what))  # type: ignore[misc]
        for name, run in (("ingest", self._take_in), ("model", self._run_model)):
            thread = threading.Thread(target=self._guarded, args=(run,), name=f"avis {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def stop(self) -> None:
        """Ends every thread and process; returns when they are gone. Harmless when they are.

        A model that is in the middle of a step finishes it first.
        """
        with self._change:
            self._state = "over"
            self._change.notify_all()
        for source in self._sources:
            source.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def stats(self) -> SessionStats:
        """What was measured so far."""
        stats, now = self._stats, self._clock.now() if self._state != "new" else 0
        with self._change:
            dropped = self._all_dropped()
            waiting = self._ingest.waiting + self._model_busy
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
            unread=self._unread,
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
            events, self._events = tuple(self._events), []
        return events

    def next(self, timeout: float | None = None) -> LiveResult | None:
        """The next result; None: the session is over, or there was none within `timeout` seconds.

        Raises:
            AvisStreamError: A source or the model failed.
        """
        with self._change:
            self._change.wait_for(lambda: self._results or self._state == "over", timeout)
            if not self._results:
                if self._state == "over" and self._error is not None:
                    error, self._error = self._error, None
                    raise error
                return None
            result, ready_ns = self._results.popleft()
            self._change.notify_all()
        self._stats.time("deliver", self._clock.now() - ready_ns)
        return result

    @property
    def over(self) -> bool:
        """No further result will come."""
        return self._state == "over" and not self._results

    def __iter__(self) -> Iterator[LiveResult]:
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
        """Whatever goes wrong in a thread ends the session, and is raised where it is read."""
        try:
            run()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> None:
        with self._change:
            if self._state != "over":
                self._error = error
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
                    items += [(source, item) for item in source.receive(what, self._clock.now())]
                now = self._clock.now()
                for source in self._sources:
                    items += [(source, item) for item in source.tick(now)]
                for source, item in items:
                    self._take_item(source, item)
                self._offer(self._ingest.ready(self._clock.now()))
        finally:
            for source in self._sources:
                source.stop()

    def _patience(self) -> float:
        """How long nothing can happen but for what is posted."""
        deadline = self._ingest.deadline_ns()
        if deadline is None:
            return _TICK_SECONDS
        return min(_TICK_SECONDS, max(0.001, (deadline - self._clock.now()) / NANOSECONDS))

    def _take_item(self, source: Source, item: Item) -> None:
        now = self._clock.now()
        if isinstance(item, Event):
            self._announce(item)
        elif isinstance(item, Finished):
            self._finish(source, item)
        else:
            if isinstance(item, (VideoFrame, AVPair)):
                self._stats.moment("frames", now)
            pairs, events = self._ingest.take(item, now)
            for event in events:
                self._announce(event)
            self._offer(pairs)

    def _announce(self, event: Event) -> None:
        event = without_passwords(event)
        gap = "" if event.gap_seconds is None else f" after {event.gap_seconds:.1f} s"
        logger.info("%s: %s%s%s", event.source_id, event.kind, gap, f" ({event.detail})" if event.detail else "")
        with self._change:
            self._events.append(event)
            del self._events[:-256]
            self._change.notify_all()

    def _finish(self, source: Source, item: Finished) -> None:
        if item.error is not None:
            self._fail(item.error)
        elif source.gives_pictures:
            self._offer(self._ingest.rest())
            with self._change:
                if self._state == "running":
                    self._state = "draining"
                self._change.notify_all()
        else:
            self._ingest.take(SoundOver(), self._clock.now())

    def _offer(self, pairs: Iterable[AVPair]) -> None:
        for pair in pairs:
            arrived = self._ingest.arrived_ns(pair)
            self._stats.time("align", self._clock.now() - arrived)
            with self._change:
                # Only where nothing may be lost can it be refused; then the source waits too.
                while not self._ingest.queue.offer(pair):
                    if self._state == "over":
                        return
                    self._change.wait(0.5)
                self._ingest.note_queued(pair, self._clock.now())
                self._change.notify_all()

    def _run_model(self) -> None:
        torch.set_num_threads(self.config.threads)  # of this thread alone
        while True:
            pair, queued_ns = self._next_pair()
            if pair is None:
                break
            begin = self._clock.now()
            self._stats.time("queue", begin - queued_ns)
            done = self._rates(pair)
            now = self._clock.now()
            if done is None:
                with self._change:
                    self._dropped["between_steps"] += 1
                    self._model_busy = 0
                continue
            result, refreshed = done
            self._stats.time("refresh" if refreshed else "step", now - begin)
            self._stats.moment("refreshes" if refreshed else "steps", now)
            self._deliver(result, pair, refreshed, now)
        self._fail(None)

    def _next_pair(self) -> tuple[AVPair | None, int]:
        with self._change:
            while self._state != "over":
                pair = self._ingest.queue.take(self._clock.now())
                if pair is not None:
                    self._model_busy = 1
                    self._change.notify_all()
                    return pair, self._ingest.queued_ns(pair)
                if self._state == "draining":
                    return None, 0
                self._change.wait(0.5)
        return None, 0

    def _deliver(self, result: OnlineResult, pair: AVPair, refreshed: bool, now: int) -> None:
        latency = None
        if self.live:
            latency = (now - pair.frame.pts_ns) / 1e6
            self._stats.time("latency", now - pair.frame.pts_ns)
        known = {f.name: getattr(result, f.name) for f in fields(OnlineResult)}
        with self._change:
            self._model_busy = 0
            while not self.live and len(self._results) >= self.config.max_unread and self._state != "over":
                self._change.wait(0.5)
            known["events"], self._events = (*self._events, *result.events), []
            dropped = self._all_dropped()
            since = {cause: n for cause, n in (dropped - self._told).items() if n}
            self._told = dropped
            if len(self._results) >= self.config.max_unread:  # what the oldest would have told is told later
                lost, _ = self._results.popleft()
                self._unread += 1
                self._hand_down(lost)
            made = LiveResult(**known, pair=pair, latency_ms=latency, refreshed=refreshed, dropped_since_last=since)
            self._results.append((made, now))
            self._change.notify_all()

    def _hand_down(self, lost: LiveResult) -> None:
        """A result that nobody took leaves its events and its losses to the next one."""
        if not self._results:
            self._events = [*lost.events, *self._events]
            return
        heir, ready = self._results[0]
        dropped = Counter(lost.dropped_since_last) + Counter(heir.dropped_since_last) + Counter(unread=1)
        heir = replace(heir, events=(*lost.events, *heir.events), dropped_since_last=dict(dropped))
        self._results[0] = (heir, ready)

    def _all_dropped(self) -> Counter[str]:
        return self._dropped + self._ingest.dropped


class _Ingest:
    """From items to pairs in the queue: all that is pure between the sources and the model."""

    def __init__(self, sources: Sequence[Source], config: SessionConfig, *, live: bool, wants_previous: bool) -> None:
        pictures = [s for s in sources if s.gives_pictures]
        require(len(pictures) == 1, "sources", [s.source_id for s in sources], "exactly one with pictures")
        has_audio = any(s.gives_sound for s in sources)
        # Live, the time that a frame may wait bounds their number: 16 are what 60 fps bring in 260 ms.
        waiting = {"max_pending": 16 if live and config.policy != "every" else 10_000}
        self.aligner = AVAligner(
            AlignerConfig(
                audio_wait_ms=config.audio_wait_ms if live else _WAIT_FOR_EVER_MS,
                audio_offset_ms=config.audio_offset_ms, **waiting,
            ),
            has_audio=has_audio,
        )  # fmt: skip
        self.queue = PairQueue(config.policy, live=live, max_latency_ms=config.max_latency_ms)
        self.drift = DriftWatch()
        self.lost = 0
        self._watches_drift = live and any(s.gives_sound and s.gives_pictures for s in sources)
        self._correction_ns = 0
        self._lost: Counter[str] = Counter()
        self._arrived: deque[tuple[int, int]] = deque(maxlen=64)
        self._queued: deque[tuple[int, int]] = deque(maxlen=64)
        """(Stamp, session time) of the last frames that came in, and that were queued."""
        self._period = FramePeriod()
        self._earlier = EarlierPictures() if wants_previous else None

    @property
    def dropped(self) -> Counter[str]:
        """Frames that never got to the model, by cause."""
        return self._lost + self.aligner.dropped + self.queue.dropped

    @property
    def waiting(self) -> int:
        """Frames on their way to the model."""
        return self.aligner.pending + len(self.queue)

    def take(self, item: Item, now_ns: int) -> tuple[list[AVPair], tuple[Event, ...]]:
        """Takes anything but events and ends; returns the pairs that are ready, and what is to be told."""
        if isinstance(item, AVPair):
            self._arrived.append((item.frame.pts_ns, now_ns))
            return [replace(item, frame=self._with_earlier(item.frame))], ()
        if isinstance(item, VideoFrame):
            self._arrived.append((item.pts_ns, now_ns))
            events = self._watch("video", item.pts_ns, now_ns)
            frame = self._with_earlier(item)
            return self.aligner.push_video(frame, duration_ns=self._period.of(item), now_ns=now_ns), events
        if isinstance(item, AudioChunk):
            chunk = replace(item, pts_ns=item.pts_ns + self._correction_ns)
            events = self._watch("audio", end_of(chunk), now_ns)
            self.aligner.push_audio(chunk)
            return [], events
        if isinstance(item, Lost):
            self._lost[item.cause] += item.count
            self.lost += item.count
        elif isinstance(item, SoundOver):
            self.aligner.end_audio()
        return [], ()

    def ready(self, now_ns: int) -> list[AVPair]:
        """Pairs that have waited long enough."""
        return self.aligner.ready(now_ns)

    def rest(self) -> list[AVPair]:
        """What waits when no more comes."""
        self.aligner.end_audio()
        return self.aligner.ready(0)

    def deadline_ns(self) -> int | None:
        """When the oldest waiting frame goes at the latest."""
        return self.aligner.deadline_ns()

    def arrived_ns(self, pair: AVPair) -> int:
        """When the pair's frame came in."""
        return _noted(self._arrived, pair)

    def note_queued(self, pair: AVPair, now_ns: int) -> None:
        """Notes when the pair was queued."""
        self._queued.append((pair.frame.pts_ns, now_ns))

    def queued_ns(self, pair: AVPair) -> int:
        """When the pair was queued."""
        return _noted(self._queued, pair)

    def _with_earlier(self, frame: VideoFrame) -> VideoFrame:
        return frame if self._earlier is None else self._earlier.attach(frame)

    def _watch(self, kind: Literal["video", "audio"], pts_ns: int, now_ns: int) -> tuple[Event, ...]:
        if not self._watches_drift:
            return ()
        change = self.drift.observe(kind, pts_ns, now_ns)
        self._correction_ns += change
        return (Event(kind="drift", detail=f"sound moved by {change / 1e6:.1f} ms"),) if change else ()


def _noted(moments: deque[tuple[int, int]], pair: AVPair) -> int:
    return next((at for pts, at in reversed(moments) if pts == pair.frame.pts_ns), 0)


def live(
    model: AVISM | Segmenter, video: Video = "0", audio: Audio = "source", *,
    policy: Policy = "auto", max_latency_ms: int = 500, num_threads: int | None = None,
    online: OnlineConfig | None = None, realtime: bool | None = None, fps: float | None = None,
    backend: Backend = "auto",
) -> Iterator[LiveResult]:  # fmt: skip
    """Results as they come, from any source, until it ends or the caller leaves the loop.

    Args:
        model: From `avs.load`.
        video: Camera (`0`), file, address (`rtsp://...`), `gst:` pipeline, `synthetic://flashbeep`, own frames.
        audio: `source`, `mic`, `mic:NAME`, a file, own sound, or None.
        policy: `auto`: in order and never older than `max_latency_ms`; `latest`: only the newest; `every`: all.
        max_latency_ms: Oldest frame that goes to the model while there is a newer one.
        num_threads: Of the model; None: half of the cores.
        online: Settings of the tracker.
        realtime: Of files: at their own pace.
        fps: Of files: frames a second to look at; None: all.
        backend: `auto`, `gstreamer` or `ffmpeg`.
    Raises:
        ConfigError: Settings or addresses that make no sense.
        SourceError: A source is missing for good.
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
