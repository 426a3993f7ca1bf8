"""`avis-stream train`: learns from a data set, or from scenes made as they are asked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from avis_stream.commands.diary import Diary
from avis_stream.config import AVISMConfig, TrainConfig, with_overrides
from avis_stream.data.annotations import parse_predictions
from avis_stream.data.dataset import DataSplit, open_split, splits
from avis_stream.files import atomic_path
from avis_stream.metrics import evaluation
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.models.preprocess import network_size
from avis_stream.presets import preset, training
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.library import Library
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.train.dataset_clips import DatasetClips
from avis_stream.train.loop import train
from avis_stream.train.source import ClipSource, SynthClips, harder, streaming
from avis_stream.train.streams import (
    ALL_BUT_THE_TRACKER,
    LocalizedStream,
    StreamLosses,
    Stretches,
    localized_streams,
)
from avis_stream.weights.bundled import stored_state
from avis_stream.weights.files import save_weights
from avis_stream.weights.initial import start_from
from avis_stream.weights.load import unfolded_model

_MADE = "synth"
_TRAIN = "train."


def run_training(
    data: str,
    model_name: str,
    out: Path,
    *,
    init: Path | None,
    resume: Path | None,
    settings: Sequence[str],
    validation: Path | None = None,
) -> Path:
    """Trains and returns the path of the finished weights: `out/best.safetensors`, or `weights` without validation.

    Args:
        data: Folder with `train.json`, or `synth` (drawn by the program), or `synth:ASSETS`.
        model_name: A preset.
        out: For checkpoints, the log and the weights.
        init: Weights to begin with, whole or in part.
        resume: A run's folder to go on with; takes the place of `out`.
        settings: `train.steps=1000` for the schedule, anything else for the model.
        validation: Folder with `val.json`; None: `data`, if that has one.
    """
    config = preset(model_name).with_overrides(s for s in settings if not s.startswith(_TRAIN))
    schedule = with_overrides(training(model_name), [s.removeprefix(_TRAIN) for s in settings if s.startswith(_TRAIN)])
    _join_processes()
    torch.manual_seed(schedule.seed)
    model = unfolded_model(config, None, "")
    if init is not None and resume is None:
        report = start_from(model, init)
        if _first():
            sys.stderr.write(f"{init}: {report}\n")
    folder = resume or out
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(data, model.config, schedule)
    judge = _validation_split(data, validation, model.config.classes)
    best, last = folder / "best.safetensors", folder / "weights.safetensors"
    with ExitStack() as stack:
        diary = Diary(folder) if _first() else None
        if diary is not None:
            stack.callback(diary.close)

        def validate(step: int) -> float:
            assert judge is not None
            scores = _scores(model, judge)
            if diary is not None:
                diary.note(step, {f"val_{name}": value for name, value in scores.items()})
            return scores["FSLA"]

        learn: dict[str, Any] = {"source": source}
        if schedule.streams.count:
            streams = _streams(model, source, schedule, folder)
            learn = {"source": Stretches(streams, schedule), "losses": StreamLosses(model, schedule), "ahead": False}
            schedule = replace(schedule, frozen=ALL_BUT_THE_TRACKER)
        train(
            model,
            config=schedule,
            folder=folder,
            **learn,
            resume=resume is not None,
            log=None if diary is None else diary.note,
            validate=None if judge is None else validate,
            keep_best=lambda: _save(model, best, schedule),
        )
    if _first():
        _save(model, last, schedule)
    return last if judge is None else best


def _streams(model: AVISM, source: ClipSource, schedule: TrainConfig, folder: Path) -> list[LocalizedStream]:
    """Streams as the model's localizer sees them; kept beside the checkpoints, so that a resumed run has the same."""
    kept = folder / "streams.pt"
    if kept.exists():
        streams: list[LocalizedStream] = torch.load(kept, weights_only=False)  # written here, by this very run
        return streams
    count = schedule.streams.count
    bar = tqdm(total=count, desc="streams", unit="stream", disable=not (_first() and sys.stderr.isatty()))
    with bar:
        streams = []
        for stream in localized_streams(model, source, schedule):
            streams.append(stream)
            bar.update()
    if _first():
        with atomic_path(kept) as temporary:
            torch.save(streams, temporary)
    return streams


def _validation_split(data: str, validation: Path | None, classes: tuple[str, ...]) -> DataSplit | None:
    if validation is not None:
        return open_split(validation, "val", classes)
    if data.partition(":")[0] == _MADE or "val" not in splits(data):
        return None
    return open_split(data, "val", classes)


def _scores(model: AVISM, split: DataSplit) -> dict[str, float]:
    """FSLA, HOTA and mAP of a split as it should be measured (`fixed`), in percent; 0 where undefined."""
    with torch.no_grad():
        answers = [entry for video in predict(model, split) for entry in video]
    found = parse_predictions(Path("validation"), answers, split.annotations)
    summary = evaluation(split.annotations, found, "fixed").summary()
    return {name: float(summary[key] or 0.0) for name, key in (("FSLA", "FA"), ("HOTA", "HOTA"), ("mAP", "AP_all"))}


def _save(model: AVISM, target: Path, schedule: TrainConfig) -> None:
    """Weights without the frozen audio encoder where it ships with the package, and the schedule beside them."""
    save_weights(stored_state(model), model.config, target, half=True)
    with atomic_path(target.with_name("schedule.json")) as temporary:
        temporary.write_text(json.dumps({"train": repr(schedule), "data_protocol": Protocol.load().digest}) + "\n")


def _source(data: str, config: AVISMConfig, schedule: TrainConfig) -> ClipSource:
    kind, _, folder = data.partition(":")
    if kind != _MADE:
        split = open_split(data, "train", config.classes)
        return DatasetClips(split, config.classes, frames=schedule.frames, config=schedule.augment, seed=schedule.seed)
    protocol = Protocol.load()
    library: Library = AssetLibrary(Path(folder), protocol, "train") if folder else ProceduralLibrary()
    width, height = protocol.size
    small = network_size(height, width, config.input)
    return SynthClips(
        library,
        streaming(protocol) if schedule.streams.count else harder(protocol),
        frames=schedule.frames,
        size=(small[1], small[0]),
        seed=schedule.seed,
        classes=config.classes,
        photograph_share=protocol.photograph_share["train"],
        augment=schedule.augment,
    )


def _join_processes() -> None:
    """Joins the other processes when started by torchrun."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
