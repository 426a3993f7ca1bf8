"""A session as a film: what the camera saw, with the sounding objects drawn in, and what was heard meanwhile.

results      |......|...|..........|......|         frames that got a result, at their times
sound        [======][==][=========][======]        of each second of sound, what the one before does not hold
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.checks import require
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AVPair, OnlineResult
from avis_stream.writers.overlay import OverlayWriter

_TICKS = 30
"""Times of frames are rounded to so many a second: players are at ease with that."""


@dataclass(frozen=True, slots=True)
class _Block:
    samples: NDArray[np.float32]


class SoundOfPairs:
    """Joins the overlapping seconds of sound of a stream's pairs into one track."""

    sound_rate = SAMPLE_RATE
    sound_channels = 1

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()
        self._done: int | None = None

    def feed(self, pair: AVPair, begin_ns: int) -> None:
        """Takes the sound of a pair; the track begins at `begin_ns`."""
        end_ns = pair.frame.pts_ns if pair.end_ns is None else pair.end_ns
        end = round((end_ns - begin_ns) * SAMPLE_RATE / NANOSECONDS)
        if self._done is None:
            self._done = 0
        new = end - self._done
        if new <= 0:
            return
        samples = pair.audio.numpy()[-min(new, SAMPLE_RATE) :]
        for _ in range(0, new - len(samples), SAMPLE_RATE):  # a gap in the pictures: nothing tells what sounded
            count = min(SAMPLE_RATE, new - len(samples))
            self._blocks.append(_Block(np.zeros((1, count), np.float32)))
            new -= count
        self._blocks.append(_Block(samples[None]))
        self._done = end

    def sound(self, rate: int | None = None, channels: int | None = None) -> Iterator[Any]:
        """What was fed and not yet taken; goes on after more was fed."""
        return _Taking(self._blocks)


class _Taking:
    def __init__(self, blocks: deque[_Block]) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[_Block]:
        return self

    def __next__(self) -> _Block:
        if not self._blocks:
            raise StopIteration
        return self._blocks.popleft()


def check_film_name(path: str | Path) -> None:
    """Raises ConfigError unless a film's name says what it will be."""
    name = Path(path).name
    require(name.lower().endswith(".mp4"), "the name of a film", name, "one that ends in .mp4, as MP4 is written")


class RecordingWriter:
    """Writes the results of a session as an MP4 with sound, beginning with the first of them."""

    def __init__(self, path: str | Path, classes: Sequence[str]) -> None:
        """Begins the file.

        Args:
            path: Where it will appear; a name that ends in .mp4.
            classes: Class names by `class_id`.
        Raises:
            ConfigError: The name says that it is something else.
        """
        check_film_name(path)
        self._sound = SoundOfPairs()
        self._overlay = OverlayWriter(path, classes, fps=Fraction(_TICKS), sound=self._sound)
        self._begin_ns: int | None = None

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame."""
        if self._begin_ns is None:
            self._begin_ns = pair.frame.pts_ns
        self._sound.feed(pair, self._begin_ns)
        frame = replace(pair.frame, pts_ns=pair.frame.pts_ns - self._begin_ns)
        self._overlay.write(replace(pair, frame=frame), result)

    def close(self) -> None:
        """Completes the film."""
        self._overlay.close()

    def abort(self) -> None:
        """Leaves nothing."""
        self._overlay.abort()
