"""From what sources say to pairs for the model: alignment, drift, the picture 100 ms earlier, the queue. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from avis_stream.checks import require
from avis_stream.sources.items import Item, Lost, SoundOver, Source, end_of
from avis_stream.stream.align import AlignerConfig, AVAligner
from avis_stream.stream.drift import DriftWatch
from avis_stream.stream.policy import PairQueue
from avis_stream.stream.session_config import SessionConfig
from avis_stream.stream.two_rates import EarlierPictures, FramePeriod
from avis_stream.types import AudioChunk, AVPair, Event, VideoFrame

_WAIT_FOR_EVER_MS = 10**9
_MOST_WAITING = 10_000
"""Frames that may wait for their sound where nothing hurries."""


class _Moments:
    """When frames came by, asked once for each that goes on, in order; those before it were dropped meanwhile."""

    def __init__(self) -> None:
        self._noted: deque[tuple[int, int]] = deque(maxlen=_MOST_WAITING)
        """(Stamp, session time)."""

    def note(self, pts_ns: int, now_ns: int) -> None:
        self._noted.append((pts_ns, now_ns))

    def take(self, pts_ns: int) -> int | None:
        """None: it was never noted, or is forgotten; those that are known stay so."""
        for place, (noted, at) in enumerate(self._noted):
            if noted == pts_ns:
                for _ in range(place + 1):
                    self._noted.popleft()
                return at
        return None


class Ingest:
    """Takes items of sources and makes pairs of them, which `queue` holds for the model.

    Pure: whoever calls says what time it is, and does the waiting.
    """

    def __init__(self, sources: Sequence[Source], config: SessionConfig, *, live: bool, wants_previous: bool) -> None:
        pictures = [s for s in sources if s.gives_pictures]
        require(len(pictures) == 1, "sources", [s.source_id for s in sources], "exactly one with pictures")
        hearing = [s for s in sources if s.gives_sound]
        # Live, the time that a frame may wait bounds their number: 16 are what 60 fps bring in 260 ms.
        waiting = {"max_pending": 16 if live and config.policy != "every" else _MOST_WAITING}
        self.aligner = AVAligner(
            AlignerConfig(
                audio_wait_ms=config.audio_wait_ms if live else _WAIT_FOR_EVER_MS,
                audio_offset_ms=config.audio_offset_ms, **waiting,
            ),
            has_audio=bool(hearing), same_source=all(s.gives_pictures for s in hearing),
        )  # fmt: skip
        self.queue = PairQueue(config.policy, live=live, max_latency_ms=config.max_latency_ms)
        self.drift = DriftWatch()
        self.lost = 0
        self._watched = next((s.source_id for s in hearing if s.gives_pictures and live), None)
        """The live source of both, whose sound may drift away from its pictures."""
        self._correction_ns = 0
        self._lost: Counter[str] = Counter()
        self._arrived, self._queued = _Moments(), _Moments()
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
            self._arrived.note(item.frame.pts_ns, now_ns)
            return [replace(item, frame=self._with_earlier(item.frame))], ()
        if isinstance(item, VideoFrame):
            self._arrived.note(item.pts_ns, now_ns)
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

    def arrived_ns(self, pair: AVPair) -> int | None:
        """When the pair's frame came in, None if that is not known (any more); to be asked once, in order."""
        return self._arrived.take(pair.frame.pts_ns)

    def note_queued(self, pair: AVPair, now_ns: int) -> None:
        """Notes when the pair was queued."""
        self._queued.note(pair.frame.pts_ns, now_ns)

    def queued_ns(self, pair: AVPair) -> int | None:
        """When the pair was queued, None if that is not known (any more); to be asked once, in order."""
        return self._queued.take(pair.frame.pts_ns)

    def _with_earlier(self, frame: VideoFrame) -> VideoFrame:
        return frame if self._earlier is None else self._earlier.attach(frame)

    def _watch(self, kind: Literal["video", "audio"], pts_ns: int, now_ns: int) -> tuple[Event, ...]:
        if self._watched is None:
            return ()
        change = self.drift.observe(kind, pts_ns, now_ns)
        self._correction_ns += change
        if not change:
            return ()
        return (Event(kind="drift", detail=f"sound moved by {change / 1e6:.1f} ms", source_id=self._watched),)
