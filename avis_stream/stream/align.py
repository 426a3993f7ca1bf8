"""Pairs each frame with its second of sound, in bounded time and memory. Pure: whoever calls says what time it is."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import torch

from avis_stream.checks import require
from avis_stream.stream.ring import SoundRing, sample_of
from avis_stream.types import SAMPLE_RATE, AudioChunk, AVPair, VideoFrame

MILLISECOND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignerConfig:
    """How long a frame waits for its sound, and how many frames may."""

    audio_wait_ms: int = 200
    max_pending: int = 4
    audio_offset_ms: int = 0
    """Added to the time of all sound: positive where sound arrives stamped too early."""
    ring_seconds: float = 8.0

    def __post_init__(self) -> None:
        require(self.audio_wait_ms >= 0, "AlignerConfig.audio_wait_ms", self.audio_wait_ms, ">= 0 ms")
        require(self.max_pending >= 1, "AlignerConfig.max_pending", self.max_pending, ">= 1 frame")
        require(self.ring_seconds >= 2, "AlignerConfig.ring_seconds", self.ring_seconds, ">= 2 s")


@dataclass(frozen=True, slots=True)
class _Waiting:
    frame: VideoFrame
    sound_ends_ns: int
    arrived_ns: int


class AVAligner:
    """Frames and sound in as they come, pairs out in order.

    A frame's sound is the second that ends with the frame's interval. The frame is released once that second is
    complete, after `audio_wait_ms` without it, or at once if there is no sound (any more). What is missing is zeros,
    and `AVPair.audio_valid` says how much was heard. It counts as sound (`valid_samples`): an encoder that takes a cut
    second for none must not be deaf to the rest of one that came late. Only without any source there is no sound.
    """

    def __init__(
        self, config: AlignerConfig | None = None, *, has_audio: bool = True, same_source: bool = True
    ) -> None:
        """Has neither frames nor sound yet.

        Args:
            config: None: the usual.
            has_audio: False if no sound will ever come, so that no frame waits for it.
            same_source: Sound comes with the pictures, so what interrupts these interrupts it.
        """
        self._same_source = same_source
        self._valid_samples = SAMPLE_RATE if has_audio else 0
        self._config = config or AlignerConfig()
        self._ring = SoundRing(self._config.ring_seconds)
        self._waiting: deque[_Waiting] = deque()
        self._audio_over = not has_audio
        self._segment = 0
        self.dropped: Counter[str] = Counter()
        """Frames that were never released, by cause: `audio_late`."""
        self.late = 0
        """Frames released before their second of sound was complete."""

    @property
    def pending(self) -> int:
        """Frames that wait."""
        return len(self._waiting)

    def push_audio(self, chunk: AudioChunk) -> None:
        """Takes the next block of sound."""
        self._audio_over = False
        pts_ns = chunk.pts_ns + self._config.audio_offset_ms * MILLISECOND
        self._ring.push(chunk.samples.numpy(), pts_ns, heard=chunk.valid)

    def end_audio(self) -> None:
        """No sound will come until `push_audio` is called again: frames stop waiting for it."""
        self._audio_over = True

    def push_video(self, frame: VideoFrame, *, duration_ns: int, now_ns: int) -> list[AVPair]:
        """Takes the next frame; returns the pairs that are ready.

        Args:
            frame: Later than all before. A new `segment` lets the frames of the old one go as they are and forgets its
                sound, if that is of the same source.
            duration_ns: Its interval: the camera's frame period, or the sampling interval of a file.
            now_ns: Session time.
        """
        ready: list[AVPair] = []
        if self._same_source and frame.segment != self._segment:
            ready = [self._release(self._waiting.popleft()) for _ in range(len(self._waiting))]
            self._ring.clear()
            self._segment = frame.segment
        if len(self._waiting) >= self._config.max_pending:
            self._waiting.popleft()
            self.dropped["audio_late"] += 1
        self._waiting.append(_Waiting(frame, frame.pts_ns + duration_ns, now_ns))
        return ready + self.ready(now_ns)

    def ready(self, now_ns: int) -> list[AVPair]:
        """Pairs that can be released at `now_ns`, in order."""
        released = []
        while self._waiting and self._may_go(self._waiting[0], now_ns):
            released.append(self._release(self._waiting.popleft()))
        return released

    def deadline_ns(self) -> int | None:
        """When the oldest waiting frame goes at the latest; None if none waits."""
        return None if not self._waiting else self._waiting[0].arrived_ns + self._config.audio_wait_ms * MILLISECOND

    def _may_go(self, waiting: _Waiting, now_ns: int) -> bool:
        if self._audio_over or self._complete(waiting):
            return True
        return now_ns - waiting.arrived_ns >= self._config.audio_wait_ms * MILLISECOND

    def _complete(self, waiting: _Waiting) -> bool:
        end = self._ring.end
        return end is not None and end >= sample_of(waiting.sound_ends_ns)

    def _release(self, waiting: _Waiting) -> AVPair:
        self.late += not (self._audio_over or self._complete(waiting))
        samples, heard = self._ring.window(sample_of(waiting.sound_ends_ns))
        sound = torch.from_numpy(samples)
        return AVPair(
            frame=waiting.frame, audio=sound, audio_valid=heard, valid_samples=self._valid_samples,
            end_ns=waiting.sound_ends_ns,
        )  # fmt: skip
