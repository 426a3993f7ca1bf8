"""A library whose parts never look or sound twice the same, for training from few cut-outs and few recordings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avis_stream.config import AugmentConfig
from avis_stream.synth.library import Library, Photograph, Rng, Sound, Sprite
from avis_stream.train.sound_augment import equalised, retuned

_LARGEST_SIDE = 320
"""Cut-outs are shrunk to this before anything else: training pictures are not larger."""
_CUT_SHARE = 0.2
_CUT_MOST = 0.35


class VariedLibrary:
    """Another library with its cut-outs bent and its recordings retuned; places and photographs stay as they are."""

    def __init__(self, library: Library, config: AugmentConfig, only: Collection[str] | None = None) -> None:
        """`only`: classes to hand out; None, or none of them there: all."""
        self._library, self._config = library, config
        wanted = tuple(name for name in library.classes if only is not None and name in only)
        self.classes = wanted or library.classes

    @property
    def has_photographs(self) -> bool:
        """Whether `photograph` can be asked."""
        return self._library.has_photographs

    def sprite(self, class_name: str, rng: Rng) -> Sprite:
        """A cut-out of a class, sheared, stretched, tinted and at times cut off, by up to `config.bend`."""
        sprite = self._library.sprite(class_name, rng)
        return replace(sprite, rgba=bent(sprite.rgba, self._config.bend, rng)) if self._config.bend > 0 else sprite

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        """A recording of a class, higher or lower by up to `config.sound.pitch`, through another microphone."""
        sound, own = self._library.sound(class_name, rng), self._config.sound
        if own.pitch > 0:
            factor = float(np.exp(rng.uniform(-own.pitch, own.pitch)))
            samples = retuned(sound.samples, factor)
            loud = np.unique((sound.loud / factor).astype(np.int64).clip(max=len(samples) - 1))
            sound = replace(sound, samples=samples, loud=loud)
        return replace(sound, samples=equalised(sound.samples, own.equaliser_db, rng))

    def background(self, rng: Rng) -> NDArray[np.uint8]:
        """A place, [H, W, 3]."""
        return self._library.background(rng)

    def photograph(self, rng: Rng) -> Photograph:
        """A labelled photograph."""
        return self._library.photograph(rng)


def bent(rgba: NDArray[np.uint8], most: float, rng: Rng) -> NDArray[np.uint8]:
    """A cut-out [h, w, 4] of the same thing seen a little differently, cropped to what is left of it."""
    picture = Image.fromarray(rgba)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    shear, stretch = rng.uniform(-most, most), float(np.exp(rng.uniform(-most, most)))
    width = max(2, round(picture.width * stretch + abs(shear) * picture.height))
    # Rows of the inverse map: where each pixel of the new picture comes from.
    back = (1 / stretch, shear / stretch, -max(0.0, shear) * picture.height / stretch, 0.0, 1.0, 0.0)
    picture = picture.transform((width, picture.height), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    turned = np.asarray(picture).copy()
    hue, saturation = rng.uniform(-most, most) * 40, float(np.exp(rng.uniform(-2 * most, 2 * most)))
    colours = np.asarray(picture.convert("RGB").convert("HSV")).astype(np.int16)
    colours[..., 0] = (colours[..., 0] + round(hue)) % 256
    colours[..., 1] = np.clip(colours[..., 1] * saturation, 0, 255)
    turned[..., :3] = np.asarray(Image.fromarray(colours.astype(np.uint8), "HSV").convert("RGB"))
    if rng.random() < _CUT_SHARE:
        kept = 1 - rng.uniform(0.1, _CUT_MOST)
        height, width = turned.shape[:2]
        side = int(rng.integers(4))
        rows = (slice(None), slice(None, round(height * kept)), slice(round(height * (1 - kept)), None), slice(None))
        columns = (slice(None, round(width * kept)), slice(None), slice(None), slice(round(width * (1 - kept)), None))
        turned = turned[rows[side], columns[side]]
    y, x = np.nonzero(turned[..., 3] > 127)
    if len(y) < 16:
        return rgba
    return np.ascontiguousarray(turned[y.min() : y.max() + 1, x.min() : x.max() + 1])
