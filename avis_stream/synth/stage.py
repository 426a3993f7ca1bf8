"""Draws a story: the picture and every object's visible pixels at any instant, not only at whole seconds."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from avis_stream.synth.library import Library, Photograph, Rng
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.story import Actor, Story

EARLIER_SECONDS = 0.1
"""How long before its frame the picture for the motion cue is taken."""

_FLOAT = np.float32
_VISIBLE_SHARE = 0.25
"""An object counts as visible while at least this share of its pixels is neither hidden nor outside."""
_RAMP_SECONDS = 0.15
"""Movement swells and fades this fast at the edges of a moving second."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """The picture at one instant."""

    rgb: NDArray[np.uint8]
    """[H, W, 3]."""
    visible: tuple[NDArray[np.bool_] | None, ...]
    """Mask [H, W] of each actor; None while it cannot be seen."""


@dataclass(frozen=True, slots=True, eq=False)
class _Figure:
    """How an actor looks and moves."""

    rgba: NDArray[np.float32]
    scale: float
    centre: tuple[float, float]
    drift: tuple[float, float]
    """Pixels a second."""
    tilt: float
    beat: NDArray[np.float64]
    """Frequency in Hz and phase of its four movements."""
    reach: float


@dataclass(frozen=True, slots=True)
class _Visit:
    """What is different about a figure this time."""

    flipped: bool
    scale: float = 1.0
    light: float = 1.0
    centre: tuple[float, float] | None = None
    """Where it is; None: where it always is."""


class Stage:
    """A place with figures in it."""

    def __init__(self, story: Story, library: Library, protocol: Protocol, size: tuple[int, int], rng: Rng) -> None:
        """Chooses looks and places.

        Args:
            story: Who is there.
            library: Where looks come from.
            protocol: Sizes and shares.
            size: Width and height of the pictures.
            rng: Decides; drawing afterwards takes nothing from it.
        """
        self._story, self._size = story, size
        self._camera = _Camera(protocol, size, rng)
        place = Image.fromarray(library.background(rng))
        self._place = self._camera.covering(
            place.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else place
        )
        self._film = _Film(rng)
        slots = rng.permutation(len(story.actors))
        self._figures: list[_Figure] = []
        for i, actor in enumerate(story.actors):
            before = self._figures[-1] if i and story.actors[i - 1].holder else None
            self._figures.append(_figure(actor, library, protocol, size, (slots[i] + 0.5) / len(slots), before, rng))
        self._returns = rng.random(len(story.actors)) < 0.5
        self._depth = _depth_order(story, rng)
        self._visits = [_visits(actor, protocol, size, rng) for actor in story.actors]

    def shot(self, seconds: float) -> Shot:
        """Draws the instant `seconds`, 0 <= seconds < T; the same instant is drawn the same every time."""
        width, height = self._size
        canvas = self._camera.view(self._place, seconds)
        owner = np.full((height, width), -1, np.int16)
        whole = np.zeros(len(self._figures))
        for k in self._depth:
            actor, figure = self._story.actors[k], self._figures[k]
            second = min(int(max(seconds, 0)), len(actor.present) - 1)
            if actor.present[second]:
                if self._visits[k]:
                    visit = self._visits[k][_visit_number(actor, second)]
                else:
                    visit = _Visit(flipped=bool(self._returns[k]) and _has_been_away(actor, seconds))
                whole[k] = _paint(canvas, owner, k, figure, visit, _swing(actor, seconds), self._camera, seconds)
        visible: list[NDArray[np.bool_] | None] = []
        for k in range(len(self._figures)):
            mask = owner == k
            seen = mask.sum() > max(_VISIBLE_SHARE * whole[k], 0.0008 * mask.size)
            visible.append(mask if seen else None)
        return Shot(self._film.develop(canvas, seconds), tuple(visible))


class StillStage:
    """A labelled photograph as a scene: the camera trembles, and a sounding object may move a little."""

    def __init__(
        self, story: Story, photograph: Photograph, protocol: Protocol, size: tuple[int, int], rng: Rng
    ) -> None:
        """Fits the photograph into the picture; arguments as for `Stage`."""
        self._story, self._size = story, size
        self._camera = _Camera(protocol, size, rng)
        flip = rng.random() < 0.5
        labels = np.zeros(photograph.rgb.shape[:2], np.uint8)
        for k, (_, mask) in reversed(list(enumerate(photograph.objects))):
            labels[mask] = k + 1
        picture, owners = Image.fromarray(photograph.rgb), Image.fromarray(labels)
        if flip:
            picture, owners = (p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in (picture, owners))
        self._place = self._camera.covering(picture)
        self._owners = owners.resize((self._place.shape[1], self._place.shape[0]), Image.Resampling.NEAREST)
        self._film = _Film(rng)
        self._beat = rng.uniform((1.5, 0.0), (3.5, 2 * np.pi), (len(photograph.objects), 2))

    def shot(self, seconds: float) -> Shot:
        """Draws the instant `seconds`, as `Stage.shot`."""
        canvas = self._camera.view(self._place, seconds)
        labels = self._camera.view(np.asarray(self._owners)[..., None].astype(_FLOAT), seconds)[..., 0]
        owner = labels.astype(np.int16) - 1
        whole = np.bincount(np.asarray(self._owners).ravel(), minlength=len(self._story.actors) + 1)[1:]
        for k, actor in enumerate(self._story.actors):
            swing = _swing(actor, seconds)
            if swing > 0 and (owner == k).any():
                frequency, phase = self._beat[k]
                step = np.sin(2 * np.pi * frequency * seconds + phase) * swing * 0.02 * self._size[1]
                _shift_inside(canvas, owner == k, round(float(step)))
        visible: list[NDArray[np.bool_] | None] = []
        for k in range(len(self._story.actors)):
            mask = owner == k
            seen = mask.sum() > max(_VISIBLE_SHARE * whole[k], 0.003 * mask.size)
            visible.append(mask if seen else None)
        return Shot(self._film.develop(canvas, seconds), tuple(visible))


class _Camera:
    """Where the picture is cut from a place that is a little larger, and how that moves."""

    _MARGIN = 1.15

    def __init__(self, protocol: Protocol, size: tuple[int, int], rng: Rng) -> None:
        self._size = size
        moves = rng.random() < protocol.camera_moves_share
        self._pan = rng.uniform(-1, 1, 2) * (0.02 if moves else 0.0)
        self._tremble = rng.uniform(0.001, 0.004) if moves else 0.0
        self._beat = rng.uniform((0.3, 0.0), (1.2, 2 * np.pi), (2, 2))
        self._start = rng.uniform(0, 1, 2)

    def covering(self, place: Image.Image) -> NDArray[np.float32]:
        """A place resized so that the picture fits into it with a margin: float32 [H', W', 3]."""
        width, height = self._size
        scale = self._MARGIN * max(width / place.width, height / place.height)
        size = (max(width, round(place.width * scale)), max(height, round(place.height * scale)))
        return np.asarray(place.resize(size, Image.Resampling.BILINEAR)).astype(_FLOAT)

    def offset(self, seconds: float) -> tuple[float, float]:
        """How far the camera has turned by `seconds`, in pixels x and y."""
        width, height = self._size
        sway = self._tremble * np.sin(2 * np.pi * self._beat[:, 0] * seconds + self._beat[:, 1])
        pan = np.sin(self._pan * seconds) * 0.05
        return float((pan[0] + sway[0]) * width), float((pan[1] + sway[1]) * height)

    def view(self, place: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
        """The part of a place that the picture shows at `seconds`; a copy, float32 [H, W, C]."""
        width, height = self._size
        room_x, room_y = place.shape[1] - width, place.shape[0] - height
        turn_x, turn_y = self.offset(seconds)
        left = int(np.clip(self._start[0] * room_x + turn_x, 0, room_x))
        top = int(np.clip(self._start[1] * room_y + turn_y, 0, room_y))
        return place[top : top + height, left : left + width].copy()


class _Film:
    """What makes drawn frames look like recorded ones: light, noise, blur, compression."""

    def __init__(self, rng: Rng) -> None:
        self._light = rng.uniform(0.75, 1.2)
        self._colour = rng.uniform(0.94, 1.06, 3).astype(_FLOAT)
        self._grain = rng.uniform(0, 6)
        self._blur = rng.uniform(0.4, 1.1) if rng.random() < 0.3 else 0.0
        self._quality = int(rng.integers(35, 95)) if rng.random() < 0.6 else 0
        self._seed = int(rng.integers(2**31))

    def develop(self, canvas: NDArray[np.float32], seconds: float) -> NDArray[np.uint8]:
        noise = np.random.default_rng([self._seed, round((seconds + 1) * 1000)])
        lit = canvas * (self._light * self._colour)
        lit += noise.standard_normal(lit.shape[:2], dtype=_FLOAT)[..., None] * self._grain
        picture = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
        if self._blur:
            picture = picture.filter(ImageFilter.GaussianBlur(self._blur))
        if self._quality:
            packed = io.BytesIO()
            picture.save(packed, "JPEG", quality=self._quality)
            picture = Image.open(packed)
        return np.asarray(picture)


def _figure(
    actor: Actor,
    library: Library,
    protocol: Protocol,
    size: tuple[int, int],
    slot: float,
    holder: _Figure | None,
    rng: Rng,
) -> _Figure:
    """Draws an actor's look and place; an instrument stands before the one who holds it."""
    width, height = size
    rgba = _varied(library.sprite(actor.class_name, rng).rgba, rng)
    share = rng.uniform(*protocol.object_height) * np.exp(rng.uniform(*np.log(protocol.object_scale)))
    scale = share * height / max(rgba.shape[0], 0.62 * rgba.shape[1])
    scale = min(scale, 0.9 * width / rgba.shape[1])
    centre = (slot * width + rng.uniform(-0.08, 0.08) * width, rng.uniform(0.45, 0.72) * height)
    if rng.random() < protocol.edge_share:
        side = rng.choice([-0.02, 1.02])
        centre = (side * width, centre[1])
    if holder is not None:
        held_height = holder.scale * holder.rgba.shape[0]
        scale = rng.uniform(0.4, 0.7) * held_height / max(rgba.shape[0], 0.62 * rgba.shape[1])
        centre = (holder.centre[0], holder.centre[1] + rng.uniform(0.0, 0.2) * held_height)
    drift = tuple(rng.uniform(-0.01, 0.01, 2) * size) if rng.random() < 0.3 else (0.0, 0.0)
    if holder is not None:
        drift = holder.drift
    beat = np.stack([rng.uniform(1.2, 3.8, 4), rng.uniform(0, 2 * np.pi, 4)])
    return _Figure(rgba, scale, centre, drift, rng.uniform(-8, 8), beat, rng.uniform(0.6, 1.2))


