"""A folder of numbered images as the pictures of a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from avis_stream.data.images import read_image
from avis_stream.errors import DataError, MediaError
from avis_stream.sources.container import BrokenMedia
from avis_stream.sources.pictures import PREVIOUS_SECONDS, Picture

# An image a whole second earlier says nothing about motion: neighbours serve only where they are about 100 ms away.
_NEIGHBOUR_SECONDS = 2 * PREVIOUS_SECONDS


@dataclass(frozen=True, slots=True)
class FolderPictures:
    """Numbered images: image k is shown at k / fps seconds, whatever fps is asked for."""

    images: tuple[Path, ...]
    earlier: tuple[Path | None, ...]
    """Images about 100 ms before each, where the data set has them."""
    width: int
    height: int
    fps: Fraction

    @property
    def rate(self) -> None:
        """Every image is handed out: there are no pictures in between."""
        return None

    @property
    def pixel_aspect(self) -> Fraction:
        """Single pictures have square pixels."""
        return Fraction(1)

    @property
    def duration_seconds(self) -> float:
        """One interval for each image."""
        return float(len(self.images) / self.fps)

    def sample(self, fps: Fraction, *, previous: bool) -> Iterator[Picture]:
        """Yields every image in order, with the one about 100 ms earlier where there is one."""
        for index, path in enumerate(self.images):
            try:
                image = self._read(path)
                before = self._before(index, fps) if previous else None
                yield Picture(image, None if before is None else self._read(before))
            except MediaError as error:
                raise BrokenMedia(f"breaks off at image {index + 1} of {len(self.images)}: {error}") from error

    def _before(self, index: int, fps: Fraction) -> Path | None:
        if self.earlier[index] is not None:
            return self.earlier[index]
        steps = -(-PREVIOUS_SECONDS * fps // 1)  # images to go back: at least 100 ms
        if index - steps < 0 or steps / fps > _NEIGHBOUR_SECONDS:
            return None
        return self.images[index - int(steps)]

    def _read(self, path: Path) -> Tensor:
        image = read_picture(path)
        if tuple(image.shape[1:]) != (self.height, self.width):
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise MediaError(f"{path} is {size} but the folder began with {self.width}x{self.height}; use one size")
        return image


def read_picture(path: Path) -> Tensor:
    """A picture as uint8 [3, H, W] RGB.

    Raises:
        MediaError: It is missing or no picture.
    """
    try:
        return read_image(path)
    except DataError as error:
        raise MediaError(str(error)) from error
