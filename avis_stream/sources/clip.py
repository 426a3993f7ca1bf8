"""A recording as a series of pairs: a picture and the second of sound that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from typing import Protocol

import torch

from avis_stream.files import printable
from avis_stream.sources.container import BrokenMedia
from avis_stream.sources.pictures import MediaPictures, Picture
from avis_stream.sources.sound import SecondsOfSound, SoundBlock, SoundTrack
from avis_stream.types import NANOSECONDS, AVPair, VideoFrame

_QUICKEST_CAMERA = 250
"""Pictures a second."""


class Pictures(Protocol):
    """What a clip needs of its pictures: a file's (`MediaPictures`) or a folder's (`FolderPictures`)."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def duration_seconds(self) -> float | None: ...

    @property
    def rate(self) -> Fraction | None: ...

    @property
    def pixel_aspect(self) -> Fraction: ...

    def sample(self, fps: Fraction, *, previous: bool) -> Iterator[Picture]: ...


class Clip:
    """A recording. Every `iter()` reads it again from the start, in memory that does not grow with its length.

    Frame k is the picture shown at `k / fps` seconds of the clip clock, whose 0 is the earliest stamp of picture
    or sound. Its sound is the second that *ends* at `(k + 1) / fps`: at 1 fps that is `[k, k + 1)`.
    """

    def __init__(
        self, name: str, pictures: Pictures, track: SoundTrack | None, fps: Fraction, *, previous: bool = True
    ) -> None:
        self.name = printable(name)
        self._pictures = pictures
        self._track = track
        self._fps = fps
        self._previous = previous
        self.broken: str | None = None
        """After iterating: None, or a sentence that says where the recording breaks off."""

    @property
    def width(self) -> int:
        """Pixels of every picture, upright."""
        return self._pictures.width

    @property
    def height(self) -> int:
        """Pixels of every picture, upright."""
        return self._pictures.height

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a pixel through its height, upright: 1 but for tapes, DVDs and the like."""
        return self._pictures.pixel_aspect

    @property
    def fps(self) -> float:
        """Frames handed out per second."""
        return float(self._fps)

    @property
    def camera_fps(self) -> float | None:
        """Pictures a second that were taken, on average; None where the recording has no more than are handed out.

        Also where it does not say, or says what no camera does: that is the clock of its stamps.
        """
        rate = self._pictures.rate
        return None if rate is None or rate <= self._fps or rate > _QUICKEST_CAMERA else float(rate)

    def at(self, fps: float) -> Clip:
        """The same recording, handed out at another rate, without earlier pictures."""
        return Clip(self.name, self._pictures, self._track, Fraction(fps).limit_denominator(1001), previous=False)

    @property
    def duration_seconds(self) -> float | None:
        """Length that the recording announces; None when it does not say."""
        return self._pictures.duration_seconds

    @property
    def expected_frames(self) -> int | None:
        """How many pairs there will be, as far as the recording's announced length tells; None when it does not."""
        duration = self.duration_seconds
        # 2 ms: containers round their stamps.
        return None if duration is None else max(1, math.ceil((duration - 0.002) * self._fps))

    @property
    def has_audio(self) -> bool:
        """False: every pair has silence."""
        return self._track is not None

    @property
    def sound_rate(self) -> int | None:
        """Native rate of the sound in Hz; None without sound."""
        return None if self._track is None else self._track.rate

    @property
    def sound_channels(self) -> int:
        """Channels that `sound` yields when not asked otherwise: 0, 1 or 2."""
        return 0 if self._track is None else min(self._track.channels, 2)

    def sound(self, rate: int | None = None, channels: int | None = None) -> Iterator[SoundBlock]:
        """The sound itself on the clip clock, from 0 on and without holes: for copying it into an output.

        Args:
            rate: Wanted rate in Hz; None keeps the native one.
            channels: 1 or 2; None keeps them, surround is mixed down to 2.
        """
        return iter(()) if self._track is None else self._track.blocks(rate, channels)

    def __iter__(self) -> Iterator[AVPair]:
        self.broken = None
        with closing(SecondsOfSound(self._track)) as sound:
            index = 0
            try:
                for picture in self._pictures.sample(self._fps, previous=self._previous):
                    frame = VideoFrame(
                        image=picture.image,
                        pts_ns=round(index * NANOSECONDS / self._fps),
                        frame_id=index,
                        source_id=self.name,
                        previous=picture.previous,
                    )
                    yield _pair(frame, sound, (index + 1) / self._fps)
                    index += 1
            except BrokenMedia as error:
                if index == 0:
                    raise
                self.broken = str(error)  # whoever asked for the clip says so, once

    def every_picture(self) -> Iterator[AVPair]:
        """Every picture of a film at its own time, with the second of sound that ends when the next one comes.

        For a folder of images it is what `iter()` gives.
        """
        if not isinstance(self._pictures, MediaPictures):
            yield from self
            return
        self.broken = None
        index, interval = 0, Fraction(0)
        with closing(SecondsOfSound(self._track)) as sound:
            try:
                for time, duration, picture in self._pictures.every(previous=self._previous):
                    # As long as the shortest is shown: what is announced for single ones is not to be relied on.
                    interval = min(duration, interval) if interval else duration
                    end = time + interval
                    frame = VideoFrame(
                        image=picture.image, pts_ns=round(time * NANOSECONDS), frame_id=index, source_id=self.name,
                        previous=picture.previous,
                    )  # fmt: skip
                    yield _pair(frame, sound, end)
                    index += 1
            except BrokenMedia as error:
                if index == 0:
                    raise
                self.broken = str(error)

    def __repr__(self) -> str:
        return (
            f"Clip({self.name!r}, {self.width}x{self.height}, {self.fps:g} fps, frames={self.expected_frames}, "
            f"has_audio={self.has_audio})"
        )


def _pair(frame: VideoFrame, sound: SecondsOfSound, end: Fraction) -> AVPair:
    """A frame with the second of sound that ends with its interval, at `end` seconds."""
    second = sound.ending_at(end)
    return AVPair(
        frame=frame, audio=torch.from_numpy(second.samples), audio_valid=second.heard, valid_samples=second.valid,
        end_ns=round(end * NANOSECONDS),
    )  # fmt: skip
