"""What a session measures: times by stage, ages, rates, losses by cause; as a value, as JSON, as Prometheus text."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

_KEPT = 4096
_RATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How a quantity is distributed over its last 4096 values, in milliseconds."""

    count: int
    p50: float
    p95: float
    p99: float
    largest: float

    @staticmethod
    def of(values: Iterable[float], count: int) -> Spread:
        """Of values in milliseconds; `count` is how many there were in all."""
        array = np.fromiter(values, float)
        if not len(array):
            return Spread(count, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = (round(float(v), 3) for v in np.percentile(array, [50, 95, 99]))
        return Spread(count, p50, p95, p99, round(float(array.max()), 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """Everything measured up to one moment."""

    seconds: float
    """Since the session began."""
    frames_in: int
    """Frames that the sources handed out, lost ones included."""
    steps: int
    refreshes: int
    fps_in: float
    """Over the last 5 s, as the other rates."""
    steps_hz: float
    masks_hz: float
    """Results of either kind per second."""
    dropped: Mapping[str, int]
    """Frames without a result, by cause."""
    unread: int
    """Results, of `steps` and `refreshes`, that nobody took in time or before the session was stopped.

    What is taken after that stays among them: the number never goes down.
    """
    late_sound: int
    """Frames that went without the whole of their sound."""
    reconnects: int
    waiting: int
    """Frames that have neither been dropped nor got a result yet: all others of `frames_in`.

    After the end those of a step of the model that was not waited for, until it is done; else none.
    """
    stages: Mapping[str, Spread] = field(default_factory=dict)
    """`align` (frame waits for its sound), `queue` (for the model), `step`, `refresh`, `deliver` (for the reader).

    Refreshes overlap, and one that waits for those before it is in none of these for so long.
    """
    latency: Spread
    """Capture to result."""
    skew_ms: float
    """By how much sound has come to arrive later than pictures since the beginning."""

    @property
    def dropped_frames(self) -> int:
        """All causes together."""
        return sum(self.dropped.values())

    def as_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def as_prometheus(self, source: str) -> str:
        """The text format of Prometheus.

        Args:
            source: Goes into the label `source`.
        """
        label = 'source="' + source.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
        lines: list[str] = []

        def family(name: str, kind: str, about: str, rows: Iterable[tuple[str, float]]) -> None:
            lines.extend((f"# HELP avis_stream_{name} {about}", f"# TYPE avis_stream_{name} {kind}"))
            lines.extend(f"avis_stream_{suffix} {value:.10g}" for suffix, value in rows)

        def single(name: str, kind: str, about: str, value: float) -> None:
            family(name, kind, about, [(f"{name}{{{label}}}", value)])

        single("uptime_seconds", "gauge", "Time since the session began.", self.seconds)
        single("frames_total", "counter", "Frames that the sources handed out.", self.frames_in)
        kinds = (("step", self.steps), ("refresh", self.refreshes))
        family("results_total", "counter", "Results, by kind.",
               ((f'results_total{{{label},kind="{kind}"}}', count) for kind, count in kinds))  # fmt: skip
        dropped = sorted(self.dropped.items())
        family("dropped_total", "counter", "Frames without a result, by cause.",
               ((f'dropped_total{{{label},cause="{cause}"}}', count) for cause, count in dropped))  # fmt: skip
        single("unread_total", "counter", "Results that nobody took in time or before the end.", self.unread)
        single("late_sound_total", "counter", "Frames that went without the whole of their sound.", self.late_sound)
        single("reconnects_total", "counter", "How often a source was found again.", self.reconnects)
        single("input_fps", "gauge", "Frames a second that come in.", self.fps_in)
        single("masks_hz", "gauge", "Results a second.", self.masks_hz)
        single("skew_seconds", "gauge", "How much later sound has come to arrive than pictures.", self.skew_ms / 1e3)
        family("latency_seconds", "summary", "Age of frames when their result was there.",
               _summary("latency_seconds", label, self.latency))  # fmt: skip
        family("stage_seconds", "summary", "Time by stage.",
               (row for stage, spread in sorted(self.stages.items())
                for row in _summary("stage_seconds", f'{label},stage="{stage}"', spread)))  # fmt: skip
        return "\n".join(lines) + "\n"


def _summary(name: str, label: str, spread: Spread) -> Iterable[tuple[str, float]]:
    for quantile, value in ((0.5, spread.p50), (0.95, spread.p95), (0.99, spread.p99)):
        yield f'{name}{{{label},quantile="{quantile}"}}', value / 1e3
    yield f"{name}_count{{{label}}}", spread.count


class StatsKeeper:
    """Gathers what threads observe, in constant memory. Times are session time in nanoseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, deque[float]] = {}
        self._counts: Counter[str] = Counter()
        self._moments: dict[str, deque[int]] = {}

    def time(self, stage: str, nanoseconds: float) -> None:
        """Notes how long something took."""
        with self._lock:
            self._values.setdefault(stage, deque(maxlen=_KEPT)).append(nanoseconds / 1e6)
            self._counts[stage] += 1

    def moment(self, what: str, now_ns: int) -> None:
        """Notes that something happened, for its rate and its count."""
        with self._lock:
            self._moments.setdefault(what, deque(maxlen=_KEPT)).append(now_ns)
            self._counts[what] += 1

    def count(self, what: str) -> int:
        """How often it was noted."""
        with self._lock:
            return self._counts[what]

    def rate(self, what: str, now_ns: int) -> float:
        """Per second, over the last 5 s or since the beginning."""
        since = now_ns - round(_RATE_SECONDS * 1e9)
        with self._lock:
            recent = sum(t >= since for t in self._moments.get(what, ()))
        return round(recent / max(0.001, min(_RATE_SECONDS, now_ns / 1e9)), 2)

    def spread(self, stage: str) -> Spread:
        """Of a stage."""
        with self._lock:
            return Spread.of(list(self._values.get(stage, ())), self._counts[stage])