def _varied(rgba: NDArray[np.uint8], rng: Rng) -> NDArray[np.float32]:
    """A cut-out in another light: mirrored, stretched, contrast, brightness and tint changed; float32 [h, w, 4]."""
    picture = Image.fromarray(rgba)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = np.exp(rng.uniform(-0.14, 0.14))
    picture = picture.resize((max(2, round(picture.width * stretch)), picture.height), Image.Resampling.BILINEAR)
    varied = np.asarray(picture).astype(_FLOAT)
    colour = (varied[..., :3] - 128) * rng.uniform(0.75, 1.25) + 128 + rng.uniform(-25, 25)
    varied[..., :3] = np.clip(colour + rng.uniform(-12, 12, 3), 0, 255)
    return varied


def _depth_order(story: Story, rng: Rng) -> list[int]:
    """Far to near; an instrument comes right after whoever holds it."""
    order: list[int] = []
    for k in rng.permutation(len(story.actors)):
        if story.actors[k].holder:
            order += [int(k), int(k) + 1]
        elif not (k and story.actors[k - 1].holder):
            order.append(int(k))
    return order


def _swing(actor: Actor, seconds: float) -> float:
    """How much an actor moves at an instant, in [0, 1]: swells at the begin of a moving stretch, fades at its end."""
    second = int(np.floor(seconds))
    if not 0 <= second < len(actor.moving) or not actor.moving[second]:
        return 0.0
    into, left = seconds - second, second + 1 - seconds
    before = second > 0 and actor.moving[second - 1]
    after = second + 1 < len(actor.moving) and actor.moving[second + 1]
    rise = 1.0 if before else min(1.0, (into + 0.05) / _RAMP_SECONDS)
    fall = 1.0 if after else min(1.0, left / _RAMP_SECONDS)
    return min(rise, fall)


