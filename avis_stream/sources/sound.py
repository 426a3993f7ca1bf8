"""Sound of a media file on the clip clock: gaps filled, resampled, in blocks or in the seconds that frames need.

clip clock   0        1        2        3
file             [####]xx[########]              stamps, with a late start and a hole
blocks       0000[####]00[########]              contiguous from 0; zeros are marked as not heard
at(k=1)               [--------]                 the second that ends with frame 1's interval at 1 fps
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from avis_stream.sources.container import opened, reason_of
from avis_stream.sources.mixing import mixed, samples_of
from avis_stream.types import SAMPLE_RATE

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]

GAP_SECONDS = Fraction(20, 1000)
"""Stamps may jitter by this much (Matroska rounds to 1 ms) before a difference counts as a hole or an overlap."""


@dataclass(frozen=True, slots=True)
class SoundBlock:
    """A stretch of sound; blocks follow one another without holes from the clip clock's zero on."""

    samples: FloatArray
    """float32 [channels, n], in [-1, 1]."""
    heard: bool
    """False where nothing was recorded and zeros fill the hole."""


@dataclass(frozen=True, slots=True)
class SecondOfSound:
    """A second of a track."""

    samples: FloatArray
    """float32 [SAMPLE_RATE]; zeros where nothing was recorded."""
    heard: float
    """Share that was recorded, in [0, 1]."""
    valid: int
    """Samples up to where the track ends: holes count, what lies beyond does not."""


@dataclass(frozen=True, slots=True)
class SoundTrack:
    """One audio stream of a file. Reading begins anew with every call of `blocks`."""

    path: Path
    stream_index: int
    origin: Fraction
    """The file's time, in seconds, at which the clip clock is 0."""
    rate: int
    """Native rate in Hz."""
    channels: int
    """Native number of channels."""

    def blocks(self, rate: int | None = None, channels: int | None = None) -> Iterator[SoundBlock]:
        """Yields the sound from the clip clock's 0 to its end, in memory that does not grow with its length.

        Args:
            rate: Wanted rate in Hz; None keeps the native one.
            channels: 1 or 2; None keeps 1 and 2 and mixes more than that down to 2.
        """
        rate = rate or self.rate
        channels = channels or min(self.channels, 2)
        position = 0  # index, at `rate`, of the next sample to hand out
        for start, samples in self._resampled(rate, channels):
            while start > position:  # a hole: zeros, at most a second at a time
                count = min(start - position, rate)
                yield SoundBlock(np.zeros((channels, count), np.float32), heard=False)
                position += count
            samples = samples[:, position - start :]  # an overlap: what came first stays
            if samples.shape[1]:
                yield SoundBlock(np.clip(samples, -1.0, 1.0), heard=True)
                position += samples.shape[1]

    def _resampled(self, rate: int, channels: int) -> Iterator[tuple[int, FloatArray]]:
        """Yields (index of the first sample at `rate`, samples): contiguous in a run, anchored by its first stamp."""
        run: _Run | None = None
        for frame in self._decoded():
            time = None if frame.pts is None else frame.pts * Fraction(frame.time_base or 0) - self.origin
            if run is None or not run.continues(time, frame.sample_rate):
                if run is not None:
                    yield run.flush()
                run = _Run(time or Fraction(0), frame.sample_rate, rate, channels)
            yield run.push(mixed(frame, channels))
        if run is not None:
            yield run.flush()

    def _decoded(self) -> Iterator[av.AudioFrame]:
        """Decoded frames; a damaged stretch is left out (and so becomes a hole) with one warning."""
        warned = False
        with opened(self.path) as container:
            packets = container.demux(container.streams[self.stream_index])
            while True:
                decoding = False
                try:
                    packet = next(packets, None)
                    decoding = True
                    frames = packet.decode() if packet is not None else []
                except av.FFmpegError as error:
                    if not warned:
                        logger.warning("%s: sound is damaged (%s); silence there", self.path, reason_of(error))
                    warned = True
                    if decoding:
                        continue  # this packet is lost, the next may be whole
                    return
                if packet is None:
                    return
                yield from (frame for frame in frames if isinstance(frame, av.AudioFrame) and frame.samples)


