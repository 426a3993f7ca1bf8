"""The state of a stream: a value of fixed size that a step consumes and hands back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from avis_stream.checks import require, whole_number
from avis_stream.errors import CheckpointError, StateConsumedError
from avis_stream.files import atomic_path
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.memory import TrackerMemory

_METADATA_KEY = "avis_stream_state"


@dataclass(slots=True)
class HeldFrame:
    """With `alignment="official"`: the frame that waits for the second of sound that follows."""

    image: Tensor
    """uint8 [3, H, W]."""
    previous: Tensor
    """uint8 [3, H, W]; valid if `has_previous`."""
    waiting: bool = False
    has_previous: bool = False
    pts_ns: int = 0
    frame_id: int = 0
    segment: int | None = None


@dataclass(slots=True)
class DelayLine:
    """With `refine_delay` D: what it takes to draw the last D + 1 frames later. Frame k lies at place k % (D + 1)."""

    features: Tensor
    """[D + 1, Cm, h, w]."""
    chance: Tensor
    """[D + 1, N], of each frame query to sound."""
    silent: Tensor
    """bool [D + 1], the seconds that held no sound; on the CPU."""
    pts_ns: Tensor
    """int64 [D + 1], on the CPU."""
    frame_id: Tensor
    """int64 [D + 1], on the CPU."""
    segment: Tensor
    """int64 [D + 1], of the source; on the CPU."""
    seen_as: Tensor
    """int64 [D + 1, I], public ids of the identities that the frame shows, by their row in the table; on the CPU."""
    seen_query: Tensor
    """int64 [D + 1, I], the frame query that it was; on the CPU."""
    odds: Tensor
    """float32 [D + 1, I], `IdentityTable.odds` after the frame; on the CPU."""
    heard: Tensor
    """float32 [D + 1, I], the frame's own part of it; on the CPU."""
    filled: int = 0
    """Frames taken in so far."""
    mask_embed: Tensor | None = None
    """[D + 1, N, Cm], of the frame queries' own masks, where objects are drawn by these."""
    class_id: Tensor | None = None
    """int64 [D + 1, I], as reported then, for those who leave the table before the frame is drawn; on the CPU.

    Where frame queries are the objects: of others a frame keeps nothing to draw them by once they have left.
    """
    score: Tensor | None = None
    """float32 [D + 1, I], likewise; on the CPU."""


@dataclass(slots=True)
class LastQueries:
    """The frame queries of the last step, whom the sounding head can ask again before the next one."""

    queries: Tensor
    """[N, C]."""
    logits: Tensor
    """[N, K + 1]."""
    mask_embed: Tensor
    """[N, Cm]."""
    pts_ns: int | None = None
    """Of that step's frame; None before the first."""


@dataclass(slots=True)
class StreamBody:
    """Everything about one stream."""

    model: str
    """Fingerprint of the model that it belongs to."""
    layout: str
    """The settings that shaped the buffers."""
    memory: TrackerMemory
    table: IdentityTable
    frame_size: tuple[int, int] | None = None
    """(height, width) of the last frame; of all frames where buffers depend on it."""
    steps: int = 0
    last_pts_ns: int | None = None
    segment: int | None = None
    forgotten: list[int] = field(default_factory=list)
    """Identities forgotten since the last step, whose end is still to be told."""
    held: HeldFrame | None = None
    delay: DelayLine | None = None
    last_queries: LastQueries | None = None
    """Of models that tell between two steps who sounds."""


_PARTS = {part.__name__: part for part in (StreamBody, TrackerMemory, IdentityTable, HeldFrame, DelayLine, LastQueries)}
_LATE = ("silent", "pts_ns", "frame_id", "segment", "seen_as", "seen_query", "odds", "heard", "class_id", "score")
_ON_CPU = ("IdentityTable", *(f"DelayLine.{name}" for name in _LATE))
"""What never leaves the CPU: the parts and fields that decide, and draw nothing."""


