"""One split of a data set in AVISeg's layout: annotations, images, sound, and features of the sound where they are.

    DIR/train.json
    DIR/train/JPEGImages/<video>/<k>.jpg      one a second
    DIR/train/WAVAudios/<video>.wav
    DIR/train/FEATAudios/<video>.npy          [T, 128], optional
    DIR/train/PrevImages/<video>/<k>.jpg      100 ms before frame k, optional

What is in them: `docs/formats.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from torch import Tensor

from avis_stream.audio.resample import mono_seconds
from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, read_annotations, read_json
from avis_stream.data.aviseg import VideoFolder, numbered_images, previous_file
from avis_stream.data.images import read_image
from avis_stream.data.problems import Problem
from avis_stream.errors import DataError


def splits(root: str | Path) -> list[str]:
    """Names of the splits in a data set's folder: those of its `.json` files."""
    return sorted(path.stem for path in Path(root).glob("*.json"))


def set_categories(root: str | Path, *, without: str | None = None) -> tuple[dict[int, str], list[Problem]]:
    """Classes by id over the splits of a set, and where a split contradicts one before it.

    Files that cannot be read, or have no categories, are passed over here.

    Args:
        root: The set's folder; it need not be there.
        without: A split that is not asked.
    """
    known: dict[int, str] = {}
    problems: list[Problem] = []
    for split in (name for name in splits(root) if name != without):
        path = Path(root) / f"{split}.json"
        try:
            document = read_json(path)
        except DataError:
            continue
        entries = document.get("categories") if isinstance(document, dict) else None
        for n, entry in enumerate(entries if isinstance(entries, list) else ()):
            number, name = (entry.get(key) if isinstance(entry, dict) else None for key in ("id", "name"))
            if not isinstance(number, int) or not isinstance(name, str):
                continue
            before = next((i for i, known_name in known.items() if known_name == name), number)
            if before != number:
                problems.append(Problem(path, f"categories[{n}].id", f"{name} is {number}, in other splits {before}"))
            elif known.setdefault(number, name) != name:
                problems.append(
                    Problem(path, f"categories[{n}]", f"{number} is {name}, in other splits {known[number]}")
                )
    return known, problems


