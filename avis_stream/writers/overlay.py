"""`overlay.mp4`: the recording with its sounding objects drawn in, and its own sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from avis_stream.files import as_file
from avis_stream.types import NANOSECONDS, AVPair, OnlineResult
from avis_stream.writers.base import Pending
from avis_stream.writers.draw import draw_result

MAX_SIDE = 1920
"""Larger pictures are scaled down: H.264 decoders stop at 4096, and the overlay is made to be looked at."""

_AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})


class Block(Protocol):
    """A stretch of sound: float32 [channels, n] in [-1, 1]."""

    @property
    def samples(self) -> NDArray[np.float32]: ...


class Sound(Protocol):
    """What the overlay needs of a recording to keep its sound; `Clip` has it."""

    @property
    def sound_rate(self) -> int | None: ...

    @property
    def sound_channels(self) -> int: ...

    def sound(self, rate: int | None = None, channels: int | None = None) -> Iterator[Any]: ...


class OverlayWriter:
    """Encodes H.264 and AAC side by side: memory does not grow with the length of the clip."""

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str],
        *,
        fps: float | Fraction,
        sound: Sound | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        """Begins the file.

        Args:
            path: Where it will appear.
            classes: Class names by `class_id`.
            fps: Rate of the frames to come; each is shown for 1 / fps seconds or until the next.
            sound: The recording whose sound is kept; None for a silent film.
            pixel_aspect: Width of a pixel through its height: players stretch pictures by it.
        """
        self._classes = classes
        self._fps = Fraction(fps).limit_denominator(1001)
        self._pixel_aspect = pixel_aspect
        self._pending = Pending(path)
        self._container = av.open(as_file(self._pending.path), "w", format="mp4", options={"movflags": "+faststart"})
        self._video: VideoStream | None = None
        self._next_tick = 0
        self._sound = sound
        self._audio: _SoundCopy | None = None

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Draws and encodes one frame, and the sound up to its end."""
        image = _fitted(pair.frame.image)
        drawn = _even(draw_result(image, result, self._classes))
        if self._video is None:
            self._video = self._video_stream(drawn.shape[1], drawn.shape[0])
            if self._sound is not None and self._sound.sound_rate is not None:
                self._audio = _SoundCopy(self._container, self._sound)
        drawn = _letterboxed(drawn, self._video.height, self._video.width)
        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        # Without this the colours of a player that assumes HD are a little off.
        converted = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        tick = max(self._next_tick, round(pair.frame.pts_ns * self._fps / NANOSECONDS))
        converted.pts, converted.time_base = tick, 1 / self._fps
        self._next_tick = tick + 1
        self._container.mux(self._video.encode(converted))
        if self._audio is not None:
            self._audio.copy_until(self._next_tick / self._fps)

    def close(self) -> None:
        """Completes the file. A clip without a frame leaves none."""
        if self._video is None:
            self.abort()
            return
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._audio.finish()
        self._container.close()
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        if self._audio is not None:
            self._audio.close()
        try:
            self._container.close()
        except (av.FFmpegError, OSError):  # a full disk or a file without frames: it is thrown away all the same
            pass
        finally:
            self._pending.discard()

    def _video_stream(self, width: int, height: int) -> VideoStream:
        # Frames at 1 fps are looked at one by one: a key frame every two seconds makes seeking quick.
        options = {"crf": "19", "preset": "veryfast", "bf": "0", "g": str(max(1, min(250, round(2 * self._fps))))}
        stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = 1 / self._fps
        context = stream.codec_context
        context.sample_aspect_ratio = self._pixel_aspect
        context.color_range, context.colorspace = 1, 1  # limited range, BT.709
        context.color_primaries, context.color_trc = 1, 13  # BT.709, sRGB
        return stream


class _SoundCopy:
    """Feeds a recording's sound to the file as the pictures advance."""

    def __init__(self, container: av.container.OutputContainer, sound: Sound) -> None:
        assert sound.sound_rate is not None
        self._rate = sound.sound_rate if sound.sound_rate in _AAC_RATES else 48_000
        self._layout = "mono" if sound.sound_channels == 1 else "stereo"
        self._blocks = sound.sound(self._rate)
        self._container = container
        self._stream: AudioStream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._stream.codec_context.format = "fltp"
        self._done = 0  # samples handed to the encoder
        self._rest: NDArray[np.float32] | None = None

    def copy_until(self, seconds: Fraction) -> None:
        """Encodes the sound up to `seconds`; what lies beyond waits."""
        end = round(seconds * self._rate)
        while self._done < end:
            block = self._rest if self._rest is not None else self._next()
            self._rest = None
            if block is None:
                return
            count = min(block.shape[1], end - self._done)
            self._encode(block[:, :count])
            self._rest = block[:, count:] if count < block.shape[1] else None

    def finish(self) -> None:
        """Writes out what the encoder still holds."""
        self._container.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        """Closes the recording."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()

    def _next(self) -> NDArray[np.float32] | None:
        block: Block | None = next(self._blocks, None)
        return None if block is None else block.samples

    def _encode(self, samples: NDArray[np.float32]) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._done, Fraction(1, self._rate)
        self._done += samples.shape[1]
        self._container.mux(self._stream.encode(frame))


def _fitted(image: torch.Tensor) -> NDArray[np.uint8]:
    """Uint8 [3, H, W] as [h, w, 3], no side longer than `MAX_SIDE`."""
    height, width = image.shape[1:]
    factor = MAX_SIDE / max(height, width)
    if factor < 1:
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        image = torch.nn.functional.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
    array: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def _letterboxed(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The picture on a canvas of the film's size; it is another only where a live source changes its own."""
    if image.shape[:2] == (height, width):
        return image
    factor = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(tensor, size, mode="bilinear")[0].round().to(torch.uint8)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = scaled.permute(1, 2, 0).numpy()
    return canvas


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeats the last row or column where a side is odd: H.264 stores colour for 2x2 pixels."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
