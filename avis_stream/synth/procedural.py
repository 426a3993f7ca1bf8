"""A library that needs no files: each class is a textured shape with a timbre of its own, places are painted noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from avis_stream.config import AVISEG_CLASSES
from avis_stream.errors import DataError
from avis_stream.synth.library import Photograph, Rng, Sound, Sprite, prepared_sound

_RATE = 16_000
_SIDE = 240


class ProceduralLibrary:
    """Draws and plays anything at once; splits differ in nothing but the randomness they are asked with."""

    def __init__(self, classes: tuple[str, ...] = AVISEG_CLASSES) -> None:
        self.classes = classes

    @property
    def has_photographs(self) -> bool:
        """There are none."""
        return False

    def sprite(self, class_name: str, rng: Rng) -> Sprite:
        """A shape whose corners, colour and pattern tell its class."""
        number = self.classes.index(class_name)
        corners, spikes = 3 + number % 5, 0.35 + 0.13 * (number // 5 % 5)
        canvas = Image.new("L", (_SIDE, _SIDE))
        angle = np.arange(2 * corners) * np.pi / corners + rng.uniform(0, 0.3)
        radius = np.where(np.arange(2 * corners) % 2, spikes, 0.95) * rng.uniform(0.92, 1.0, 2 * corners)
        points = _SIDE / 2 * (1 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in points], fill=255)
        alpha = np.asarray(canvas.filter(ImageFilter.GaussianBlur(1.2)))
        stripes = np.sin(np.arange(_SIDE) * (0.06 + 0.05 * (number % 4)) + rng.uniform(0, 6))
        pattern = stripes[:, None] if number % 2 else stripes[:, None] * stripes[None, :]
        hue = (number * 0.618 + rng.uniform(-0.02, 0.02)) % 1.0
        paint = np.asarray(Image.new("HSV", (1, 1), (int(hue * 255), 190, 200)).convert("RGB"))[0, 0].astype(np.float32)
        colour = paint * (0.8 + 0.2 * pattern[..., None]) + rng.uniform(-8, 8, 3)
        colour = np.broadcast_to(np.clip(colour, 0, 255), (_SIDE, _SIDE, 3)).astype(np.uint8)
        return Sprite(np.dstack([colour, alpha]), f"{class_name}-shape")

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        """Four seconds of a tone whose pitch, overtones and pulse tell its class; None: filtered noise."""
        time = np.arange(4 * _RATE) / _RATE
        if class_name is None:
            coloured = gaussian_filter(rng.standard_normal(len(time)), rng.uniform(0.5, 6.0))
            return _prepared(coloured, "noise")
        number = self.classes.index(class_name)
        pitch = 110.0 * 2 ** (number * 5 % 26 / 8) * rng.uniform(0.97, 1.03)
        tone = sum(
            np.sin(2 * np.pi * pitch * h * time + rng.uniform(0, 6)) / h ** (0.6 + 0.3 * (number % 4))
            for h in range(1, 6)
        )
        pulse = 1 + 0.8 * np.sin(2 * np.pi * (1.5 + number % 7) * time + rng.uniform(0, 6))
        breath = 0.05 * (number % 3) * rng.standard_normal(len(time))
        return _prepared(tone * pulse + breath, f"{class_name}-tone")

    def background(self, rng: Rng) -> NDArray[np.uint8]:
        """Soft patches of muted colour, [360, 480, 3]."""
        noise = rng.standard_normal((45, 60, 3))
        soft = gaussian_filter(noise, (rng.uniform(2, 6), rng.uniform(2, 6), 0))
        soft = soft / soft.std() * 28 + rng.uniform(70, 170, 3)
        coarse = Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))
        return np.asarray(coarse.resize((480, 360), Image.Resampling.BICUBIC))

    def photograph(self, rng: Rng) -> Photograph:
        """There are none.

        Raises:
            DataError: Always; ask `has_photographs` first.
        """
        raise DataError("the procedural library has no photographs; use --assets DIR")


def _prepared(samples: NDArray[np.float64], name: str) -> Sound:
    sound = prepared_sound(samples.astype(np.float32), name)
    assert sound is not None
    return sound
