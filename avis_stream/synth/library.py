"""What scenes are made from: cut-outs, sounds, places and labelled photographs, of one split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as TypingProtocol

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """A cut-out of one object."""

    rgba: NDArray[np.uint8]
    """[h, w, 4], cropped to the object."""
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """A recording of one class, at 16 kHz, with its level evened out."""

    samples: NDArray[np.float32]
    """[n], mean removed, loud parts at an RMS of 1."""
    loud: NDArray[np.int64]
    """Sample indices at which something can be heard: where a sounding second may begin."""
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """A real picture whose objects are labelled."""

    rgb: NDArray[np.uint8]
    """[H, W, 3]."""
    objects: tuple[tuple[str, NDArray[np.bool_]], ...]
    """(class, mask [H, W]) of each."""
    name: str


class Library(TypingProtocol):
    """Hands out the parts of scenes; the same `rng` state gives the same parts."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes with both a look and a sound."""

    @property
    def has_photographs(self) -> bool:
        """Whether `photograph` can be asked."""

    def sprite(self, class_name: str, rng: Rng) -> Sprite:
        """A cut-out of a class."""

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        """A recording of a class; None: of something that belongs to no class."""

    def background(self, rng: Rng) -> NDArray[np.uint8]:
        """A place, [H, W, 3]."""

    def photograph(self, rng: Rng) -> Photograph:
        """A labelled photograph."""


def prepared_sound(samples: NDArray[np.float32], name: str, rate: int = 16_000) -> Sound | None:
    """Evens out a recording and finds where it is loud; None if it is silent or shorter than 0.1 s."""
    if len(samples) < rate // 10:
        return None
    centred = samples - samples.mean()
    window, hop = rate // 4, rate // 8
    padded = np.pad(centred, (0, window))
    starts = np.arange(0, len(centred), hop)
    level = np.sqrt(np.array([np.mean(padded[s : s + window] ** 2) for s in starts]))
    if level.max() < 1e-4:
        return None
    loud = level > 0.25 * level.max()
    scale = np.sqrt(np.mean(level[loud] ** 2))
    return Sound((centred / scale).astype(np.float32), starts[loud], name)
