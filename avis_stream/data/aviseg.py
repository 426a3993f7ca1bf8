"""The AVISeg data set on disk (`docs/formats.md`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True, slots=True)
class VideoFolder:
    """One video as AVISeg stores it: numbered images, a WAV beside them, and perhaps the images 100 ms earlier."""

    name: str
    images: tuple[Path, ...]
    """In order of their trailing number, one a second."""
    wav: Path | None
    previous: tuple[Path | None, ...]
    """`PrevImages/<video>/<k>.jpg` for each image; None where there is none."""


def number_of(path: Path) -> int | None:
    """The trailing number of a file's name: `frame_012.jpg` -> 12; None without one."""
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits.group(1)) if digits else None


def numbered_images(folder: Path) -> tuple[Path, ...]:
    """Images of a folder in order of their trailing number; files without a number are no frames."""
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    numbered = [(number, p.name, p) for p in images if (number := number_of(p)) is not None]
    return tuple(path for _, _, path in sorted(numbered))


def video_folder(folder: Path) -> VideoFolder:
    """Reads the layout around a folder of images; outside `<split>/JPEGImages/` it simply has no sound.

    Sound is `<split>/WAVAudios/<video>.wav` for images in `<split>/JPEGImages/<video>/`.
    """
    folder = folder.absolute()
    images = numbered_images(folder)
    if folder.parent.name != "JPEGImages":
        return VideoFolder(folder.name, images, None, (None,) * len(images))
    split = folder.parent.parent
    wav = split / "WAVAudios" / f"{folder.name}.wav"
    previous = tuple(previous_file(split, image) for image in images)
    return VideoFolder(folder.name, images, wav if wav.is_file() else None, previous)


def previous_file(split: Path, image: Path) -> Path | None:
    """`<split>/PrevImages/<video>/<k>.jpg`, the picture 100 ms before image `.../<video>/<k>.jpg`, if it is there."""
    path = split / "PrevImages" / image.parent.name / image.name
    return path if path.is_file() else None
