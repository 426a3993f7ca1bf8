"""Pictures of the demo clip: a generated lawn before a fence, and cut-outs that move. Used by make_demo_clip.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates

WORLD = (720, 405)
"""Width and height of the scene; the camera sees a little less of it."""

HORIZON = 196

FloatArray = NDArray[np.float32]


def background(rng: np.random.Generator) -> Image.Image:
    """A weathered fence under foliage, and a lawn, all drawn from random numbers."""
    height = WORLD[1]
    picture = Image.fromarray(_lawn_ground(rng).astype(np.uint8))
    _blades(picture, rng, count=15_000, top=HORIZON - 2, bottom=height + 12)
    near = np.asarray(picture, np.float32)
    far = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    depth = np.clip((np.arange(height) - HORIZON) / 110, 0, 1)[:, None, None]
    lawn = far * (1 - depth) + near * depth
    lawn[:HORIZON] = _fence(rng)[:HORIZON]
    seam = gaussian_filter(lawn[HORIZON - 14 : HORIZON + 14], (2.2, 0, 0))
    lawn[HORIZON - 8 : HORIZON + 8] = seam[6:22]
    return Image.fromarray((lawn * sunlight()).clip(0, 255).astype(np.uint8))


def sunlight() -> FloatArray:
    """Brightness by column, [1, W, 1]: the sun stands on the left."""
    light: FloatArray = (1.06 - 0.24 * (np.arange(WORLD[0]) / WORLD[0]))[None, :, None].astype(np.float32)
    return light


def _lawn_ground(rng: np.random.Generator) -> FloatArray:
    width, height = WORLD
    down = np.clip((np.arange(height) - HORIZON) / (height - HORIZON), 0, 1)[:, None, None]
    far, near = np.array([104, 128, 62.0]), np.array([62, 96, 34.0])
    ground = far * (1 - down) + near * down
    patches = gaussian_filter(rng.normal(size=(height, width)), (9, 40))
    patches = patches / patches.std() * 7
    return (ground + patches[..., None] * np.array([1.0, 1.0, 0.4])).clip(0, 255).astype(np.float32)


def _blades(
    picture: Image.Image, rng: np.random.Generator, *, count: int, top: int, bottom: int, alpha: int = 255
) -> None:
    """Draws blades of grass whose foot lies between `top` and `bottom`, far ones first, nearer ones longer."""
    pen = ImageDraw.Draw(picture, picture.mode)
    foot_y = np.sort(rng.uniform(top, bottom, count))
    for y in foot_y:
        near = float(np.clip((y - HORIZON) / (WORLD[1] - HORIZON), 0, 1.1))
        length = (2.0 + 15.0 * near) * rng.uniform(0.5, 1.15)
        x, lean = rng.uniform(-5, WORLD[0] + 5), rng.normal(0, 0.33)
        shade = rng.normal(0, 1)
        color = np.array([86, 122, 46]) + shade * np.array([17, 19, 9]) + (1 - near) * np.array([24, 18, 16])
        middle = (x + lean * length * 0.35, y - length * 0.6)
        tip = (x + lean * length, y - length)
        tint = (*(int(c) for c in color.clip(20, 235)), alpha)[: 4 if picture.mode == "RGBA" else 3]
        pen.line([(x, y), middle, tip], fill=tint, width=2 if near > 0.55 else 1)


def _fence(rng: np.random.Generator) -> FloatArray:
    width, height = WORLD
    column = np.arange(width)
    plank = (column + 13) // 48
    tone = rng.normal(0, 9, plank.max() + 1)[plank]
    grain = gaussian_filter(rng.normal(size=(height, width)), (34, 0.9))
    knots = gaussian_filter(rng.normal(size=(height, width)), (11, 4))
    level = 150 + tone[None] + grain / grain.std() * 7 + knots / knots.std() * 4
    inside = (column + 13) % 48
    level = level - 62 * np.exp(-((np.minimum(inside, 48 - inside)) ** 2) / 3.2)[None]  # gaps between the planks
    level = level - 10 * (inside / 48)[None]
    fence = level[..., None] * np.array([1.02, 0.91, 0.77])
    fence *= (0.80 + 0.22 * np.arange(height) / HORIZON)[:, None, None]
    leaves = sum(
        weight * field / field.std()
        for sigma, weight in ((22, 1.0), (9, 0.7), (4, 0.45))
        for field in [gaussian_filter(rng.normal(size=(height, width)), sigma)]
    )
    edge = 64 + 12 * np.sin(column / 47.0) + 7 * np.sin(column / 17.0 + 1)
    cover = 1 / (1 + np.exp((np.arange(height)[:, None] - edge[None] - 6 * leaves) / 3.0))
    green = np.array([72, 104, 48.0]) + leaves[..., None] * np.array([21, 24, 13.0])
    shade = 1 - 0.33 * np.exp(-(((np.arange(height)[:, None] - edge[None] - 14) / 16) ** 2))
    scene = fence * shade[..., None] * (1 - cover[..., None]) + green * cover[..., None]
    return gaussian_filter(scene, (1.9, 1.9, 0)).clip(0, 255).astype(np.float32)


def grass_row(rng: np.random.Generator, ground: float) -> FloatArray:
    """Blades that grow before an animal standing at `ground`: premultiplied float32 [H, W, 4]."""
    row = Image.new("RGBA", WORLD, (80, 112, 44, 0))
    _blades(row, rng, count=520, top=round(ground) - 3, bottom=round(ground) + 10, alpha=225)
    array = np.asarray(row, np.float32) / 255
    return np.concatenate([array[..., :3] * array[..., 3:] * sunlight() * 0.96, array[..., 3:]], axis=-1)


@dataclass(frozen=True)
class Pose:
    """How an animal stands at one instant."""

    x: float
    """Middle of its feet in the scene, pixels."""
    rise: float = 0.0
    """Pixels above the ground."""
    stretch: float = 0.0
    """Share of its height by which its head goes up."""
    lean: float = 0.0
    """Share of its height by which its head goes sideways."""
    mirrored: bool = False


class Sprite:
    """A cut-out that bends: its feet stay, its head follows the pose."""

    def __init__(self, path: Path, height: int, ground: float, light: tuple[float, float, float]) -> None:
        self.ground = ground
        cut = _clean(Image.open(path).convert("RGBA"))
        width = round(cut.width * height / cut.height)
        self._pad = 26
        canvas = Image.new("RGBA", (width + 2 * self._pad, height + self._pad), (0, 0, 0, 0))
        canvas.paste(cut.resize((width, height), Image.Resampling.LANCZOS), (self._pad, self._pad))
        array = np.asarray(canvas, np.float32) / 255
        array[..., :3] = array[..., :3] * np.array(light, np.float32)
        fade = 1 - 0.22 * np.clip((np.arange(array.shape[0]) / array.shape[0] - 0.72) / 0.28, 0, 1)
        array[..., :3] *= fade[:, None, None].astype(np.float32)  # light does not reach under the body
        array[..., :3] *= array[..., 3:]  # premultiplied: bending must not smear the colour outside
        self._array = array
        self.height = height

    def bent(self, pose: Pose) -> tuple[FloatArray, int, int]:
        """Premultiplied float32 [h, w, 4] with the pose applied, and where its top left corner lies in the scene."""
        source = self._array[:, ::-1] if pose.mirrored else self._array
        rows, columns = source.shape[:2]
        y, x = np.mgrid[:rows, :columns].astype(np.float32)
        left, top = pose.x - columns / 2, self.ground - rows - pose.rise
        shift_x, shift_y = left - np.floor(left), top - np.floor(top)
        up = np.clip((rows - y) / self.height, 0, 1.2)
        from_x = x - shift_x - pose.lean * self.height * up**1.7
        from_y = y - shift_y + pose.stretch * self.height * up**1.2
        bent = np.stack([map_coordinates(source[..., c], (from_y, from_x), order=1) for c in range(4)], axis=-1)
        return bent, int(np.floor(left)), int(np.floor(top))


def _clean(cut: Image.Image) -> Image.Image:
    """Rounds the corners of an outline made of straight lines, and takes off the rim where the old scene shows."""
    array = np.asarray(cut, np.float32)
    inside = binary_erosion(array[..., 3] > 127, iterations=2, border_value=1)
    soft = gaussian_filter(np.pad(inside.astype(np.float32), 8), 2.6)[8:-8, 8:-8]
    array = array.copy()
    array[..., 3] = 255 * np.clip((soft - 0.5) / 0.28 + 0.5, 0, 1)
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def composite(scene: FloatArray, layer: FloatArray, left: int, top: int) -> NDArray[np.bool_]:
    """Lays a premultiplied layer into float32 scene [H, W, 3] (0 to 1); returns where it covers, bool [H, W]."""
    height, width = scene.shape[:2]
    covered = np.zeros((height, width), bool)
    y0, x0, y1, x1 = max(0, top), max(0, left), min(height, top + layer.shape[0]), min(width, left + layer.shape[1])
    if y0 < y1 and x0 < x1:
        part = layer[y0 - top : y1 - top, x0 - left : x1 - left]
        scene[y0:y1, x0:x1] = scene[y0:y1, x0:x1] * (1 - part[..., 3:]) + part[..., :3]
        covered[y0:y1, x0:x1] = part[..., 3] > 0.5
    return covered


def shadow(scene: FloatArray, bent: FloatArray, left: int, ground: float, rise: float) -> None:
    """Darkens the ground under an animal: a soft pool at its feet, and the sun's shadow to the right."""
    rows, columns = bent.shape[:2]
    alpha = bent[..., 3]
    flat = np.zeros((84, columns + 150), np.float32)
    for line in range(64):  # the outline, laid down to a fifth of its height and pushed away from the sun
        source = int((line + 0.5) / 64 * rows * 0.96)
        shift = round((64 - line) * 1.7)
        flat[10 + line, shift : shift + columns] = alpha[source]
    cast = 0.40 * gaussian_filter(flat, (2.6, 5.0))
    pool = np.zeros((84, columns + 150), np.float32)
    feet = alpha[int(rows * 0.86) :].max(axis=0)
    pool[60:78, :columns] = feet[None]
    pool = 0.62 * gaussian_filter(pool, (4.5, 7.0))
    dark = np.maximum(cast, pool) * max(0.35, 1 - rise / 60)
    layer = np.dstack([np.zeros((*dark.shape, 3), np.float32), dark])
    composite(scene, layer, left, round(ground) - 74)
