"""More recordings beside those of a library, for training alone: the splits of the library know nothing of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avis_stream.errors import DataError
from avis_stream.synth.assets import SOUND_FILES, first_good, folders, read_sound
from avis_stream.synth.library import Library, Photograph, Rng, Sound, Sprite

SHARE = 0.5
"""Chance that a sound of a class, or of none, is one of the further recordings, where there are any."""


class MoreSounds:
    """A library, and a folder of further recordings of its classes.

        DIR/sounds/<class>/<source>_*.flac      DIR/sounds_other/<kind>/<source>_*.flac (or .ogg, .wav, .mp3)

    A source (what stands before the first `_`, as the package it is from) is drawn first, then one of its files, so
    that one with many files is not heard more often than one with few.
    """

    def __init__(self, library: Library, folder: Path) -> None:
        """Lists the folder.

        Args:
            library: Whose cut-outs, places and other recordings.
            folder: As above.
        Raises:
            DataError: The folder has no recording of any of the library's classes.
        """
        self._library, self.classes = library, library.classes
        self._sounds = {name: _by_source(folder / "sounds" / name) for name in folders(folder / "sounds")}
        kinds = (folder / "sounds_other" / kind for kind in folders(folder / "sounds_other"))
        self._other = [source for kind in kinds for source in _by_source(kind)]
        if not any(self._sounds.get(name) for name in self.classes):
            wanted = ", ".join(self.classes)
            raise DataError(f"{folder}: no recordings (sounds/<class>/*.flac, .ogg, .wav or .mp3) of {wanted}")

    @property
    def has_photographs(self) -> bool:
        """Whether `photograph` can be asked."""
        return self._library.has_photographs

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        """A recording of a class, from either; None: of something that belongs to no class."""
        sources = self._other if class_name is None else self._sounds.get(class_name, [])
        if not sources or rng.random() >= SHARE:
            return self._library.sound(class_name, rng)
        return first_good(sources[rng.integers(len(sources))], rng, read_sound)

    def sprite(self, class_name: str, rng: Rng) -> Sprite:
        """A cut-out of a class."""
        return self._library.sprite(class_name, rng)

    def background(self, rng: Rng) -> NDArray[np.uint8]:
        """A place, [H, W, 3]."""
        return self._library.background(rng)

    def photograph(self, rng: Rng) -> Photograph:
        """A labelled photograph."""
        return self._library.photograph(rng)


def _by_source(folder: Path) -> list[list[Path]]:
    """The recordings in a folder, those of one source together; sources and files in order."""
    sources: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in SOUND_FILES:
            sources.setdefault(path.stem.partition("_")[0], []).append(path)
    return list(sources.values())
