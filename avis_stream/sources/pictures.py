"""Pictures of a media file, sampled by presentation time, upright and in RGB.

decoded      |0.00 |0.04 |0.08 |...      |0.96 |1.00 |1.04        stamps on the clip clock
sampled      ^ frame 0                          ^ frame 1         the last one at or before k / fps
previous                            ^ 0.88: the last one at or before 1.00 - 100 ms
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from avis_stream.errors import MediaError
from avis_stream.sources.container import BrokenMedia, announced_end, opened, reason_of, time_of
from avis_stream.sources.orientation import Orientation

PREVIOUS_SECONDS = Fraction(1, 10)
"""How far back the picture for the motion cue lies."""

# Matroska rounds stamps to 1 ms: half of that may be missing from a stamp, and a clip may seem 1 ms too long.
_STAMP_SLACK = Fraction(1, 2000)
_END_SLACK = Fraction(2, 1000)


@dataclass(frozen=True, slots=True)
class Picture:
    """A sampled picture and the one about 100 ms before it."""

    image: Tensor
    """uint8 [3, H, W], RGB."""
    previous: Tensor | None


@dataclass(frozen=True, slots=True)
class MediaPictures:
    """One video stream of a file. Reading begins anew with every call of `sample`."""

    path: Path
    stream_index: int
    origin: Fraction
    """The file's time, in seconds, at which the clip clock is 0."""
    width: int
    """Pixels, upright."""
    height: int
    orientation: Orientation
    duration_seconds: float | None
    """From the clip clock's 0 to the announced end of the pictures; None when the file does not say."""
    rate: Fraction | None = None
    """Pictures a second, on average; None when the file does not say."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of a pixel through its height, upright."""

    def sample(self, fps: Fraction, *, previous: bool) -> Iterator[Picture]:
        """Yields the picture shown at 0, 1/fps, 2/fps, ... seconds until the last one ends.

        Before the first picture (sound may start earlier) the first one stands in.

        Raises:
            BrokenMedia: After everything that could be read: the file broke off, and where.
        """
        window: deque[tuple[Fraction, av.VideoFrame]] = deque()
        index = 0
        end = Fraction(0)
        broken: BrokenMedia | None = None
        convert = _Converter(self)
        try:
            for time, duration, frame in self._decoded():
                while window and time > index / fps + _STAMP_SLACK:
                    yield convert.picture(window, index / fps, previous)
                    index += 1
                window.append((time, frame))
                end = time + duration
                _forget(window, index / fps)
        except BrokenMedia as error:
            broken = error
        while window and index / fps < end - min(_END_SLACK, 1 / (2 * fps)):
            yield convert.picture(window, index / fps, previous)
            index += 1
        if broken is not None:
            raise broken

    def every(self, *, previous: bool) -> Iterator[tuple[Fraction, Fraction, Picture]]:
        """Yields each picture with its own time and how long it is shown, in seconds on the clip clock.

        A grid, as `sample` has it, would show each of them by up to a frame too late.
        """
        convert, window = _Converter(self), deque[tuple[Fraction, av.VideoFrame]]()
        last: Fraction | None = None
        for time, duration, frame in self._decoded():
            if last is not None and time <= last:
                continue  # a stamp that was given twice
            last = time
            window.append((time, frame))
            yield time, duration, convert.picture(window, time, previous)
            _forget(window, time)

    def _decoded(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Yields (seconds on the clip clock, seconds shown, frame) in order of presentation."""
        last: Fraction | None = None
        reached = Fraction(0)  # the file's time up to which there are packets, of any stream
        with opened(self.path) as container:
            stream = container.streams[self.stream_index]
            assert isinstance(stream, VideoStream)
            stream.thread_type = "AUTO"
            interval = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
            announced = announced_end(container)
            packets = container.demux()
            packet: Packet[Stream] | None = None
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        break
                    stamp = packet.pts if packet.pts is not None else packet.dts  # AVI has no pts
                    if stamp is not None:
                        reached = max(reached, (stamp + (packet.duration or 0)) * packet.time_base)
                    frames = packet.decode() if packet.stream_index == self.stream_index else []
                except av.FFmpegError as error:
                    if last is None:
                        continue  # a stream cut out of a longer one begins with pictures that cannot be decoded
                    raise self._broke(last, reason_of(error)) from error
                for frame in frames:
                    assert isinstance(frame, av.VideoFrame)
                    time = time_of(frame)
                    if time is not None:
                        time -= self.origin
                    elif last is not None:
                        time = last + interval
                    if last is not None and time is not None and time < last - 1:
                        raise self._broke(last, f"time stamps jump back to {float(time):.2f} s")
                    last = max(time or Fraction(0), last or Fraction(0))
                    yield last, (frame.duration or 0) * Fraction(frame.time_base or 0) or interval, frame
        if announced is not None and reached < announced - max(Fraction(1, 2), announced / 50):
            raise self._broke(reached - self.origin, f"the file announces {float(announced - self.origin):.2f} s")

    def _broke(self, seconds: Fraction, reason: str) -> BrokenMedia:
        return BrokenMedia(f"{self.path} breaks off at {float(seconds):.2f} s ({reason})")


def _forget(window: deque[tuple[Fraction, av.VideoFrame]], time: Fraction) -> None:
    """Drops pictures that no sample at `time` or later, nor its previous picture, can ask for."""
    shown = max((stamp for stamp, _ in window if stamp <= time + _STAMP_SLACK), default=window[0][0])
    while len(window) > 1 and window[1][0] <= shown - PREVIOUS_SECONDS + _STAMP_SLACK:
        window.popleft()


class _Converter:
    """Turns decoded frames upright and into RGB tensors; remembers the last one, which is often asked for again."""

    def __init__(self, pictures: MediaPictures) -> None:
        self._path = pictures.path
        self._orientation = pictures.orientation
        self._size = (pictures.width, pictures.height)
        self._last: tuple[av.VideoFrame, Tensor] | None = None

    def picture(self, window: deque[tuple[Fraction, av.VideoFrame]], time: Fraction, previous: bool) -> Picture:
        """What is shown at `time`, and about 100 ms before that."""
        stamp, frame = _shown_at(window, time) or window[0]
        earlier = _shown_at(window, stamp - PREVIOUS_SECONDS) if previous else None
        return Picture(self._tensor(frame), None if earlier is None else self._convert(earlier[1]))

    def _tensor(self, frame: av.VideoFrame) -> Tensor:
        if self._last is None or self._last[0] is not frame:
            self._last = (frame, self._convert(frame))
        return self._last[1]

    def _convert(self, frame: av.VideoFrame) -> Tensor:
        try:
            rgb = upright_rgb(frame, self._orientation, self._size)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self._path}: pictures of format {frame.format.name} ({frame.width}x{frame.height}) cannot be "
                f"converted to RGB ({reason_of(error)}); convert the file to 8-bit YUV first"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def _shown_at(window: deque[tuple[Fraction, av.VideoFrame]], time: Fraction) -> tuple[Fraction, av.VideoFrame] | None:
    """The last decoded picture at or before `time`; None when all are later."""
    found = None
    for entry in window:
        if entry[0] > time + _STAMP_SLACK:
            break
        found = entry
    return found


def upright_rgb(frame: av.VideoFrame, orientation: Orientation, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Converts any pixel format to uint8 [H, W, 3], upright; scaled to `size` where a stream changes its own."""
    width, height = orientation.size(*size)
    same = (width, height) == (frame.width, frame.height)
    scaled = frame if same else frame.reformat(width=width, height=height)
    array: NDArray[Any] = scaled.to_ndarray(format="rgb24")
    return orientation.upright(array)
