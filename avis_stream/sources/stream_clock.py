"""Session time of what a live source hands out, from its own stamps and from when things arrive. Pure.

Arrivals jitter, late only. A stream's clock and ours drift apart by up to some hundred ppm; what comes later and later
faster than that is a connection that cannot keep up, and stays visible as latency.
"""

from __future__ import annotations

from collections import deque

from avis_stream.sources.sample_clock import SampleClock
from avis_stream.types import NANOSECONDS, SAMPLE_RATE

_MILLISECOND = 1_000_000


class StreamClock:
    """Places one connection's stamps, of pictures and of sound alike, on the session clock."""

    LARGEST_PPM = 200
    WINDOW_NS = 30 * NANOSECONDS

    def __init__(self, *, known: bool, settle_ns: int = 500 * _MILLISECOND) -> None:
        """Begins a connection.

        Args:
            known: Stamps are on the session clock already (GStreamer); else they begin anywhere.
            settle_ns: Of the others, so much is passed over: it lay in buffers while the connection was made, and what
                is not that old shows where the stamps' zero is.
        """
        self._offset_ns: float | None = 0.0 if known else None
        self._settled = known
        self._settle_ns = settle_ns
        self._begin_ns: int | None = None
        self._window_begin_ns = 0
        self._least_ns: float | None = None
        self._normal_ns: float | None = None
        self._goal_ns = 0.0
        self._last_stamp_ns: int | None = None

    def place(self, stamp_ns: int, arrival_ns: int) -> int | None:
        """Session time of a stamp; None: the connection has not settled, leave this one out."""
        if self._begin_ns is None:
            self._begin_ns = self._window_begin_ns = arrival_ns
        if not self._settled:
            late = arrival_ns - stamp_ns
            self._offset_ns = late if self._offset_ns is None else min(self._offset_ns, late)
            if arrival_ns - self._begin_ns < self._settle_ns:
                return None
            self._settled, self._goal_ns = True, self._offset_ns
        self._follow(stamp_ns)
        assert self._offset_ns is not None
        placed = stamp_ns + round(self._offset_ns)
        self._observe(arrival_ns - placed, arrival_ns)
        return placed

    def _observe(self, late_ns: int, arrival_ns: int) -> None:
        assert self._offset_ns is not None
        if arrival_ns - self._window_begin_ns >= self.WINDOW_NS and self._least_ns is not None:
            if self._normal_ns is None:
                self._normal_ns = self._least_ns
            self._goal_ns = self._offset_ns + self._least_ns - self._normal_ns
            self._window_begin_ns, self._least_ns = arrival_ns, None
        self._least_ns = late_ns if self._least_ns is None else min(self._least_ns, late_ns)

    def _follow(self, stamp_ns: int) -> None:
        """Moves towards the goal, by no more than clocks differ."""
        assert self._offset_ns is not None
        if self._last_stamp_ns is not None:
            most = max(0, stamp_ns - self._last_stamp_ns) * self.LARGEST_PPM * 1e-6
            self._offset_ns += min(most, max(-most, self._goal_ns - self._offset_ns))
        self._last_stamp_ns = max(stamp_ns, self._last_stamp_ns or stamp_ns)


class MicrophoneClock:
    """Places blocks of a microphone by counting samples, and notices when some were lost.

    A loss makes every following block late by its length; a busy computer makes blocks late for a moment. So what
    counts is by how much the *least* late block of a while is late.
    """

    WATCH_SECONDS = 1.5
    LOSS_NS = 20 * _MILLISECOND

    def __init__(self, *, latency_ns: int = 0, rate: int = SAMPLE_RATE) -> None:
        """`latency_ns`: what the device says that samples need until they arrive."""
        self._clock = SampleClock(rate)
        self._rate = rate
        self._latency_ns = latency_ns
        self._samples = 0
        self._recent: deque[tuple[int, int]] = deque()  # (samples so far, lateness)

    @property
    def rate_ppm(self) -> float:
        """How much slower than nominal the card runs."""
        return self._clock.rate_ppm

    def place(self, samples: int, arrival_ns: int) -> tuple[int, int]:
        """Session time of the first of so many samples, and how many were lost before it (mostly 0)."""
        lost, is_late = self._lost(samples, arrival_ns)
        begin = self._samples = self._samples + lost
        self._samples += samples
        if lost or not is_late:  # what is late tells nothing about the card's rate, and after a loss all is
            self._clock.observe(self._samples, arrival_ns)
        return self._clock.time_of(begin) - self._latency_ns, lost

    def _lost(self, samples: int, arrival_ns: int) -> tuple[int, bool]:
        """Samples lost before this block, and whether it is late."""
        if self._samples < 2 * self._rate:  # the first blocks may have lain about for half a second
            return 0, False
        end = self._samples + samples
        self._recent.append((end, arrival_ns - self._clock.time_of(end)))
        horizon = end - round(self.WATCH_SECONDS * self._rate)
        full = self._recent[0][0] <= horizon
        while self._recent[0][0] < horizon:
            self._recent.popleft()
        least = min(late for _, late in self._recent)
        if not full or least < self.LOSS_NS:
            return 0, self._recent[-1][1] >= self.LOSS_NS
        self._recent.clear()
        return least * self._rate // NANOSECONDS, True