def _has_been_away(actor: Actor, seconds: float) -> bool:
    return not actor.present[: int(max(seconds, 0)) + 1].all()


def _visits(actor: Actor, protocol: Protocol, size: tuple[int, int], rng: Rng) -> list[_Visit]:
    """How an actor looks each time it comes; nothing, where it looks the same each time."""
    if not protocol.returns_differ:
        return []
    width, height = size
    low, high = np.log(protocol.object_scale)
    return [
        _Visit(
            flipped=bool(rng.random() < 0.5),
            scale=float(np.exp(rng.uniform(low, high) / 2)),
            light=float(rng.uniform(0.65, 1.35)),
            centre=(float(rng.uniform(0.12, 0.88) * width), float(rng.uniform(0.45, 0.72) * height)),
        )
        for _ in range(_visit_number(actor, len(actor.present) - 1) + 1)
    ]


def _visit_number(actor: Actor, second: int) -> int:
    """How often an actor had come before the visit of `second`, or the last one before it."""
    arrivals = np.flatnonzero(np.diff(np.concatenate([[False], actor.present[: second + 1]]).astype(np.int8)) > 0)
    return max(0, len(arrivals) - 1)


def _paint(
    canvas: NDArray[np.float32],
    owner: NDArray[np.int16],
    k: int,
    figure: _Figure,
    visit: _Visit,
    swing: float,
    camera: _Camera,
    seconds: float,
) -> int:
    """Paints a figure over the canvas and claims its pixels; returns how many it has, hidden and outside ones too."""
    wave = np.sin(2 * np.pi * figure.beat[0] * seconds + figure.beat[1]) * swing * figure.reach
    scale = figure.scale * visit.scale * (1 + 0.05 * wave[0])
    turn_x, turn_y = camera.offset(seconds)
    height = canvas.shape[0]
    # Nobody drifts for minutes: those who come again have a place of their own each time.
    centre, drifting = (figure.centre, seconds) if visit.centre is None else (visit.centre, 0.0)
    x = centre[0] + figure.drift[0] * drifting + 0.012 * height * wave[2] - turn_x
    y = centre[1] + figure.drift[1] * drifting - 0.02 * height * abs(wave[3]) - turn_y
    picture = Image.fromarray(figure.rgba.astype(np.uint8))
    if visit.flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    picture = picture.rotate(figure.tilt + 5 * wave[1], Image.Resampling.BILINEAR, expand=True)
    drawn = np.asarray(picture).astype(_FLOAT)
    left, top = round(x - picture.width / 2), round(y - picture.height / 2)
    solid = drawn[..., 3] > 127
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(canvas.shape[1], left + picture.width), min(height, top + picture.height)
    if x0 < x1 and y0 < y1:
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        alpha = drawn[inside][..., 3:] / 255
        region = canvas[y0:y1, x0:x1]
        # The light of the place falls on the figure too.
        figure_mean, place_mean = drawn[solid][:, :3].mean(), region.mean()
        lit = drawn[inside][..., :3] * visit.light * (1 + 0.25 * (place_mean - figure_mean) / (figure_mean + 30))
        region[...] = region * (1 - alpha) + np.clip(lit, 0, 255) * alpha
        owner[y0:y1, x0:x1][solid[inside]] = k
    return int(solid.sum())


def _shift_inside(canvas: NDArray[np.float32], mask: NDArray[np.bool_], step: int) -> None:
    """Moves the picture inside a mask up or down by `step` pixels, without uncovering what is behind."""
    if step:
        canvas[mask] = np.roll(canvas, step, axis=0)[mask]