def annotation_file(root: str | Path, split: str) -> Path:
    """`root/split.json`.

    Raises:
        DataError: There is no such folder or split; the message says which there are.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds train.json, val.json or test.json")
    path = root / f"{split}.json"
    if not path.is_file():
        there = ", ".join(splits(root)) or "none: no .json file is in it"
        raise DataError(f"{path}: no such split; {root} has {there}")
    return path


def open_split(root: str | Path, split: str, classes: Sequence[str] | None = None) -> DataSplit:
    """Opens a split; images and sound are read when they are asked for.

    Args:
        root: Folder that holds `<split>.json` and `<split>/`.
        split: E.g. `train`.
        classes: What the model knows; None: any class will do.
    Raises:
        DataError: Files are missing or broken, the split is empty, or it has objects of classes not in `classes`.
    """
    annotations = read_annotations(annotation_file(root, split))
    if classes is not None:
        used = {track.category_id for tracks in annotations.tracks.values() for track in tracks}
        unknown = [name for number, name in annotations.categories.items() if number in used and name not in classes]
        if unknown:
            raise DataError(
                f"{annotations.path}: classes {', '.join(unknown)} are not among those of the model "
                f"({', '.join(classes[:5])}, ...); train with the classes of the data, or leave these objects out"
            )
    return DataSplit(Path(root), split, annotations)


@dataclass(frozen=True, slots=True, eq=False)
class DataSplit:
    """A split and where its files lie."""

    root: Path
    name: str
    annotations: Annotations

    def __len__(self) -> int:
        return len(self.annotations.videos)

    @property
    def folder(self) -> Path:
        """Of everything but the annotations."""
        return self.root / self.name

    def files(self, video: Video) -> VideoFolder:
        """A video's images in order of the annotations, its sound, and the images 100 ms earlier where they are."""
        pictures = self.folder / "JPEGImages"
        images = tuple(_below(pictures, name) for name in video.file_names)
        images = images or numbered_images(pictures / video.name)[: video.length]
        previous = tuple(previous_file(self.folder, image) for image in images)
        return VideoFolder(video.name, images, self._wav(video), previous)

    def _image_file(self, video: Video, t: int) -> Path:
        """That of one frame: asking for all of them at each would take the square of a video's length."""
        pictures = self.folder / "JPEGImages"
        if video.file_names:
            return _below(pictures, video.file_names[t])
        images = numbered_images(pictures / video.name)
        if t >= len(images):
            raise DataError(f"{pictures / video.name} has {len(images)} images, its video {video.length} frames")
        return images[t]

    def _wav(self, video: Video) -> Path | None:
        path = self.folder / "WAVAudios" / f"{video.name}.wav"
        return path if path.is_file() else None

    def features_file(self, video: Video) -> Path | None:
        """Stored features of a video's sound, if there are any."""
        path = self.folder / "FEATAudios" / f"{video.name}.npy"
        return path if path.is_file() else None

    def features(self, video: Video) -> Tensor | None:
        """Stored features float32 [T, A], one row a second; None where there are none: compute them from the WAV.

        Raises:
            DataError: The file is broken or too short for the video.
        """
        path = self.features_file(video)
        if path is None:
            return None
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no .npy file of numbers ({error}); make it again or remove it") from error
        if array.ndim != 2 or len(array) < video.length or array.dtype.kind != "f":
            raise DataError(
                f"{path} must be floats [{video.length} or more, A], got {array.dtype} {list(array.shape)}; "
                "make it again or remove it"
            )
        return torch.from_numpy(array[: video.length].astype(np.float32))

    def image(self, video: Video, t: int) -> Tensor:
        """Frame t, uint8 [3, H, W] RGB.

        Raises:
            DataError: The file is missing or broken, or its size is not the video's.
        """
        return self._read(self._image_file(video, t), video)

    def previous(self, video: Video, t: int) -> Tensor | None:
        """The picture 100 ms before frame t, uint8 [3, H, W]; None in sets without them."""
        path = previous_file(self.folder, self._image_file(video, t))
        return None if path is None else self._read(path, video)

    def seconds(self, video: Video, frames: Sequence[int]) -> Tensor:
        """The second of sound of each frame, float32 [len(frames), 16000]; silence where the video has none.

        Raises:
            DataError: The WAV is broken.
        """
        return self.sound(video, frames)[0]

    def sound(self, video: Video, frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`seconds`, and how many samples of each there were, int64 [len(frames)]: a WAV may end within a second.

        Raises:
            DataError: The WAV is broken.
        """
        wav = self._wav(video)
        if wav is None:
            return torch.zeros(len(frames), 16_000), torch.zeros(len(frames), dtype=torch.int64)
        rate, samples = _samples(wav)
        waves = [_as_floats(samples[t * rate : (t + 1) * rate]) for t in frames]
        cut = [mono_seconds(w.T if w.dim() == 2 else w, rate, 1) for w in waves]
        return torch.cat([second for second, _ in cut]), torch.cat([valid for _, valid in cut])

    def _read(self, path: Path, video: Video) -> Tensor:
        picture = read_image(path)
        if picture.shape[1:] != (video.height, video.width):
            raise DataError(
                f"{path} is {picture.shape[2]}x{picture.shape[1]}, {self.annotations.path} says "
                f"{video.width}x{video.height}; correct whichever is wrong"
            )
        return picture


def _below(folder: Path, name: str) -> Path:
    """A file named in annotations, which may have been written on Windows."""
    return folder / name.replace("\\", "/")


def _samples(wav: Path) -> tuple[int, NDArray[Any]]:
    """Rate, and samples [n] or [n, channels] as they are stored, read where they are asked for if they can be."""
    try:
        try:
            found = wavfile.read(wav, mmap=True)
        except ValueError:  # samples of 24 bits have no type of their own, so they are read whole
            found = wavfile.read(wav)
    except (OSError, ValueError) as error:
        raise DataError(f"{wav} cannot be read as WAV ({error}); convert it to 16-bit PCM") from error
    return found[0], found[1]


def _as_floats(samples: NDArray[Any]) -> Tensor:
    """Samples as float32 in [-1, 1]; those of 8 bits have no sign, their silence is 128."""
    kind = samples.dtype
    if kind.kind == "f":
        return torch.from_numpy(np.asarray(samples, np.float32))
    half = float(np.iinfo(kind).max // 2 + 1) if kind.kind == "u" else float(np.iinfo(kind).max) + 1.0
    middle = half if kind.kind == "u" else 0.0
    return torch.from_numpy((np.asarray(samples, np.float32) - middle) / half)


def masks_of(track: Track, video: Video, frames: Sequence[int], *, visible: bool = False) -> Tensor:
    """Masks of an object in some frames, bool [len(frames), H, W]; all False where it has none.

    Args:
        track: The object.
        video: It is in.
        frames: Which.
        visible: Take the masks of silent seconds too, in sets that have them.
    Raises:
        DataError: A mask is of another size than its video.
    """
    stored = track.visible if visible and track.visible is not None else track.segmentations
    masks = torch.zeros(len(frames), video.height, video.width, dtype=torch.bool)
    for row, t in enumerate(frames):
        if stored[t] is not None:
            mask = rle.decode(stored[t], video.height, video.width)
            if mask.shape != masks[row].shape:
                raise DataError(
                    f"video {video.name!r}, frame {t}: a mask of {mask.shape[1]}x{mask.shape[0]} in a video of "
                    f"{video.width}x{video.height}; write masks at the size of the video"
                )
            masks[row] = mask
    return masks
