"""`avis-stream run`: a recording in, everything about its sounding objects out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from avis_stream.commands.film import drawn_again
from avis_stream.commands.progress import progress
from avis_stream.config import MobileNetConfig
from avis_stream.data.annotations import parse_predictions, read_annotations
from avis_stream.files import atomic_path
from avis_stream.memory import available_disk_bytes, available_memory_bytes
from avis_stream.metrics import evaluation
from avis_stream.models.avism import AVISM
from avis_stream.models.clip import ClipResult
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip
from avis_stream.ops import info
from avis_stream.sources.clip import Clip
from avis_stream.stages import StageTimer
from avis_stream.types import AVPair
from avis_stream.writers.base import Writer, Writers
from avis_stream.writers.jsonl import JsonlWriter
from avis_stream.writers.masks import PngMaskWriter, RleMaskWriter
from avis_stream.writers.overlay import OverlayWriter
from avis_stream.writers.summary import SummaryWriter
from avis_stream.writers.timeline import TimelineWriter

logger = logging.getLogger(__name__)
T = TypeVar("T")

_DISK_SHARE = 2
"""The spool may take one part in this many of what is free on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `run` writes, and what it may take."""

    save_masks: str = "none"
    """`png`, `rle` or `none`."""
    video: bool = True
    overlay: Literal["auto", "camera", "sampled"] = "auto"
    """Rate of the overlay: the camera's, each picture with masks of its own, or that of the sampled frames; `auto` is
    the camera's where the model is quick enough for every picture."""
    memory_bytes: int | None = None
    """For mask features; None: half of what is free."""
    truth: Path | None = None
    """Ground truth of this very recording, its only video: scores against it go into the summary."""


def run_offline(model: AVISM, clip: Clip, folder: Path, options: RunOptions) -> ClipResult:
    """Segments a recording as a whole and writes all results into `folder`.

    Args:
        model: Prepared for inference.
        clip: The recording; it is read twice, once to segment and once to draw.
        folder: An existing, empty folder. Beside it lies, meanwhile, what memory cannot hold.
        options: What to write and what it may take.
    Returns:
        The result; `clip.broken` says where the recording broke off, if it did.
    Raises:
        MediaError: The recording has no frame, or its pictures change size.
    """
    timer = StageTimer()
    memory = available_memory_bytes() // 2 if options.memory_bytes is None else options.memory_bytes
    # Beside the results: the system's folder for temporary files is often memory, of which there is none left by then.
    spool = folder.parent
    disk = available_disk_bytes(spool) // _DISK_SHARE

    def frames() -> Iterator[ClipFrame]:
        return _heard(model, progress(clip, clip.expected_frames, "frames"), timer)

    with MaskStore(
        memory, disk, recompute=lambda start: mask_features_again(model, frames, start), spool_folder=spool
    ) as store:
        result = segment_clip(model, frames, store=store, timer=timer, frame_seconds=1 / clip.fps)
        homes = store.homes
    broken = clip.broken
    summary = SummaryWriter(folder / "summary.json", model.classes, fps=clip.fps)
    predictions = result.to_aviseg(video_id=1)
    if options.truth is not None:
        summary.add(metrics=_scores(options.truth, predictions))
    film_fps = _film_fps(model, clip, options)
    if film_fps is not None:
        options = replace(options, video=False)
        film = clip.at(film_fps)
        overlay = OverlayWriter(
            folder / "overlay.mp4", model.classes, fps=film_fps, sound=clip, pixel_aspect=clip.pixel_aspect
        )
        with Writers([overlay]) as writers, timer("film"):
            drawn = drawn_again(model, film, result, clip.fps)
            for pair, frame in progress(drawn, film.expected_frames, "overlay"):
                writers.write(pair, frame)
    with Writers([*result_writers(model, clip, folder, options), summary]) as writers, timer("write"):
        pairs = progress(clip, result.frames, "writing")
        for pair, frame in zip(pairs, result.results(1 / clip.fps), strict=False):
            writers.write(pair, frame)
        summary.add(mode="offline", mask_features=homes, broken=broken, **circumstances(model, timer))
    with atomic_path(folder / "predictions.json") as path:
        path.write_text(json.dumps(predictions) + "\n", encoding="utf-8")
    return result


def _film_fps(model: AVISM, clip: Clip, options: RunOptions) -> float | None:
    """Rate of an overlay at camera rate; None for one of the sampled frames, or for none."""
    quick = isinstance(model.config.backbone, MobileNetConfig)
    wanted = options.overlay == "camera" or (options.overlay == "auto" and quick)
    if options.video and options.overlay == "camera" and clip.camera_fps is None:
        logger.warning(
            "%s has no pictures but the sampled ones, or does not tell how many: the overlay has those alone", clip.name
        )
    return clip.camera_fps if options.video and wanted else None


def _scores(truth: Path, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    annotations = read_annotations(truth)
    return evaluation(
        annotations, parse_predictions(Path("predictions.json"), predictions, annotations), "fixed"
    ).summary()


def circumstances(model: AVISM, timer: StageTimer) -> dict[str, Any]:
    """What the summary of a run in any mode says about how it was run."""
    kernels = info()
    return {
        "model": model.config.name,
        "stages": {stage: round(seconds, 3) for stage, seconds in timer.seconds.items()},
        "threads": torch.get_num_threads(),
        "isa": kernels.isa,
        "native": [name for name, by_device in kernels.operators.items() if by_device["cpu"] == "native"],
    }


def _heard(model: AVISM, pairs: Iterable[AVPair], timer: StageTimer) -> Iterator[ClipFrame]:
    iterator = iter(pairs)
    while True:
        with timer("decode"):
            pair = next(iterator, None)
        if pair is None:
            return
        with timer("hear"):
            features = model.hear(pair.audio[None], torch.tensor([pair.valid_samples]))[0].cpu()
        yield ClipFrame(pair.frame.image, features, pair.frame.previous)


def result_writers(model: AVISM, clip: Clip, folder: Path, options: RunOptions) -> Iterator[Writer]:
    """The writers of what `run` writes in every mode, frame by frame."""
    classes = model.classes
    yield JsonlWriter(folder / "results.jsonl", classes)
    yield TimelineWriter(folder / "timeline.png", classes, fps=clip.fps, title=clip.name)
    if options.video:
        yield OverlayWriter(folder / "overlay.mp4", classes, fps=clip.fps, sound=clip, pixel_aspect=clip.pixel_aspect)
    if options.save_masks == "png":
        yield PngMaskWriter(folder / "masks")
    elif options.save_masks == "rle":
        yield RleMaskWriter(folder / "masks.json", classes)
