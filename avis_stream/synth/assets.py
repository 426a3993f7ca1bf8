"""A folder of cut-outs, sounds, backgrounds and labelled photographs as a library (`--assets DIR`).

    DIR/sprites/<class>/*.png      RGBA cut-outs            DIR/sounds/<class>/*.ogg|wav      recordings
    DIR/backgrounds/*.jpg          places without objects   DIR/sounds_other/<kind>/*.ogg     sounds of no class
    DIR/{coco,pet}_images/*.jpg    photographs, with outlines in DIR/{coco,pet}_labels/*.txt (class, x, y, x, y, ...)

Whatever stems from one photograph, one animal or one sampled instrument goes to one split: its key is the file's name
without the parts that count variants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

from avis_stream.errors import DataError
from avis_stream.files import as_file
from avis_stream.synth.library import Photograph, Rng, Sound, Sprite, prepared_sound
from avis_stream.synth.protocol import Protocol

COCO_CLASSES = {1: "person", 3: "car", 5: "airplane", 17: "cat", 18: "dog", 19: "horse"}
SOUND_FILES = frozenset({".ogg", ".wav", ".flac", ".mp3"})
_LARGEST_SIDE = 640
_SMALLEST_AREA = 700
_LARGEST_PART = 0.85
_FEW = 4
"""Classes with at most so many cut-outs are looked through at once, so that none is offered without a usable one."""
_SOLIDITY = 0.45
_MOST_SHOWN = 4
"""Objects of a photograph that a scene tells of."""
Part = TypeVar("Part")


class AssetLibrary:
    """The parts of one split; files are read when first asked for and kept."""

    def __init__(self, folder: Path, protocol: Protocol, split: str, *, only: Collection[str] | None = None) -> None:
        """Lists the folder.

        Args:
            folder: As above.
            protocol: Says which file belongs to which split.
            split: `train`, `val` or `test`.
            only: Classes to use, in photographs too; None: all that have both cut-outs and sounds.
        Raises:
            DataError: No class has both cut-outs and sounds.
        """
        self._protocol, self._split, self._folder, self._only = protocol, split, folder, only
        self._sprites = {c: self._pictures(folder / "sprites" / c, c) for c in folders(folder / "sprites")}
        self._sounds = {c: self._recordings(folder / "sounds" / c, c) for c in folders(folder / "sounds")}
        usable = (c for c in self._sprites if self._sprites[c] and self._sounds.get(c))
        self.classes = tuple(sorted(c for c in usable if only is None or c in only))
        if not self.classes:
            wanted = "" if only is None else f" of {', '.join(only)}"
            raise DataError(f"{folder}: no class{wanted} has both sprites/<class>/*.png and sounds/<class>/*.ogg")
        self._other = sorted(
            path
            for kind in folders(folder / "sounds_other")
            for path in self._recordings(folder / "sounds_other" / kind, kind)
        )
        self._backgrounds = self._places()
        self._photographs = self._labelled()

    @property
    def has_photographs(self) -> bool:
        """Whether `photograph` can be asked."""
        return bool(self._photographs)

    def sprite(self, class_name: str, rng: Rng) -> Sprite:
        """A cut-out of a class that is whole enough to be recognised."""
        return first_good(self._sprites[class_name], rng, _read_sprite)

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        """A recording of a class; None: of something that belongs to no class."""
        return first_good(self._other if class_name is None else self._sounds[class_name], rng, read_sound)

    def background(self, rng: Rng) -> NDArray[np.uint8]:
        """A place, [H, W, 3]."""
        return _read_picture(self._backgrounds[rng.integers(len(self._backgrounds))])

    def photograph(self, rng: Rng) -> Photograph:
        """A labelled photograph; at most four of its objects, the largest."""
        return first_good(self._photographs, rng, self._of_wanted)

    def _of_wanted(self, label: Path) -> Photograph | None:
        """A photograph with those of its objects that are of classes to use; None without any."""
        photograph = _read_photograph(label)
        if photograph is None:
            return None
        objects = tuple(own for own in photograph.objects if self._only is None or own[0] in self._only)
        return replace(photograph, objects=objects[:_MOST_SHOWN]) if objects else None

    def _pictures(self, folder: Path, class_name: str) -> list[Path]:
        paths = [p for p in sorted(folder.glob("*.png")) if picture_key(p.stem) not in self._protocol.excluded_pictures]
        if class_name in self._protocol.disjoint:
            paths = [p for p in paths if self._protocol.split_of("pictures", picture_key(p.stem)) == self._split]
        return paths if len(paths) > _FEW else [p for p in paths if _read_sprite(p) is not None]

    def _recordings(self, folder: Path, class_name: str) -> list[Path]:
        paths = sorted(p for p in folder.iterdir() if p.suffix in SOUND_FILES)
        own = [
            p for p in paths if self._protocol.split_of("sounds", f"{class_name}/{sound_key(p.stem)}") == self._split
        ]
        return own or paths  # a class with one source lends it to every split; the protocol counts it apart

    def _places(self) -> list[Path]:
        clean = self._folder / "backgrounds_clean.txt"
        names = clean.read_text().split() if clean.is_file() else []
        paths = sorted((self._folder / "backgrounds").glob("*.jpg"))
        paths += sorted(self._folder / "coco_images" / Path(name).with_suffix(".jpg").name for name in names)
        own = [p for p in paths if p.is_file() and self._protocol.split_of("pictures", p.stem) == self._split]
        if not own:
            raise DataError(f"{self._folder}: no backgrounds/*.jpg for the split {self._split!r}")
        return own

    def _labelled(self) -> list[Path]:
        """Labels of this split; none at all where none of them has a class to use."""
        labels = sorted(p for kind in ("coco", "pet") for p in (self._folder / f"{kind}_labels").glob("*.txt"))
        own = [
            p
            for p in labels
            if p.stem not in self._protocol.excluded_pictures
            and self._protocol.split_of("pictures", p.stem) == self._split
        ]
        # The others stay: the order in which photographs are drawn, and so every made set, depends on their number.
        return own if self._only is None or any(name in self._only for p in own for name, _ in _outlines(p)) else []


def picture_key(stem: str) -> str:
    """The photograph that a cut-out stems from: `coco_000000000036_0` is from 000000000036."""
    if stem.startswith(("coco_", "bsds_")):
        return stem.rsplit("_", 1)[0].removeprefix("coco_")
    return stem.removeprefix("pet_")


def sound_key(stem: str) -> str:
    """The animal, speaker, sampled instrument or longer recording that a sound stems from."""
    if stem.startswith(("catmeows_", "fsdd_")):
        return "_".join((stem.split("_")[0], stem.split("_")[2]))
    if stem.startswith("gs_"):
        return stem.rsplit("_", 1)[0]
    if stem.startswith("fluid_"):
        return "fluid"
    return stem.split("-")[0] + "-" + stem.split("-")[1] if stem.startswith("esc10_") else stem


def folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order; none where it is not there."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def first_good(paths: list[Path], rng: Rng, read: Callable[[Path], Part | None]) -> Part:
    """Reads files in random order until one is good."""
    for index in rng.permutation(len(paths)):
        part = read(paths[index])
        if part is not None:
            return part
    raise DataError(f"none of {len(paths)} files is usable, for example {paths[0] if paths else 'none at all'}")


@functools.lru_cache(maxsize=2048)
def _read_sprite(path: Path) -> Sprite | None:
    """A cut-out whose largest part is most of it and is not in shreds; None otherwise."""
    rgba = np.asarray(Image.open(path).convert("RGBA"))
    parts, count = ndimage.label(rgba[..., 3] > 127)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    largest = int(sizes.argmax()) + 1
    y, x = np.nonzero(parts == largest)
    if sizes.sum() < _SMALLEST_AREA or sizes.max() < _LARGEST_PART * sizes.sum():
        return None
    if sizes.max() < _SOLIDITY * ConvexHull(np.stack([x, y], axis=1)).volume:
        return None
    kept = rgba.copy()
    kept[..., 3] = np.where(parts == largest, kept[..., 3], 0)
    kept = kept[y.min() : y.max() + 1, x.min() : x.max() + 1]
    scale = _LARGEST_SIDE / max(kept.shape[:2])
    if scale < 1:
        size = (max(2, round(kept.shape[1] * scale)), max(2, round(kept.shape[0] * scale)))
        kept = np.asarray(Image.fromarray(kept).resize(size, Image.Resampling.LANCZOS))
    return Sprite(kept, path.stem)


@functools.lru_cache(maxsize=4096)
def read_sound(path: Path) -> Sound | None:
    """A recording at 16 kHz; None where nothing can be heard in it.

    Raises:
        DataError: It cannot be decoded.
    """
    return prepared_sound(decoded(path), path.stem)


def decoded(path: Path, form: str | None = None) -> NDArray[np.float32]:
    """All of a recording, float32 [n] at 16 kHz, one channel.

    Args:
        path: The file.
        form: FFmpeg's name of its format; None: what it looks like.
    Raises:
        DataError: It cannot be decoded.
    """
    resampler = av.AudioResampler("flt", "mono", 16_000)
    try:
        with av.open(as_file(path), format=form, metadata_errors="replace") as container:  # titles may be in any code
            blocks = [b.to_ndarray()[0] for frame in container.decode(audio=0) for b in resampler.resample(frame)]
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: no sound in it
        raise DataError(f"{path} cannot be read as a recording ({error}): mend it or take it away") from None
    blocks += [b.to_ndarray()[0] for b in resampler.resample(None)]
    return np.concatenate(blocks).astype(np.float32) if blocks else np.zeros(0, np.float32)


@functools.lru_cache(maxsize=512)
def _read_picture(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def _outlines(label: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """Class and points, in parts of the picture, of each object of a known class; empty lines say nothing."""
    found = []
    for line in filter(str.strip, label.read_text().splitlines()):
        number, *points = line.split()
        class_name = COCO_CLASSES.get(int(float(number)))
        if class_name is not None and len(points) >= 6:
            numbers = [float(value) for value in points]
            found.append((class_name, list(zip(numbers[::2], numbers[1::2], strict=False))))
    return found


@functools.lru_cache(maxsize=512)
def _read_photograph(label: Path) -> Photograph | None:
    """A photograph with all its objects of known classes, the largest first; None without any."""
    picture = label.parents[1] / label.parent.name.replace("labels", "images") / f"{label.stem}.jpg"
    if not picture.is_file():
        return None
    rgb = _read_picture(picture)
    height, width = rgb.shape[:2]
    objects = []
    for class_name, points in _outlines(label):
        canvas = Image.new("1", (width, height))
        ImageDraw.Draw(canvas).polygon([(x * width, y * height) for x, y in points], fill=1)
        mask = np.asarray(canvas)
        if mask.sum() >= 0.004 * mask.size:
            objects.append((class_name, mask))
    objects.sort(key=lambda entry: -int(entry[1].sum()))
    return Photograph(rgb, tuple(objects), label.stem) if objects else None
