"""What comes into a step, checked: whatever is refused here leaves the state as it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.checks import check_finite, check_shape, describe, whole_number
from avis_stream.errors import CheckpointError, ClockError, ShapeError
from avis_stream.models.avism import AVISM
from avis_stream.online.config import OnlineConfig
from avis_stream.online.schedule import Geometry
from avis_stream.online.state import StreamBody
from avis_stream.types import NANOSECONDS, SAMPLE_RATE

_WHOLE_VALUES = 65_536
"""Tensors of up to so many values go whole into a model's fingerprint: norms, biases and embeddings."""
_SAMPLED_VALUES = 1024
"""Of larger ones about so many, evenly spread: training and other weights change nearly all of them."""
_SCHEME = "2"
"""Begins every fingerprint; another one whenever what goes into it changes. 1 left out large tensors and the sound."""


@dataclass(frozen=True, slots=True)
class FrameInput:
    """One frame and its sound, as a step takes them."""

    image: Tensor
    """uint8 [3, H, W]."""
    seconds: Tensor
    """float32 [SAMPLE_RATE]."""
    valid_samples: int
    """How many of them were there."""
    previous: Tensor | None
    """uint8 [3, H, W], the picture 100 ms before."""
    pts_ns: int
    frame_id: int
    segment: int | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.shape[1], self.image.shape[2]


def checked_sound(audio: Tensor) -> tuple[Tensor, int]:
    """A second of sound and how much of it was there; a short one is filled with zeros at its end, as offline.

    Raises:
        ShapeError: Not float32 [S] with at most a second of finite samples.
    """
    hint = f"one channel at {SAMPLE_RATE} Hz"
    check_shape(audio, "audio", "S", dtype=torch.float32, hint=hint)
    if len(audio) > SAMPLE_RATE:
        raise ShapeError(f"audio must hold at most {SAMPLE_RATE} samples, got {describe(audio)}; cut it: {hint}")
    check_finite(audio, "audio", "put zeros where nothing was heard")
    return F.pad(audio, (0, SAMPLE_RATE - len(audio))), len(audio)


def checked_frame(
    body: StreamBody,
    config: OnlineConfig,
    image: Tensor,
    audio: Tensor,
    previous: Tensor | None = None,
    pts_ns: int | None = None,
    frame_id: int | None = None,
    segment: int | None = None,
) -> FrameInput:
    """What a step takes, or an error that says what is wrong with it.

    Raises:
        ShapeError: A tensor differs, or the frame's size changed where buffers depend on it.
        ClockError: The frame is not later than the last one.
        ConfigError: A time or number is not whole.
    """
    check_pictures(image, previous)
    seconds, valid = checked_sound(audio)
    pts = checked_time(body, config, pts_ns)
    size = (int(image.shape[1]), int(image.shape[2]))
    fixed = body.held is not None or body.delay is not None
    if fixed and size != body.frame_size:
        raise ShapeError(
            f"frame must be {body.frame_size} pixels, for which init_state made its buffers, got {size}; begin a new "
            'stream, or use alignment="live" and refine_delay=0, which take frames of any size'
        )
    number = body.steps if frame_id is None else whole_number(frame_id, "frame_id")
    part = None if segment is None else whole_number(segment, "segment")
    return FrameInput(image, seconds, valid, previous, pts, number, part)


def check_pictures(image: Tensor, previous: Tensor | None) -> None:
    """Raises ShapeError unless a frame, and the picture before it if there is one, are as a step wants them."""
    check_shape(image, "frame", "3 H W", dtype=torch.uint8, hint="RGB, channels first")
    if not image.numel():
        raise ShapeError(f"frame must hold at least a pixel, got {describe(image)}")
    if previous is not None:
        check_shape(previous, "previous", "3 H W", dtype=torch.uint8, H=image.shape[1], W=image.shape[2])


def checked_time(body: StreamBody, config: OnlineConfig, pts_ns: int | None) -> int:
    """The time of a frame; None: one hop after the last.

    Raises:
        ClockError: It is not later than the last one.
    """
    hop = round(config.hop_seconds * NANOSECONDS)
    last = body.last_pts_ns
    if pts_ns is None:
        return 0 if last is None else last + hop
    pts_ns = whole_number(pts_ns, "pts_ns")
    if last is not None and pts_ns <= last:
        raise ClockError(
            f"pts_ns must be later than that of the last frame, {last}, got {pts_ns}; drop frames that come late"
        )
    return pts_ns


def fingerprint(model: AVISM) -> str:
    """A few letters that tell one model from another: of its configuration and all tensors, the large ones sampled."""
    digest = hashlib.sha256(model.config.to_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        if len(values) > _WHOLE_VALUES:
            values = values[:: len(values) // _SAMPLED_VALUES | 1]  # odd, or it would keep to a few columns of a matrix
        digest.update(name.encode())
        digest.update(values.float().cpu().contiguous().numpy().tobytes())
    return f"{_SCHEME}:{digest.hexdigest()[:16]}"


def layout_of(geometry: Geometry, config: OnlineConfig, *, keeps_leavers: bool) -> str:
    """The settings that shape a state's buffers or give them their meaning, as JSON.

    `keeps_leavers`: the delay line can draw those who have left the table; states from before it could are refused.
    """
    names = (
        "sinks", "kv_cache", "max_identities", "prototypes", "alignment", "refine_delay", "hop_seconds", "half_life_s",
        "sink_write_gate",
    )  # fmt: skip
    shape = asdict(geometry) | {name: getattr(config, name) for name in names}
    return json.dumps(shape | ({"keeps_leavers": True} if keeps_leavers else {}), sort_keys=True)


def check_owner(body: StreamBody, model: str, layout: str) -> None:
    """Raises CheckpointError unless a state was made for this model and these settings."""
    if not body.model.startswith(f"{_SCHEME}:"):
        raise CheckpointError(
            "state must be of this version, which knows models by samples of all weights, got one of another version "
            f"({body.model}): whether it is of this model cannot be told; begin with init_state()"
        )
    if body.model != model:
        raise CheckpointError(
            f"state must be of this model ({model}), got one of another ({body.model}): its memory means nothing here; "
            "begin with init_state()"
        )
    if body.layout != layout:
        ours, theirs = json.loads(layout), json.loads(body.layout)
        differ = {name: (theirs.get(name), own) for name, own in ours.items() if theirs.get(name) != own}
        raise CheckpointError(
            f"state must be of these settings, got others (its, ours): {differ}; begin with init_state()"
        )
