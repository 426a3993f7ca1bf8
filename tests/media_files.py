"""Makes the media files that tests read: small, deterministic, encoded with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 48_000

PictureAt = Callable[[float], NDArray[Any]]


def gray_clock(width: int = 64, height: int = 48) -> PictureAt:
    """Pictures whose brightness tells their time: 20 at 0 s, 40 more each second (up to 5.8 s)."""
    return lambda seconds: np.full((height, width, 3), min(255, round(20 + 40 * seconds)), np.uint8)


def seconds_shown(image: Any) -> float:
    """The time that a picture of `gray_clock` shows."""
    return (float(np.asarray(image).mean()) - 20) / 40


def tone(seconds: float, rate: int = RATE, hz: float = 440.0, level: float = 0.5, channels: int = 1) -> NDArray[Any]:
    """Float32 [channels, n]."""
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def clicks(seconds: float, at: Sequence[float], rate: int = RATE, length: float = 0.1) -> NDArray[Any]:
    """Silence with a burst of 1 kHz at each of the given times; float32 [1, n]."""
    time = np.arange(round(seconds * rate)) / rate
    on = sum(((time >= t) & (time < t + length)) for t in at) > 0
    wave: NDArray[Any] = np.where(on, 0.8 * np.sin(2 * np.pi * 1000 * time), 0.0)
    return wave[None].astype(np.float32)


@dataclass(frozen=True)
class Media:
    """What to put into a file; stamps are in seconds and need not be regular."""

    stamps: Sequence[float] = ()
    picture: PictureAt = field(default_factory=gray_clock)
    video_codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    rate: Fraction = Fraction(25)
    turn: tuple[float, bool, bool] = (0, False, False)
    """Counter-clockwise degrees, mirror left-right, mirror up-down: written beside the picture."""
    pixel_aspect: Fraction = Fraction(1)
    color: str | None = None
    """`bt709` or `smpte170m`, converted and tagged; None: untagged."""
    sound: NDArray[Any] | None = None
    """Float32 [channels, n], or any dtype with `sound_format`."""
    sound_start: float = 0.0
    sound_rate: int = RATE
    sound_codec: str = "aac"
    sound_format: str = "fltp"
    layout: str = "mono"
    sound_holes: Sequence[tuple[float, float]] = ()
    """(from, to) in seconds: frames of sound that begin in there are left out."""
    video_options: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


def regular(seconds: float, rate: float = 25.0, start: float = 0.0) -> list[float]:
    """Stamps of a steady video."""
    return [start + i / rate for i in range(round(seconds * rate))]


def write_media(path: Path, media: Media) -> Path:
    """Encodes `media` into `path`; the container follows from its suffix."""
    with av.open(str(path), "w", options=media.options) as out:
        video = sound = None
        if media.stamps:
            first = media.picture(media.stamps[0])
            video = out.add_stream(media.video_codec, rate=media.rate, options=media.video_options)
            video.width, video.height, video.pix_fmt = first.shape[1], first.shape[0], media.pix_fmt
            video.codec_context.sample_aspect_ratio = media.pixel_aspect
            if media.color is not None:
                video.codec_context.colorspace = _SPACES[media.color][1]
            video.time_base = video.codec_context.time_base = _time_base(media)
            if media.turn != (0, False, False):
                video.set_display_rotation(media.turn[0], hflip=media.turn[1], vflip=media.turn[2])
        if media.sound is not None:
            sound = out.add_stream(media.sound_codec, rate=media.sound_rate, layout=media.layout)
            sound.codec_context.format = media.sound_format
            sound.time_base = Fraction(1, media.sound_rate)
        todo = [(t, "video", None) for t in media.stamps]
        todo += [(t, "sound", frame) for t, frame in _sound_frames(media)]
        for seconds, kind, frame in sorted(todo, key=lambda entry: (entry[0], entry[1])):
            if kind == "video":
                assert video is not None
                picture = av.VideoFrame.from_ndarray(media.picture(seconds), format="rgb24")
                if media.color is not None:
                    picture = picture.reformat(format=media.pix_fmt, dst_colorspace=_SPACES[media.color][0])
                picture.time_base = _time_base(media)
                picture.pts = round(seconds / picture.time_base)
                out.mux(video.encode(picture))
            else:
                assert sound is not None
                out.mux(sound.encode(frame))
        for stream in (video, sound):
            if stream is not None:
                out.mux(stream.encode(None))
    return path


_SPACES = {"bt709": ("ITU709", 1), "smpte170m": ("SMPTE170M", 6)}  # swscale's name, H.273's number


def _time_base(media: Media) -> Fraction:
    # Old formats know only a steady rate; the others take any stamp.
    return 1 / media.rate if media.video_codec in {"mpeg4", "mjpeg", "ffv1"} else Fraction(1, 90_000)


def _sound_frames(media: Media) -> list[tuple[float, av.AudioFrame]]:
    if media.sound is None:
        return []
    size, frames = 960, []
    for begin in range(0, media.sound.shape[1], size):
        seconds = media.sound_start + begin / media.sound_rate
        if any(a <= seconds < b for a, b in media.sound_holes):
            continue
        part = np.ascontiguousarray(media.sound[:, begin : begin + size])
        packed = part if media.sound_format.endswith("p") else part.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=media.sound_format, layout=media.layout)
        frame.sample_rate = media.sound_rate
        frame.time_base = Fraction(1, media.sound_rate)
        frame.pts = round(seconds * media.sound_rate)
        frames.append((seconds, frame))
    return frames
