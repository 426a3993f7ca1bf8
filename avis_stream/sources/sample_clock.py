"""When a sound card's samples were taken, from counting them: no single time stamp of a sound card can be trusted.

Blocks arrive late by some milliseconds, never early, the first one by half a second, and the card's crystal is off by
up to a few hundred ppm. The earliest arrival within a while is nearly undelayed; a line through these earliest arrivals
gives the card's true rate and start. The clock that arrivals are read off does not matter, if it is one and steady.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from avis_stream.types import NANOSECONDS


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A block's last sample, and when the block arrived."""

    sample: int
    late_ns: float
    """Against the nominal rate."""


class SampleClock:
    """Fits `time = start + sample / rate` while blocks arrive."""

    WINDOW_SECONDS = 10.0
    SHORT_WINDOW_SECONDS = 1.0
    SHORT_WINDOWS = 10
    """So many at the beginning are shorter, so that a wrong rate shows before it has done harm."""
    WINDOWS = 60
    STALE_SECONDS = 0.5
    """Blocks of so much at the beginning may have lain in a buffer for long."""

    def __init__(self, nominal_rate: int) -> None:
        """`nominal_rate`: Hz, what the card says."""
        self.nominal_rate = nominal_rate
        self._earliest: deque[_Arrival] = deque(maxlen=self.WINDOWS)
        self._open: _Arrival | None = None
        self._window_begin = 0
        self._origin_ns: int | None = None
        self._offset_ns, self._slope = 0.0, 0.0

    @property
    def rate_ppm(self) -> float:
        """How much slower than nominal the card runs, in parts per million of time."""
        return self._slope * self.nominal_rate / NANOSECONDS * 1e6

    def observe(self, samples: int, arrival_ns: int) -> None:
        """Notes that the card had given `samples` in all when a block arrived."""
        if self._origin_ns is None:
            self._origin_ns = arrival_ns - self._nominal_ns(samples)
        late = _Arrival(samples, arrival_ns - self._origin_ns - self._nominal_ns(samples))
        if samples < self.STALE_SECONDS * self.nominal_rate:
            self._offset_ns = late.late_ns
            return
        short = len(self._earliest) < self.SHORT_WINDOWS
        length = self.SHORT_WINDOW_SECONDS if short else self.WINDOW_SECONDS
        if self._open is not None and samples - self._window_begin >= length * self.nominal_rate:
            self._earliest.append(self._open)
            self._open = None
        if self._open is None:
            self._window_begin = samples
        elif late.late_ns >= self._open.late_ns:
            return
        self._open = late
        self._fit([*self._earliest, late])

    def time_of(self, sample: int) -> int:
        """Session time in ns at which sample number `sample` was taken.

        Raises:
            RuntimeError: No block has arrived yet.
        """
        if self._origin_ns is None:
            raise RuntimeError("no block of sound has arrived yet; observe one first")
        return self._origin_ns + self._nominal_ns(sample) + round(self._offset_ns + self._slope * sample)

    def _fit(self, earliest: list[_Arrival]) -> None:
        sample = np.array([a.sample for a in earliest], np.float64)
        late = np.array([a.late_ns for a in earliest])
        if len(earliest) <= self.SHORT_WINDOWS:  # too short to tell a wrong rate from a late block
            self._slope, self._offset_ns = 0.0, float(late.min())
            return
        middle = sample.mean()
        spread = sample - middle
        slope = float(spread @ late / (spread @ spread))
        # No block is early: the line lies under all arrivals rather than through their middle.
        self._slope, self._offset_ns = slope, float((late - slope * sample).min())

    def _nominal_ns(self, samples: int) -> int:
        return samples * NANOSECONDS // self.nominal_rate
