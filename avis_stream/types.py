"""The values that cross borders between the parts: frames and sound in, results out.

All time is `int` nanoseconds on one session clock (`pts_ns`); `pts_seconds` is for people.
Shape letters: `T` frames, `I` instances, `H W` pixels, `A` audio feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avis_stream.checks import check_shape, require, whole_number

SAMPLE_RATE = 16_000
"""Rate in Hz of all sound inside the library; one second of it belongs to each frame."""

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFrame:
    """One picture and when it was taken."""

    image: Tensor
    """uint8 [3, H, W], RGB. A session copies frames of the caller's own; whoever else holds one shares its pixels."""
    pts_ns: int
    """Presentation time on the session clock; strictly increasing within a source."""
    frame_id: int
    """Counts the frames of a source from 0, dropped ones included."""
    source_id: str = ""
    segment: int = 0
    """Goes up by one whenever the source was interrupted."""
    discontinuity: bool = False
    wall_utc: float | None = None
    """Seconds since the Unix epoch when the frame was captured; None for recordings that are read on demand."""
    previous: Tensor | None = None
    """uint8 [3, H, W], the picture about 100 ms earlier, for models with a motion cue; None: no cue."""

    def __post_init__(self) -> None:
        check_shape(self.image, "VideoFrame.image", "3 H W", dtype=torch.uint8)
        for name in ("pts_ns", "frame_id", "segment"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"VideoFrame.{name}"))

    @property
    def pts_seconds(self) -> float:
        """`pts_ns` in seconds."""
        return self.pts_ns / NANOSECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioChunk:
    """A block of sound and when it was taken."""

    samples: Tensor
    """float32 [n], mono at SAMPLE_RATE, in [-1, 1]."""
    pts_ns: int
    """Session time of the first sample."""
    valid: bool = True
    """False: zeros in the place of sound that was lost."""
    discontinuity: bool = False

    def __post_init__(self) -> None:
        check_shape(self.samples, "AudioChunk.samples", "n", dtype=torch.float32)
        object.__setattr__(self, "pts_ns", whole_number(self.pts_ns, "AudioChunk.pts_ns"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AVPair:
    """A frame and the second of sound that belongs to it: what the model sees at one step."""

    frame: VideoFrame
    audio: Tensor
    """float32 [SAMPLE_RATE], mono, in [-1, 1]; zeros where there was no sound."""
    audio_valid: float = 1.0
    """Share of the samples that were really heard, in [0, 1]."""
    end_ns: int | None = None
    """When the frame's interval ends, and with it the second of sound; None: not told."""
    valid_samples: int = SAMPLE_RATE
    """Samples up to where the recording's sound ends, for encoders that ask (quirk Q20); 0 where there is no sound.

    Zeros before it are sound: of a late start, a hole, or live of what was lost. Only the end of a recording is known.
    """

    def __post_init__(self) -> None:
        check_shape(self.audio, "AVPair.audio", f"{SAMPLE_RATE}", dtype=torch.float32)
        valid = whole_number(self.valid_samples, "AVPair.valid_samples")
        require(0 <= valid <= SAMPLE_RATE, "AVPair.valid_samples", valid, f"from 0 to {SAMPLE_RATE}")
        object.__setattr__(self, "valid_samples", valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to an identity in a step, or to a source.

    Who sounds is asked between steps too (`LiveResult.refreshed`), where masks come and go without an event.
    """

    kind: str
    """For identities `born`, `sounding`, `silent`, `dormant`, `returned`, `dead`; `full`, with how many in `detail`, at
    each step in which `OnlineConfig.max_identities` keeps somebody from an identity; for sources `gap`, `resized`,
    `connected`, `lost`, `unreachable`, `reconnected`, `broken`, `audio_missing`, `audio_back`, `audio_lost`,
    `drift`, `jumped`."""
    track_id: int | None = None
    detail: str = ""
    gap_seconds: float | None = None
    source_id: str = ""
    """Of the source, where it is one that speaks; in a session's results also with all that is about no identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineResult:
    """What is known about one frame: every live identity, and the masks of those that sound.

    The form in which results arrive online and in which every writer takes them; an offline clip is
    handed to the writers as one `OnlineResult` a frame. Rows are sorted by score, best first.
    """

    pts_ns: int
    frame_id: int
    track_id: Tensor
    """int64 [I], stable for the life of the stream, never used again for something else."""
    class_id: Tensor
    """int64 [I], index into the model's `classes`."""
    score: Tensor
    """float32 [I], in [0, 1]."""
    sounding: Tensor
    """bool [I]."""
    mask: Tensor
    """bool [I, H, W] at the size of the source frame; all False unless sounding."""
    box: Tensor
    """float32 [I, 4], x, y, width, height in pixels of the source frame; zeros where the mask is empty."""
    events: tuple[Event, ...] = field(default=())

    def __post_init__(self) -> None:
        count = len(self.track_id)
        check_shape(self.track_id, "track_id", "I", dtype=torch.int64)
        check_shape(self.class_id, "class_id", "I", dtype=torch.int64, I=count)
        check_shape(self.score, "score", "I", dtype=torch.float32, I=count)
        check_shape(self.sounding, "sounding", "I", dtype=torch.bool, I=count)
        check_shape(self.mask, "mask", "I H W", dtype=torch.bool, I=count)
        check_shape(self.box, "box", "I 4", dtype=torch.float32, I=count)

    def __len__(self) -> int:
        return len(self.track_id)

    def __repr__(self) -> str:
        return (
            f"OnlineResult(frame_id={self.frame_id}, pts_seconds={self.pts_seconds:.3f}, "
            f"tracks={self.track_id.tolist()}, sounding={self.sounding.tolist()}, mask={list(self.mask.shape)})"
        )

    @property
    def pts_seconds(self) -> float:
        """`pts_ns` in seconds."""
        return self.pts_ns / NANOSECONDS


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LiveResult(OnlineResult):
    """A result of a session, with all that is known about how it came about."""

    pair: AVPair
    """What the model saw and heard."""
    latency_ms: float | None
    """Age of the frame when its result was there; None for recordings read on demand."""
    refreshed: bool
    """True: the identities of the last step, drawn anew on this frame, those that sound by now. False: a step."""
    dropped_since_last: Mapping[str, int] = field(default_factory=dict)
    """Frames without a result since the last result, by cause."""

    @property
    def source_id(self) -> str:
        """Of the frame."""
        return self.pair.frame.source_id

    @property
    def segment(self) -> int:
        """Of the frame."""
        return self.pair.frame.segment
