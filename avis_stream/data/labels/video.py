"""What all label formats come down to: videos of images with tracked, outlined objects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avis_stream.data import rle
from avis_stream.data.rle import Rle
from avis_stream.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class LabelledObject:
    """One object through its video."""

    class_name: str
    masks: Mapping[int, Rle]
    """By frame, while it sounds; frames that are missing have no mask."""
    crowd: bool = False
    visible: Mapping[int, Rle] | None = None
    """By frame, of its silent seconds too; None: nothing is known about those."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVideo:
    """A video as a labelling tool knows it."""

    name: str
    width: int
    height: int
    images: tuple[str, ...]
    """File of each frame, relative to the folder of images."""
    objects: tuple[LabelledObject, ...]
    silent: tuple[LabelledObject, ...] = ()
    """Those that are seen and never sound: they have `visible` alone."""
    classes: tuple[str, ...] = ()
    """All that the tool lists, in its order, with and without objects; empty where it lists none."""


@dataclass(slots=True)
class TrackBook:
    """Collects masks frame by frame under whatever a format calls one object."""

    classes: dict[Any, str] = field(default_factory=dict)
    masks: dict[Any, dict[int, Rle]] = field(default_factory=dict)
    crowds: set[Any] = field(default_factory=set)

    def add(self, key: Any, class_name: str, frame: int, mask: Rle, *, crowd: bool = False) -> None:
        """Adds a mask; a second one of the same object in the same frame is united with the first.

        One without a pixel is silence, so it is none.
        """
        if not rle.area(mask):
            return
        self.classes.setdefault(key, class_name)
        own = self.masks.setdefault(key, {})
        own[frame] = united(own[frame], mask) if frame in own else mask
        if crowd:
            self.crowds.add(key)

    def objects(self) -> tuple[LabelledObject, ...]:
        """All objects, in order of their first mask."""
        return tuple(LabelledObject(self.classes[key], masks, key in self.crowds) for key, masks in self.masks.items())


def folder_names(paths: Sequence[str]) -> list[str]:
    """A folder's name for each video, of the name or path that a tool gives it; one part, so it leads nowhere else.

    It is the last part, where only one video's path ends in that, else all parts, `A_rgb` for `A/rgb`.
    """
    parts = [[part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")] for path in paths]
    ends = Counter(own[-1] for own in parts if own)
    return [own[-1] if own and ends[own[-1]] == 1 else "_".join(own) for own in parts]


def united(one: Rle, other: Rle) -> Rle:
    """The pixels of both masks."""
    return rle.encode(rle.decode(one) | rle.decode(other))


def class_names(videos: Iterable[LabelledVideo]) -> list[str]:
    """Every class: those that the tool lists, in its order, then others in order of appearance."""
    return list(
        dict.fromkeys(
            name for v in videos for name in (*v.classes, *(own.class_name for own in (*v.objects, *v.silent)))
        )
    )


def field_of(entry: Mapping[str, Any], name: str, path: Path, where: str) -> Any:
    """`entry[name]`.

    Raises:
        DataError: It is missing; the message says in what.
    """
    if not isinstance(entry, Mapping) or name not in entry:
        raise DataError(f"{path}: {where} has no {name!r}; is the file of this format?")
    return entry[name]
