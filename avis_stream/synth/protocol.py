"""The frozen protocol: what scenes are made of and how often, fixed before the first long training."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from avis_stream.errors import DataError

SPLITS = ("train", "val", "test")
_SHIPPED = Path(__file__).parents[1] / "data"
DEFAULT = _SHIPPED / "protocol_v1.json"
STREAMS = _SHIPPED / "streams_v1.json"
"""Minutes instead of seconds, for what an online model remembers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Numbers that scenes are drawn by; shares are probabilities, `[low, high]` pairs are uniform ranges."""

    version: int
    size: tuple[int, int]
    """Width and height in pixels."""
    seconds: dict[str, tuple[int, int]]
    """Length of a video, by split."""
    visible_objects: tuple[float, ...]
    """Chances of 1, 2, 3, 4 objects."""
    pair_share: float
    """Videos with two objects of one class."""
    pair_cued_share: float
    """Those of them in which the one that sounds moves, and only that one."""
    moves_regardless_share: float
    """Other objects that move all the time, whether they sound or not."""
    one_stays_silent_share: float
    """Videos in which fewer objects sound than are visible, throughout."""
    sounding_transition: tuple[tuple[float, ...], ...]
    """Chances of n objects sounding in a second after m in the one before; counted from AVISeg's training videos."""
    sounding_start: tuple[float, ...]
    handover_share: float
    """Seconds in which one object stops and another begins."""
    offscreen_share: float
    """Seconds with a sound whose source is not in the picture."""
    offscreen_other_share: float
    """Those of them with a sound of no class (rain, a clock) instead of an absent object's."""
    leaves_share: float
    leaves_seconds: tuple[int, int]
    held_share: float
    """Instruments that stand in front of a silent person."""
    object_height: tuple[float, float]
    """Of the picture's height, before `object_scale`."""
    object_scale: tuple[float, float]
    edge_share: float
    """Objects that the frame's edge cuts."""
    camera_moves_share: float
    room_tone_dbfs: tuple[float, float]
    object_dbfs: tuple[float, float]
    photograph_share: dict[str, float]
    """Scenes that are real labelled photographs, by split; those of val and test are sets of their own."""
    disjoint: tuple[str, ...]
    """Classes whose cut-outs no two splits share; results are given for them apart."""
    instruments: tuple[str, ...]
    held_out: dict[str, dict[str, str]]
    """Pictures and sounds whose split is set by hand, because their class has few."""
    excluded_pictures: tuple[str, ...]
    """Pictures of the demo clip, which no split may show."""
    digest: str
    """SHA-256 of the file's contents (keys sorted), in every result."""
    visit_seconds: tuple[int, int] | None = None
    """Objects come and go all the time and stay for so long; away, for `leaves_seconds`, short absences as likely as
    long ones. None: each leaves once at most."""
    returns_differ: bool = False
    """Whoever returns does so elsewhere, in another size, light and perhaps mirrored; False: mirrored at most."""

    @staticmethod
    @functools.cache
    def load(path: Path = DEFAULT) -> Protocol:
        """Reads a protocol.

        Raises:
            DataError: Missing, no JSON, or fields missing or unknown.
        """
        try:
            plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a protocol: {error}") from error
        known = {f.name for f in fields(Protocol)} - {"digest"}
        wanted = {f.name for f in fields(Protocol) if f.default is MISSING} - {"digest"}
        if not wanted <= set(plain) <= known:
            missing, unknown = sorted(wanted - set(plain)), sorted(set(plain) - known)
            raise DataError(f"{path}: fields missing {missing}, unknown {unknown}; see {DEFAULT.name}")
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return Protocol(**_frozen(plain), digest=hashlib.sha256(canonical.encode()).hexdigest())

    def split_of(self, kind: str, key: str) -> str:
        """The split that a picture or a sound belongs to, for ever: by hand where set, else by its name.

        Args:
            kind: `pictures` or `sounds`.
            key: The recording or photograph it stems from; for sounds with the class in front.
        """
        by_hand = self.held_out[kind].get(key)
        if by_hand is not None:
            return by_hand
        bucket = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 10
        return "test" if bucket < 2 else "val" if bucket == 2 else "train"


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(entry) for key, entry in value.items()}
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value
