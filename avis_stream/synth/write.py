"""Writes made videos as a data set in AVISeg's layout, and as films to watch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import wavfile

from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.files import as_file, atomic_path
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import Scene
from avis_stream.synth.soundscape import RATE
from avis_stream.synth.stage import EARLIER_SECONDS


def write_set(folder: Path, split: str, scenes: Iterable[Scene], protocol: Protocol, seed: int) -> Path:
    """Writes scenes as `folder/<split>.json` with pictures and sound beside it; returns the path of the JSON.

    Annotations are AVISeg's, with `visible_segmentations` added (silent seconds included). Objects that never sound
    stand in a list of their own, `silent_annotations`, where official readers do not look. `PrevImages` holds the
    picture 100 ms before each frame.
    """
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    silent: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        name = f"{split}_{index:05d}"
        video, sounding, never = _write_video(folder / split, name, index + 1, scene)
        videos.append(video)
        for entry in sounding:
            annotations.append({"id": len(annotations) + 1, **entry})
        silent += never
    document = {
        "info": {"protocol": protocol.digest, "protocol_version": protocol.version, "seed": seed, "split": split},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(AVISEG_CLASSES)],
        "videos": videos,
        "annotations": annotations,
        "silent_annotations": silent,
    }
    target = folder / f"{split}.json"
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return target


def _write_video(
    folder: Path, name: str, number: int, scene: Scene
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    for kind in ("JPEGImages", "PrevImages"):
        (folder / kind / name).mkdir(parents=True, exist_ok=True)
    (folder / "WAVAudios").mkdir(exist_ok=True)
    masks: list[tuple[NDArray[np.bool_] | None, ...]] = []
    size = (0, 0)
    for t in range(scene.story.seconds):
        shot = scene.stage.shot(t)
        size = (shot.rgb.shape[1], shot.rgb.shape[0])
        Image.fromarray(shot.rgb).save(folder / "JPEGImages" / name / f"{t}.jpg", quality=92)
        before = scene.stage.shot(t - EARLIER_SECONDS)
        Image.fromarray(before.rgb).save(folder / "PrevImages" / name / f"{t}.jpg", quality=92)
        masks.append(shot.visible)
    stereo = np.repeat(np.round(scene.wave * 32767).astype(np.int16)[:, None], 2, axis=1)
    wavfile.write(folder / "WAVAudios" / f"{name}.wav", RATE, stereo)
    video = {
        "id": number, "width": size[0], "height": size[1], "length": scene.story.seconds,
        "file_names": [f"{name}/{t}.jpg" for t in range(scene.story.seconds)],
        "scene": scene.kind, "pair": scene.story.pair,
    }  # fmt: skip
    sounding, never = [], []
    for k, actor in enumerate(scene.story.actors):
        visible = [None if (mask := frame[k]) is None else rle.encode(mask) for frame in masks]
        heard = [code if actor.sounding[t] else None for t, code in enumerate(visible)]
        common = {
            "video_id": number, "category_id": AVISEG_CLASSES.index(actor.class_name) + 1, "iscrowd": 0,
            "width": size[0], "height": size[1],
        }  # fmt: skip
        if any(heard):
            sounding.append({**common, **_forms(heard), "visible_segmentations": visible})
        elif any(visible):
            never.append({**common, "visible_segmentations": visible})
    return video, sounding, never


def _forms(codes: list[rle.Rle | None]) -> dict[str, Any]:
    return {
        "segmentations": codes,
        "bboxes": [None if code is None else rle.box(code) for code in codes],
        "areas": [None if code is None else rle.area(code) for code in codes],
    }


def write_film(path: Path, scene: Scene, fps: int = 25) -> None:
    """Renders a scene at camera rate as an MP4 with its sound."""
    with atomic_path(path) as temporary, av.open(as_file(temporary), "w") as container:
        first = scene.stage.shot(0.0).rgb
        video = container.add_stream("libx264", rate=fps, options={"crf": "27", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = first.shape[1] // 2 * 2, first.shape[0] // 2 * 2, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        block = RATE // fps
        for i in range(scene.story.seconds * fps):
            rgb = scene.stage.shot(i / fps).rgb[: video.height, : video.width]
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
            sound = av.AudioFrame.from_ndarray(scene.wave[None, i * block : (i + 1) * block], "flt", "mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, i * block, Fraction(1, RATE)
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
