"""Makes the demo clip that ships with the package, and its truth: avis_stream/assets/demo/{demo.mp4,truth.json}.

    python tools/make_demo_clip.py --assets DIR [--out DIR] [--seed N]

DIR has `sprites/<class>/*.png` and `sounds/<class>/*.ogg`; the files used, their authors and licences are in
CREDITS.md beside the clip. The same seed and files give the same pictures and sound. What happens:

    second   0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19
    dog A    ####### .  .  .  .  .  .  . ##### .  .  .  ## .  .  .  ##      # sounds   . is there, silent
    dog B    .  .  . ##### .  .  .  .  .  .  . ##### .  .  .  .  ## .
    cat      .  .  .  .  . ########                        ##### .  .      (out of the picture from 7.6 to 15.6)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import contourpy
import numpy as np
from demo_scene import WORLD, Pose, Sprite, background, composite, grass_row, shadow
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_fill_holes, label
from scipy.signal import resample_poly

from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.files import atomic_path

SECONDS, FPS, WIDTH, HEIGHT, RATE = 20, 25, 640, 360, 48_000
MAX_BYTES = 2_000_000

FloatArray = NDArray[np.float32]

# Who sounds from when: (begin in seconds, file, begin within it, length). A whole second belongs to one animal.
BARK_A, BARK_B = "dog/esc10_2-114280-A.ogg", "dog/esc10_1-97392-A.ogg"
_A = [(BARK_A, at, 0.40) for at in (0.04, 2.10, 2.81, 3.46, 4.09, 4.55)]
_B = [(BARK_B, at, 0.42) for at in (0.04, 1.01, 1.58, 2.15)]
MEOWS = "cat/catmeows_I_DAK01_MC_FN_SIM01_{}.ogg"


def _barks(second: int, barks: list[tuple[str, float, float]]) -> list[tuple[float, str, float, float]]:
    first, then = barks[second % len(barks)], barks[(second + 1) % len(barks)]
    return [(second + 0.06, *first), (second + 0.53, *then)]


SOUNDS: dict[str, list[tuple[float, str, float, float]]] = {
    "dog_a": [event for second in (0, 1, 2, 10, 11, 15, 19) for event in _barks(second, _A)],
    "dog_b": [event for second in (3, 4, 12, 13, 18) for event in _barks(second, _B)],
    "cat": [
        (5.08, MEOWS.format(303), 0.46, 0.90),
        (6.12, MEOWS.format(311), 0.46, 0.80),
        (7.08, MEOWS.format(306), 0.46, 0.85),
        (16.08, MEOWS.format(311), 0.46, 0.80),
        (17.08, MEOWS.format(303), 0.46, 0.88),
    ],
}
SPRITES = {
    # name: (class, file, height, feet at, middle at, light)
    "dog_a": ("dog", "dog/pet_newfoundland_113.png", 236, 322, 196.0, (1.16, 1.12, 1.04)),
    "dog_b": ("dog", "dog/pet_newfoundland_136.png", 232, 320, 552.0, (1.05, 1.03, 1.0)),
    "cat": ("cat", "cat/pet_Siamese_108.png", 152, 366, 378.0, (1.0, 0.98, 0.92)),
}
PAN = {"dog_a": -0.5, "dog_b": 0.5, "cat": 0.05}
LEAVES, RETURNS = 7.6, 15.6


def sounding_seconds(name: str) -> set[int]:
    """Seconds in which an animal sounds."""
    return {int(begin) for begin, *_ in SOUNDS[name]}


# --- sound ------------------------------------------------------------------------------------------------------------


def voice(assets: Path, name: str) -> FloatArray:
    """Everything that one animal says, float32 [SECONDS * RATE]."""
    track = np.zeros(SECONDS * RATE, np.float32)
    for begin, file, start, length in SOUNDS[name]:
        whole = _read(assets / "sounds" / file)
        part = whole[round(start * RATE) : round((start + length) * RATE)].copy()
        part[: RATE // 200] *= np.linspace(0, 1, RATE // 200, dtype=np.float32)
        part[-RATE // 12 :] *= np.linspace(1, 0, RATE // 12, dtype=np.float32) ** 2
        part *= (0.62 if name == "cat" else 0.7) / np.abs(part).max()
        at = round(begin * RATE)
        track[at : at + len(part)] += part[: len(track) - at]
    return track


def _read(path: Path) -> FloatArray:
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", 16_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    upsampled: FloatArray = resample_poly(samples, RATE // 16_000, 1).astype(np.float32)
    return upsampled


def mix(voices: dict[str, FloatArray], rng: np.random.Generator) -> FloatArray:
    """All voices where they stand, over a faint wind: float32 [2, n]."""
    noise = rng.normal(size=(2, SECONDS * RATE))
    spectrum = np.fft.rfft(noise)
    hz = np.fft.rfftfreq(SECONDS * RATE, 1 / RATE)
    spectrum *= 1 / (1 + (hz / 320) ** 1.3) * (hz > 40)
    wind = np.fft.irfft(spectrum, SECONDS * RATE)
    breath = 1 + 0.35 * np.sin(2 * np.pi * np.arange(SECONDS * RATE) / RATE / 6.5)
    both = wind / wind.std() * 0.0025 * breath  # -52 dBFS
    for name, samples in voices.items():
        angle = (PAN[name] + 1) * np.pi / 4
        both += np.stack([np.cos(angle) * samples, np.sin(angle) * samples]) * 1.1
    mixed: FloatArray = both.clip(-0.98, 0.98).astype(np.float32)
    return mixed


def envelope(samples: FloatArray) -> FloatArray:
    """How loud an animal is in each frame, 0 to 1: up at once, down within a fifth of a second."""
    loud = np.abs(samples).reshape(SECONDS * FPS, -1).max(axis=1)
    level, out = 0.0, np.zeros(len(loud), np.float32)
    for index, value in enumerate(loud):
        level = max(float(value) / 0.7, level * 0.72)
        out[index] = level
    return out.clip(0, 1)


# --- movement ---------------------------------------------------------------------------------------------------------


def eager(seconds: set[int], time: float) -> float:
    """1 while an animal sounds, up from just before to just short of the end: a frame shows it moving already."""
    up = max((_ramp(time, s - 0.28, s - 0.12) * (1 - _ramp(time, s + 0.74, s + 0.9)) for s in seconds), default=0.0)
    joined = any(s <= time < s + 1 for s in seconds) and int(time) + 1 in seconds
    return max(up, 1.0 if joined and time % 1 > 0.5 else 0.0)


def _ramp(time: float, begin: float, end: float) -> float:
    share = float(np.clip((time - begin) / (end - begin), 0, 1))
    return share * share * (3 - 2 * share)


def pose(name: str, time: float, loudness: float) -> Pose:
    """Where and how an animal stands. Silent ones only breathe."""
    phase = {"dog_a": 0.0, "dog_b": 1.9, "cat": 4.1}[name]
    breath = 0.0035 * np.sin(2 * np.pi * 0.31 * time + phase)
    drive = eager(sounding_seconds(name), time)
    sway = np.sin(2 * np.pi * 3.0 * time)
    x = SPRITES[name][4]
    if name != "cat":
        return Pose(
            x=x,
            rise=7.0 * loudness * drive,
            stretch=breath + drive * (0.012 * sway + 0.075 * loudness),
            lean=drive * (0.030 * sway + (0.045 if name == "dog_a" else -0.045) * loudness),
        )
    mirrored = time > (LEAVES + RETURNS) / 2
    away = _ramp(time, RETURNS - 0.32, RETURNS + 0.8) if mirrored else 1 - _ramp(time, LEAVES - 0.95, LEAVES + 0.3)
    hop = abs(np.sin(np.pi * away * 3)) if 0 < away < 1 else 0.0
    return Pose(
        x=x - (1 - away) * (x + 110),
        rise=26 * hop + 3.0 * loudness * drive,
        stretch=breath + drive * (0.010 * sway + 0.085 * loudness) - 0.04 * (hop < 0.3 and 0 < away < 1),
        lean=drive * 0.030 * sway + (0.10 if mirrored else -0.10) * hop,
        mirrored=mirrored,
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def frames(
    assets: Path, voices: dict[str, FloatArray], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]]:
    """Yields (uint8 [HEIGHT, WIDTH, 3], visible pixels by animal), FPS a second."""
    scenery = np.asarray(background(rng), np.float32) / 255
    grass = {name: grass_row(rng, SPRITES[name][3] - 3) for name in SPRITES}
    sprites = {n: Sprite(assets / "sprites" / s[1], s[2], s[3], s[5]) for n, s in SPRITES.items()}
    loudness = {name: envelope(samples) for name, samples in voices.items()}
    nearer = sorted(SPRITES, key=lambda name: SPRITES[name][3])
    for index in range(SECONDS * FPS):
        time = index / FPS
        scene, masks = scenery.copy(), {}
        for name in nearer:
            stance = pose(name, time, float(loudness[name][index]))
            bent, left, top = sprites[name].bent(stance)
            shadow(scene, bent, left, SPRITES[name][3], stance.rise)
            covered = composite(scene, bent, left, top)
            for other in masks:
                masks[other] = masks[other] & ~covered
            masks[name] = covered
            composite(scene, grass[name], 0, 0)
        camera = _camera(time)
        picture = np.asarray(_seen(Image.fromarray((scene * 255).clip(0, 255).astype(np.uint8)), camera), np.float32)
        picture = picture * (1 + 0.006 * np.sin(0.9 * time)) + rng.normal(0, 1.3, (HEIGHT, WIDTH, 1))
        seen = {name: np.asarray(_seen(Image.fromarray(m), camera)) > 127 for name, m in _as_pictures(masks).items()}
        yield picture.clip(0, 255).astype(np.uint8), seen


def _as_pictures(masks: dict[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.uint8]]:
    return {name: mask.astype(np.uint8) * 255 for name, mask in masks.items()}


def _camera(time: float) -> tuple[float, float, float, float, float, float]:
    """A hand that holds nearly still: the affine map from picture to scene."""
    zoom = 1 + 0.010 * np.sin(2 * np.pi * time / 17)
    x = (WORLD[0] - WIDTH * zoom) / 2 + 8 * np.sin(2 * np.pi * time / 13 + 0.4) + 0.7 * np.sin(2 * np.pi * time / 2.9)
    y = (WORLD[1] - HEIGHT * zoom) / 2 + 4 * np.sin(2 * np.pi * time / 9.5) + 0.6 * np.sin(2 * np.pi * time / 2.3)
    return zoom, 0.0, x, 0.0, zoom, y


def _seen(picture: Image.Image, camera: tuple[float, float, float, float, float, float]) -> Image.Image:
    return picture.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, camera, Image.Resampling.BICUBIC)


# --- truth ------------------------------------------------------------------------------------------------------------


def truth(visible: list[dict[str, NDArray[np.bool_]]]) -> dict[str, Any]:
    """The first frame of each second in AVISeg's format; silent seconds are in `visible_segmentations` only."""
    annotations = []
    for number, (name, (category, *_)) in enumerate(SPRITES.items(), start=1):
        shapes = [outlines(masks[name]) for masks in visible]
        heard = [shape if s in sounding_seconds(name) else None for s, shape in enumerate(shapes)]
        runs = [None if shape is None else rle.from_polygons(shape, HEIGHT, WIDTH) for shape in heard]
        annotations.append(
            {
                "id": number,
                "video_id": 1,
                "category_id": AVISEG_CLASSES.index(category) + 1,
                "iscrowd": 0,
                "height": HEIGHT,
                "width": WIDTH,
                "segmentations": heard,
                "visible_segmentations": shapes,
                "bboxes": [None if run is None else rle.box(run) for run in runs],
                "areas": [None if run is None else rle.area(run) for run in runs],
            }
        )
    video = {"id": 1, "width": WIDTH, "height": HEIGHT, "length": SECONDS}
    video["file_names"] = [f"demo/{second}.jpg" for second in range(SECONDS)]
    categories = [{"id": index, "name": name} for index, name in enumerate(AVISEG_CLASSES, start=1)]
    info = {"description": "The demo clip of avis_stream at 1 fps; see CREDITS.md", "file": "demo.mp4"}
    return {"info": info, "videos": [video], "categories": categories, "annotations": annotations}