class _Run:
    """A stretch of sound without holes: counts samples from its first stamp, because single stamps jitter."""

    def __init__(self, time: Fraction, native_rate: int, rate: int, channels: int) -> None:
        self._time = time
        self._native_rate = native_rate
        self._layout = "mono" if channels == 1 else "stereo"
        self._resampler = None if native_rate == rate else av.AudioResampler("fltp", self._layout, rate)
        self._channels = channels
        self._taken = 0
        self._next_index = round(time * rate)

    def continues(self, time: Fraction | None, native_rate: int) -> bool:
        """Whether a frame with this stamp and rate follows on what came so far."""
        expected = self._time + Fraction(self._taken, self._native_rate)
        return native_rate == self._native_rate and (time is None or abs(time - expected) <= GAP_SECONDS)

    def push(self, samples: FloatArray) -> tuple[int, FloatArray]:
        """Takes float32 [channels, n] at the native rate; returns what is ready and the index where it begins."""
        self._taken += samples.shape[1]
        if self._resampler is None:
            return self._placed(samples)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate = self._native_rate
        return self._placed(*map(samples_of, self._resampler.resample(frame)))

    def flush(self) -> tuple[int, FloatArray]:
        """What the resampler still holds."""
        if self._resampler is None:
            return self._placed()
        return self._placed(*map(samples_of, self._resampler.resample(None)))

    def _placed(self, *parts: FloatArray) -> tuple[int, FloatArray]:
        samples = np.concatenate(parts, axis=1) if parts else np.zeros((self._channels, 0), np.float32)
        index, self._next_index = self._next_index, self._next_index + samples.shape[1]
        return index, samples


class SecondsOfSound:
    """Cuts the second that ends at given times out of a track; times must not go back. `None` is silence."""

    def __init__(self, track: SoundTrack | None) -> None:
        self._blocks = iter(()) if track is None else track.blocks(rate=SAMPLE_RATE, channels=1)
        self._samples = np.zeros(SAMPLE_RATE, np.float32)
        self._heard = np.zeros(SAMPLE_RATE, bool)
        self._start = -SAMPLE_RATE  # index on the clip clock of the first sample held; before 0 there is nothing

    def ending_at(self, seconds: Fraction) -> SecondOfSound:
        """The second before `seconds`."""
        end = round(seconds * SAMPLE_RATE)
        samples, heard = [self._samples], [self._heard]
        held_end = self._start + len(self._samples)
        while held_end < end:
            block = next(self._blocks, None)
            if block is None:
                break
            samples.append(block.samples[0])
            heard.append(np.full(block.samples.shape[1], block.heard))
            held_end += block.samples.shape[1]
            if held_end <= end - SAMPLE_RATE:  # a step of more than a second: never hold what nobody will ask for
                samples, heard, self._start = [], [], held_end
        missing = max(0, end - held_end)
        joined = np.concatenate([*samples, np.zeros(missing, np.float32)])
        marks = np.concatenate([*heard, np.zeros(missing, bool)])
        first = end - SAMPLE_RATE - self._start
        # What lies before this second is forgotten; zeros made up at the end are not kept, they cannot become sound.
        self._samples, self._heard = joined[first : len(joined) - missing], marks[first : len(marks) - missing]
        self._start = end - SAMPLE_RATE
        own = slice(first, first + SAMPLE_RATE)
        # Of a track without any sound nothing is valid, though the time before 0 lies before its end.
        valid = max(0, SAMPLE_RATE - missing) if held_end > 0 else 0
        return SecondOfSound(joined[own].copy(), float(marks[own].mean()), valid)

    def close(self) -> None:
        """Closes the file."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()
