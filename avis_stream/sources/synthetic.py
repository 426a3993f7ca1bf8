"""`synthetic://flashbeep`: a picture that flashes and a tone that begins at the same instant, once a second.

It shows by how much a chain of devices and software shifts sound against pictures (`skew_of`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from avis_stream.checks import require
from avis_stream.errors import ConfigError
from avis_stream.sources.items import Item, interleaved
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AudioChunk, VideoFrame

FLASH_SECONDS = Fraction(3, 25)
_BLOCK = SAMPLE_RATE // 50
_LARGEST_SIDE = 8192
_FPS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}|/[0-9]{1,6})?")
"""25, 29.97 or 30000/1001. Not all that `Fraction` takes: of 1e1000000000 it would make all the digits."""
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashBeep:
    """What the scene is like."""

    fps: Fraction = Fraction(25)
    width: int = 320
    height: int = 180
    seconds: float | None = None
    """None: for ever."""
    skew_ms: float = 0.0
    """How much later than the flash the tone begins."""

    def __post_init__(self) -> None:
        require(0 < self.fps <= 240, "flashbeep: fps", self.fps, "between 0 and 240")
        fits = all(1 <= side <= _LARGEST_SIDE for side in (self.width, self.height))
        require(fits, "flashbeep: size", (self.width, self.height), f"WIDTHxHEIGHT, each 1 to {_LARGEST_SIDE}")
        require(self.seconds is None or math.isfinite(self.seconds), "flashbeep: seconds", self.seconds, "finite")
        require(math.isfinite(self.skew_ms), "flashbeep: skew_ms", self.skew_ms, "finite")

    @staticmethod
    def from_options(options: Mapping[str, str]) -> FlashBeep:
        """From the part behind the `?`.

        Raises:
            ConfigError: An unknown name, or a value that makes no sense.
        """
        known = {"fps", "size", "seconds", "skew_ms", "realtime"}
        if set(options) - known:
            wrong = sorted(set(options) - known)
            raise ConfigError(f"synthetic://flashbeep takes {', '.join(sorted(known))}, got {', '.join(wrong)}")
        fps, seconds = options.get("fps", "25"), options.get("seconds")
        size = _SIZE.fullmatch(options.get("size", "320x180"))
        try:
            if size is None or _FPS.fullmatch(fps) is None:
                raise ValueError("not of the form")
            return FlashBeep(
                fps=Fraction(fps), width=int(size[1]), height=int(size[2]),
                seconds=None if seconds is None else float(seconds), skew_ms=float(options.get("skew_ms", "0")),
            )  # fmt: skip
        except (ValueError, ZeroDivisionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"synthetic://flashbeep must be like ?fps=25&size=640x360&seconds=10, got {dict(options)}"
            ) from error

    def items(self, source_id: str) -> Iterator[Item]:
        """Frames and blocks of sound in order of time."""
        return interleaved(self._frames(source_id), self._sound())

    def _frames(self, source_id: str) -> Iterator[VideoFrame]:
        dark = torch.full((3, self.height, self.width), 16, dtype=torch.uint8)
        bright = torch.full((3, self.height, self.width), 235, dtype=torch.uint8)
        number = 0
        while self.seconds is None or number < self.seconds * self.fps:
            time = number / self.fps
            image = bright if time >= 1 and time % 1 < FLASH_SECONDS else dark
            # A bar that moves with the time shows that pictures come at all.
            image = image.clone()
            left = int(time * self.width / 4) % self.width
            image[:, -self.height // 12 :, left : left + self.width // 12] = 128
            yield VideoFrame(image=image, pts_ns=round(time * NANOSECONDS), frame_id=number, source_id=source_id)
            number += 1

    def _sound(self) -> Iterator[AudioChunk]:
        begin = 0
        while self.seconds is None or begin < self.seconds * SAMPLE_RATE:
            time = np.arange(begin, begin + _BLOCK) / SAMPLE_RATE - self.skew_ms / 1000
            on = (time >= 1) & (time % 1 < float(FLASH_SECONDS))
            tone = np.where(on, 0.6 * np.sin(2 * np.pi * 1000 * (time % 1)), 0).astype(np.float32)
            yield AudioChunk(samples=torch.from_numpy(tone), pts_ns=begin * NANOSECONDS // SAMPLE_RATE)
            begin += _BLOCK


def flash_onsets(times_ns: NDArray[np.int64], brightness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds at which frames (their times and mean values) become bright."""
    bright = brightness > (brightness.max() + brightness.min()) / 2
    return np.asarray(times_ns[1:][bright[1:] & ~bright[:-1]] / NANOSECONDS, np.float64)


def beep_onsets(samples: NDArray[np.float32], begin_ns: int) -> NDArray[np.float64]:
    """Seconds at which a tone begins after at least 0.3 s of quiet, all of it among these samples.

    Args:
        samples: A second or more.
        begin_ns: Time of the first sample.
    """
    loud = np.flatnonzero(np.abs(samples) > max(0.02, 0.2 * float(np.abs(samples).max())))
    # Not before the quiet: a tone that the first sample cuts through has begun at some other time.
    first = loud[np.diff(loud, prepend=0) > 0.3 * SAMPLE_RATE]
    return first / SAMPLE_RATE + begin_ns / NANOSECONDS


def skew_of(flashes: NDArray[np.float64], beeps: NDArray[np.float64]) -> float | None:
    """How much later than their flashes tones begin: the median, in seconds; None if no two belong together."""
    apart = [beeps[np.abs(beeps - flash).argmin()] - flash for flash in flashes if len(beeps)]
    near = [gap for gap in apart if abs(gap) < 0.4]
    return float(np.median(near)) if near else None
