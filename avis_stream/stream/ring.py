"""The last seconds of sound, by session time: what is asked for is there, or known to be missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.types import NANOSECONDS, SAMPLE_RATE

_LARGEST_STRETCH = 0.005
"""Share of a block by which it may be stretched: inaudible, and thirty times what sound cards are off by."""
_WORTH_A_STRETCH = SAMPLE_RATE // 2000
"""Samples (half a millisecond) by which a block must be off to be stretched."""
_GAP = SAMPLE_RATE // 50
"""Samples (20 ms) from which on a difference is a hole, not a clock that runs a little off."""


def sample_of(time_ns: int) -> int:
    """Number of the first sample at or after a session time."""
    return -(-time_ns * SAMPLE_RATE // NANOSECONDS)


class SoundRing:
    """Sound of bounded length, indexed by session time."""

    def __init__(self, seconds: float = 8.0) -> None:
        self._samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        self._heard = np.zeros(len(self._samples), bool)
        self._end: int | None = None

    @property
    def size(self) -> int:
        """Samples that there are at most."""
        return len(self._samples)

    @property
    def end(self) -> int | None:
        """Number of the sample after the last one there is; None before any sound."""
        return self._end

    def clear(self) -> None:
        """Forgets all sound."""
        self._heard[:] = False
        self._end = None

    def push(self, samples: NDArray[np.float32], pts_ns: int, *, heard: bool = True) -> None:
        """Takes the next block.

        A block that begins up to 20 ms away from where the last one ended follows it without a seam, stretched by up to
        half a per cent towards its own time. A later one leaves a hole; what an earlier one holds twice is left out.
        One that is further away than the ring is long begins anew: a wrong time must not silence those that follow it.
        A block with NaN or infinity in it counts as filler: no model could listen to it.

        Args:
            samples: float32 [n] at 16 kHz.
            pts_ns: Session time of the first.
            heard: False: filler, not sound.
        """
        begin = round(pts_ns * SAMPLE_RATE / NANOSECONDS)
        if not np.isfinite(samples).all():
            samples, heard = np.zeros_like(samples), False
        if self._end is not None and abs(begin - self._end) > len(self._samples):
            self.clear()
        if self._end is not None:
            off = begin - self._end
            if abs(off) < _GAP:
                most = max(1, int(len(samples) * _LARGEST_STRETCH))
                change = int(np.clip(off, -most, most)) if abs(off) >= _WORTH_A_STRETCH else 0
                samples, begin = stretched(samples, len(samples) + change), self._end
            elif off < 0:
                samples, begin = samples[-off:], self._end
        if len(samples):
            self._write(begin, samples, heard)

    def window(self, end: int) -> tuple[NDArray[np.float32], float]:
        """The second of sound before sample number `end`: float32 [16000], and the share of it that was heard."""
        index = np.arange(end - SAMPLE_RATE, end)
        last = self._end if self._end is not None else end - SAMPLE_RATE
        there = (index < last) & (index >= last - len(self._samples)) & (index >= 0)
        place = index % len(self._samples)
        there &= self._heard[place]
        return np.where(there, self._samples[place], np.float32(0)), float(there.mean())

    def _write(self, begin: int, samples: NDArray[np.float32], heard: bool) -> None:
        size = len(self._samples)
        if self._end is not None and begin > self._end:
            self._fill(self._heard, max(self._end, begin - size), begin, False)
        end = begin + len(samples)
        kept = samples[-size:]
        self._fill(self._samples, end - len(kept), end, kept)
        self._fill(self._heard, end - len(kept), end, heard)
        self._end = end

    def _fill(self, ring: NDArray[Any], begin: int, end: int, values: NDArray[Any] | bool) -> None:
        """Writes `values` to [begin, end), at most once round the ring."""
        size, at = len(ring), begin % len(ring)
        first = min(end - begin, size - at)
        for where, part in (
            (slice(at, at + first), slice(None, first)),
            (slice(end - begin - first), slice(first, None)),
        ):
            ring[where] = values[part] if isinstance(values, np.ndarray) else values


def stretched(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """The same sound in `length` samples, which is nearly as many."""
    if length == len(samples) or len(samples) < 2:
        return samples
    places = np.linspace(0, len(samples) - 1, length)
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