class OnlineState:
    """What is remembered of one stream.

    `OnlineSegmenter.init_state` makes it. Each step consumes it and hands back one that owns the same buffers; using
    the old one raises `StateConsumedError`. A step that refuses its arguments leaves it as it was.

    Example:
        >>> result, state = online.step(frame, audio, state)
        >>> branch = state.clone()
    """

    __slots__ = ("_body",)

    def __init__(self, body: StreamBody) -> None:
        self._body: StreamBody | None = body

    @property
    def body(self) -> StreamBody:
        """Everything; for `OnlineSegmenter`.

        Raises:
            StateConsumedError: A step has consumed this state.
        """
        if self._body is None:
            raise StateConsumedError(
                "this state was consumed by a step, pin or forget: go on with the state that it returned, or branch "
                "with state.clone() before"
            )
        return self._body

    def take(self) -> StreamBody:
        """Consumes the state."""
        body, self._body = self.body, None
        return body

    @property
    def steps(self) -> int:
        """Frames taken in so far."""
        return self.body.steps

    @property
    def pts_ns(self) -> int | None:
        """Time of the last frame; None before the first."""
        return self.body.last_pts_ns

    @property
    def identities(self) -> int:
        """Public ids given out so far."""
        return self.body.table.next_id - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors: the same from the first step to the last."""
        tensors: dict[str, Tensor] = {}
        _flat(self.body, "", tensors)
        return sum(tensor.nbytes for tensor in tensors.values())

    @property
    def device(self) -> torch.device:
        """Where the tracker's memory is."""
        return self.body.memory.tokens.device

    def __repr__(self) -> str:
        if self._body is None:
            return "OnlineState(consumed)"
        return f"OnlineState(steps={self.steps}, identities={self.identities}, nbytes={self.nbytes})"

    def clone(self) -> OnlineState:
        """A copy with buffers of its own; both go on independently."""
        return self._mapped(lambda name, tensor: tensor.clone())

    def to(self, device: str | torch.device) -> OnlineState:
        """A copy on a device; this one stays valid."""

        def moved(name: str, tensor: Tensor) -> Tensor:
            stays = any(f".{own}." in f"{name}." for own in _ON_CPU)
            return tensor.clone() if stays else tensor.to(device, copy=True)

        return self._mapped(moved)

    def _mapped(self, change: Callable[[str, Tensor], Tensor]) -> OnlineState:
        tensors: dict[str, Tensor] = {}
        plain = _flat(self.body, "", tensors)
        body: StreamBody = _built(plain, {name: change(name, tensor) for name, tensor in tensors.items()})
        return OnlineState(body)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file from which `load` goes on identically; it appears complete or not at all."""
        tensors: dict[str, Tensor] = {}
        plain = _flat(self.body, "", tensors)
        with atomic_path(path) as temporary:
            safetensors.torch.save_file(
                {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
                temporary,
                metadata={_METADATA_KEY: json.dumps(plain)},
            )

    @staticmethod
    def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> OnlineState:
        """The state that `save` wrote.

        Raises:
            CheckpointError: No such file, or not a state of this version.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"no state file {str(path)!r}; check the path")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_METADATA_KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            if text is None:
                raise ValueError("its metadata holds no state")
            state = OnlineState(_built(json.loads(text), tensors))
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(path)!r} is not a state as this version's OnlineState.save writes it: {error}"
            ) from error
        return state if torch.device(device).type == "cpu" else state.to(device)

    def pin(self, track_id: int, weight: float | None = None) -> OnlineState:
        """Keeps an identity for ever: it never dies, and its last token stays visible to the tracker.

        Args:
            track_id: Its public id.
            weight: How many tokens that one stands for; None: as many frames as it was seen in, up to those of a ring.
        Returns:
            The state to go on with; this one is consumed.
        Raises:
            ConfigError: No such identity, no place for another pinned one, or no such weight; the state stays.
        """
        body = self.body
        row = _row(body.table, track_id)
        anchors = len(body.memory.anchor_slot)
        free = set(range(anchors)) - set(body.table.anchor.tolist())
        place = int(body.table.anchor[row])
        if place < 0:
            require(bool(free), "pinned identities", anchors, "fewer than OnlineConfig.max_anchors; forget one first")
            place = min(free)
        count = float(min(int(body.table.hits[row]), len(body.memory.evidence))) if weight is None else weight
        known = isinstance(count, Real) and 0 < count < math.inf
        require(known, "weight", count, "a finite number of tokens > 0")
        body.memory.anchor(place, body.table.token[row], int(body.table.token_slot[row]), math.log(count))
        body.table.anchor[row] = place
        return OnlineState(self.take())

    def forget(self, track_id: int) -> OnlineState:
        """Ends an identity at once; if its object is still there, it will be a new identity.

        Args:
            track_id: Its public id.
        Returns:
            The state to go on with; this one is consumed. The next result tells the event.
        Raises:
            ConfigError: No such identity.
        """
        body = self.body
        row = _row(body.table, track_id)
        if (place := int(body.table.anchor[row])) >= 0:
            body.memory.anchor(place, torch.zeros(()), 0, -math.inf)
        if (slot := body.table.slot_alone(row)) is not None:
            body.memory.reset_sinks(slot)
        body.table.free(row)
        body.forgotten.append(int(track_id))  # a state holds no tensors or numpy's numbers of the caller's
        return OnlineState(self.take())

    def drop_held_frame(self) -> OnlineState:
        """Drops the frame that is kept back for its sound (`alignment="official"`): it will have no result.

        For one that the model makes NaN of, so that every further step would be refused. If none is there,
        nothing changes.

        Returns:
            The state to go on with; this one is consumed.
        """
        if (held := self.body.held) is not None:
            held.waiting = False
        return OnlineState(self.take())


def _row(table: IdentityTable, track_id: int) -> int:
    track_id = whole_number(track_id, "track_id")
    row = table.row_of(track_id)
    known = sorted(table.public_id[table.public_id > 0].tolist())
    require(row is not None, "track_id", track_id, f"one of {known}")
    assert row is not None
    return row


def _flat(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go to `tensors` under names that say where they were."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    kind = type(value).__name__
    if kind in _PARTS:
        own = {f.name: _flat(getattr(value, f.name), f"{name}.{kind}.{f.name}", tensors) for f in fields(value)}
        return {"part": kind, "fields": own}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [
            _flat(item, f"{name}.{n}", tensors) for n, item in enumerate(value)
        ]}  # fmt: skip
    return value


def _built(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "part" in plain:
        return _PARTS[plain["part"]](**{name: _built(own, tensors) for name, own in plain["fields"].items()})
    if "tuple" in plain:
        return tuple(_built(item, tensors) for item in plain["tuple"])
    return [_built(item, tensors) for item in plain["list"]]