def outlines(mask: NDArray[np.bool_]) -> list[list[float]] | None:
    """A mask as polygons in pixels; None when nothing of it can be seen. Crumbs and pinholes are left out."""
    pieces, count = label(binary_fill_holes(mask))
    polygons = []
    for piece in range(1, count + 1):
        part = pieces == piece
        if part.sum() < 60:
            continue
        lines = contourpy.contour_generator(z=np.pad(part, 1).astype(np.float32)).lines(0.5)
        # Contours run through the middles of pixels, polygons along their edges; the padding takes one off again.
        outline = max(lines, key=len)[::2] - 0.5
        polygons.append([round(float(v), 1) for v in outline.clip(0, (WIDTH, HEIGHT)).reshape(-1)])
    return polygons or None


# --- file -------------------------------------------------------------------------------------------------------------


def encode(path: Path, pictures: list[NDArray[np.uint8]], sound: FloatArray, quality: int) -> None:
    """Writes H.264 and AAC; one thread, so that the same input gives the same file."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        options = {"crf": str(quality), "preset": "veryslow", "threads": "1", "tune": "film"}
        video = out.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = video.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        audio = out.add_stream("aac", rate=RATE, layout="stereo")
        audio.codec_context.bit_rate = 112_000
        step = RATE // FPS
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709"
            )
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(frame))
            part = np.ascontiguousarray(sound[:, index * step : (index + 1) * step])
            chunk = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            chunk.sample_rate, chunk.pts, chunk.time_base = RATE, index * step, Fraction(1, RATE)
            out.mux(audio.encode(chunk))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def main() -> None:
    """Parses the arguments and makes the clip."""
    parser = argparse.ArgumentParser(description="Makes the demo clip and its truth.")
    parser.add_argument("--assets", type=Path, required=True, help="folder with sprites/ and sounds/")
    package = Path(__file__).resolve().parents[1] / "avis_stream"
    parser.add_argument("--out", type=Path, default=package / "assets" / "demo")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    voices = {name: voice(arguments.assets, name) for name in SPRITES}
    sound = mix(voices, rng)
    pictures, visible = [], []
    for index, (picture, seen) in enumerate(frames(arguments.assets, voices, rng)):
        pictures.append(picture)
        if index % FPS == 0:
            visible.append(seen)
    with atomic_path(arguments.out / "truth.json") as path:
        path.write_text(json.dumps(truth(visible), separators=(",", ":")) + "\n")
    with atomic_path(arguments.out / "demo.mp4") as path:
        for quality in range(20, 40):  # the best picture that fits
            encode(path, pictures, sound, quality)
            if path.stat().st_size <= MAX_BYTES:
                break
    print(f"{arguments.out / 'demo.mp4'}: {(arguments.out / 'demo.mp4').stat().st_size} bytes at crf {quality}")


if __name__ == "__main__":
    main()
