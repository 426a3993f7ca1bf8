"""`avis-stream train`: learns from a data set, or from scenes made as they are asked for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from avis_stream.commands.diary import Diary
from avis_stream.commands.progress import progress
from avis_stream.config import AVISEG_CLASSES, AVISMConfig, TrainConfig
from avis_stream.config_text import with_overrides
from avis_stream.data.annotations import parse_predictions
from avis_stream.data.dataset import DataSplit, open_split, splits
from avis_stream.errors import AvisStreamError, ConfigError, DataError
from avis_stream.files import atomic_path
from avis_stream.metrics import evaluation
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.models.preprocess import network_size
from avis_stream.presets import preset, training
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.library import Library
from avis_stream.synth.more_sounds import MoreSounds
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.train.checkpoint import stored_configuration, stored_step
from avis_stream.train.dataset_clips import DatasetClips
from avis_stream.train.loop import JUDGED_BY, train
from avis_stream.train.optimiser import all_but, learning_parameters
from avis_stream.train.processes import (
    all_or_none,
    device_of_process,
    join_processes,
    leave_processes,
    rank_and_count,
)
from avis_stream.train.sounds import (
    DrawnSeconds,
    HeardSounds,
    SoundLosses,
    SynthSounds,
    heard_seconds,
    learns,
    load_sounds,
    require_listening,
    require_sounding_head,
    save_sounds,
)
from avis_stream.train.source import ClipSource, SynthClips, harder, streaming
from avis_stream.train.streams import (
    ALL_BUT_THE_TRACKER,
    LocalizedStream,
    StreamLosses,
    Stretches,
    load_streams,
    localized_streams,
    save_streams,
)
from avis_stream.weights.bundled import stored_state, weights_file
from avis_stream.weights.files import save_weights
from avis_stream.weights.initial import start_from
from avis_stream.weights.load import unfolded_model, untrained_model

Part = TypeVar("Part")
Material = ClipSource | SynthSounds

_MADE = "synth"
_TRAIN = "train."

_CHECKPOINT, _STREAMS, _SOUNDS = "last.pt", "streams.pt", "sounds.pt"
_LEARNT = (_CHECKPOINT, "best.safetensors", "weights.safetensors")
_BESIDE = (_STREAMS, _SOUNDS, "log.jsonl", "tensorboard", "schedule.json", "not_finite*.pt")
"""What a run leaves in its folder: what it learnt, and what it made and wrote on the way."""


def run_training(
    data: str,
    model_name: str,
    out: Path,
    *,
    init: str | os.PathLike[str] | None,
    resume: Path | None,
    settings: Sequence[str],
    validation: Path | None = None,
    audio_weights: Path | None = None,
    device: str = "cpu",
    force: bool = False,
) -> Path:
    """Trains and returns the path of the finished weights: `out/best.safetensors`, or `weights` without validation.

    Args:
        data: Folder with `train.json`, or `synth` (drawn by the program), `synth:ASSETS`, or, with a folder of more
            recordings (`MoreSounds`), `synth:ASSETS:MORE` or `synth::MORE`; `os.pathsep` stands between folders.
        model_name: A preset.
        out: For checkpoints, the log and the weights.
        init: Weights to begin with, whole or in part; `bundled`: those of the model that come with the package.
        resume: A run's folder to go on with, by its own model and schedule; takes the place of `out` and `model_name`.
        settings: `train.steps=1000` for the schedule, anything else for the model.
        validation: Folder with `val.json`; None: `data`, if that has one.
        audio_weights: Public VGGish weights; None: models that hear through it learn from stored features.
        device: Where to learn; of `cuda`, each process of `torchrun` takes its own.
        force: Begin anew in a folder that holds a run, which is lost.
    Raises:
        AvisStreamError: `out` holds a run already.
        ConfigError: The model or the data cannot be learnt from sounds alone, as the schedule asks.
    """
    folder, place = resume or out, device_of_process(device)
    config, schedule = _configuration(model_name, resume, settings)
    if schedule.sounds.count:
        _require_sounds(config, data)
    join_processes(place)
    try:
        if resume is None:
            with all_or_none("beginning", place):
                _require_room(folder, force=force)
        torch.manual_seed(schedule.seed)
        model = untrained_model(config, audio_weights) if resume is None else unfolded_model(config, None, "")
        if init is not None and resume is None:
            report = start_from(model, weights_file(init, model_name))
            if _first():
                sys.stderr.write(f"{init}: {report}\n")
        learning_parameters(model, schedule, _still(model, schedule))  # refuses, before anything is cleared away
        judge = _validation_split(data, validation, model.config.classes)
        opened = cache(partial(_opened, data, model.config, schedule))
        if resume is None:
            with all_or_none("opening the data", place):  # in all processes, before anything is cleared away
                opened()
            with all_or_none("beginning", place):
                _begin(folder)
        lesson = _lesson(model.to(place), schedule, opened, data, folder)
        return _run(model, schedule, lesson, folder, judge, resume=resume is not None)
    finally:
        leave_processes()


def _run(
    model: AVISM,
    schedule: TrainConfig,
    lesson: Mapping[str, Any],
    folder: Path,
    judge: DataSplit | None,
    *,
    resume: bool,
) -> Path:
    best, last = folder / "best.safetensors", folder / "weights.safetensors"
    with ExitStack() as stack:
        with all_or_none("opening the log", model.device):
            diary = Diary(folder, stored_step(folder / _CHECKPOINT) if resume else 0) if _first() else None
        if diary is not None:
            stack.callback(diary.close)

        train(
            model,
            config=schedule,
            folder=folder,
            **lesson,
            still=_still(model, schedule),
            resume=resume,
            log=None if diary is None else diary.note,
            validate=None if judge is None else lambda _: _scores(model, judge),
            keep_best=lambda: _save(model, best, schedule),
        )
    if _first():
        _save(model, last, schedule)
    return last if judge is None else best


def _still(model: AVISM, schedule: TrainConfig) -> tuple[str, ...]:
    """What cannot learn from what the schedule asks for, whatever else it freezes."""
    if schedule.streams.count:
        return ALL_BUT_THE_TRACKER
    return all_but(model, *learns(model)) if schedule.sounds.count else ()


def _lesson(
    model: AVISM, schedule: TrainConfig, opened: Callable[[], Material], data: str, folder: Path
) -> dict[str, Any]:
    """What `train` is to be given of samples and losses.

    Args:
        model: That learns.
        schedule: Of the run.
        opened: What to learn from; not asked for where what was made of it is still there.
        data: Its name.
        folder: Of the run.
    """
    if schedule.streams.count:
        stretches = Stretches(_streams(model, schedule, opened, data, folder), schedule)
        return {"source": stretches, "losses": StreamLosses(model, schedule), "ahead": False}
    if schedule.sounds.count:
        drawn = DrawnSeconds(_sounds(model, schedule, opened, data, folder), schedule)
        return {"source": drawn, "losses": SoundLosses(model, schedule), "ahead": False}
    return {"source": opened()}


def _configuration(name: str, resume: Path | None, settings: Sequence[str]) -> tuple[AVISMConfig, TrainConfig]:
    """The model and the schedule: of a preset, or of the run that goes on; both changed as wished."""
    if resume is not None and not (resume / _CHECKPOINT).exists():
        raise AvisStreamError(
            f"--resume {resume} holds no {_CHECKPOINT}: the run ended before its first checkpoint, or this is no run's "
            f"folder; begin again with --out {resume}"
        )
    config, schedule = (preset(name), training(name)) if resume is None else stored_configuration(resume / _CHECKPOINT)
    config = config.with_overrides(s for s in settings if not s.startswith(_TRAIN))
    of_training = [s.removeprefix(_TRAIN) for s in settings if s.startswith(_TRAIN)]
    return config, with_overrides(schedule, of_training, before=_TRAIN)


def _require_room(folder: Path, *, force: bool) -> None:
    """Refuses a folder in which something was learnt already, unless that may go."""
    there = [path for name in _LEARNT for path in folder.glob(name)]
    if there and not force:
        raise AvisStreamError(
            f"--out {folder} holds a run already ({there[0].name}): go on with --resume {folder}, give another "
            "folder, or --force to begin anew"
        )


def _begin(folder: Path) -> None:
    """Makes the folder of a run that begins, and clears away what is left of one that was there."""
    if _first():
        for path in [path for name in (*_LEARNT, *_BESIDE) for path in folder.glob(name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)


def _require_sounds(config: AVISMConfig, data: str) -> None:
    """Refuses to learn from sounds alone what cannot be, before anything is made or cleared away."""
    require_sounding_head(config)
    require_listening(config)
    if data.partition(":")[0] != _MADE:
        raise ConfigError(
            f"train.sounds.count makes its sound itself, so --data must be {_MADE} or {_MADE}:ASSETS, got {data}; with "
            "train.sounds.count=0 the model learns from that"
        )


def _streams(
    model: AVISM, schedule: TrainConfig, opened: Callable[[], Material], data: str, folder: Path
) -> Sequence[LocalizedStream]:
    """Streams as the model's localizer sees them; kept beside the checkpoints, so that a resumed run has the same."""
    kept, count = folder / _STREAMS, schedule.streams.count
    of = f"{count} streams of {schedule.frames} frames, seed {schedule.seed}, of {data}"
    with all_or_none("making streams", model.device):
        if _first() and not kept.exists():
            source = opened()
            assert not isinstance(source, SynthSounds)
            streams = localized_streams(model, source, schedule)
            save_streams(kept, [s.to(torch.device("cpu")) for s in progress(streams, count, "streams", "stream")], of)
    return load_streams(kept, of)


def _sounds(
    model: AVISM, schedule: TrainConfig, opened: Callable[[], Material], data: str, folder: Path
) -> HeardSounds:
    """Seconds as the model hears them; kept as streams are."""
    kept, count = folder / _SOUNDS, schedule.sounds.count
    of = f"{count} seconds of sound, seed {schedule.seed}, of {data}"
    with all_or_none("making seconds of sound", model.device):
        if _first() and not kept.exists():
            source = opened()
            assert isinstance(source, SynthSounds)
            seconds = heard_seconds(model, source, count)
            save_sounds(kept, list(progress(seconds, count, "seconds", "second")), of)
    return load_sounds(kept, of)


def _validation_split(data: str, validation: Path | None, classes: tuple[str, ...]) -> DataSplit | None:
    """What a run is judged by: `val` of `validation`, or of `data` if it has one; None: nothing.

    Raises:
        DataError: There is nothing to be found in `validation`.
    """
    if validation is None and (data.partition(":")[0] == _MADE or "val" not in splits(data)):
        return None
    split = open_split(validation or data, "val", classes)
    if any(split.annotations.tracks.values()):
        return split
    lacking = f"{split.annotations.path} has no annotation, so nothing can be judged by it"
    if validation is not None:
        raise DataError(f"{lacking}; give --val another folder, or leave it out")
    if _first():
        sys.stderr.write(f"{lacking}: training goes on without validation\n")
    return None


def _scores(model: AVISM, split: DataSplit) -> dict[str, float]:
    """FSLA, HOTA and mAP of a split as it should be measured (`fixed`), in percent; 0 where undefined."""
    with torch.no_grad():
        answers = [entry for video in predict(model, split) for entry in video]
    found = parse_predictions(Path("validation"), answers, split.annotations)
    summary = evaluation(split.annotations, found, "fixed").summary()
    named = ((JUDGED_BY, "FA"), ("val_HOTA", "HOTA"), ("val_mAP", "AP_all"))
    return {name: float(summary[key] or 0.0) for name, key in named}


def _save(model: AVISM, target: Path, schedule: TrainConfig) -> None:
    """Weights without the frozen audio encoder where it ships with the package, and the schedule beside them."""
    save_weights(stored_state(model), model.config, target, half=True)
    with atomic_path(target.with_name("schedule.json")) as temporary:
        temporary.write_text(
            json.dumps({"train": json.loads(schedule.to_json()), "data_protocol": Protocol.load().digest}) + "\n"
        )


def _opened(data: str, config: AVISMConfig, schedule: TrainConfig) -> Material:
    """What a run learns from."""
    return _sound_source(data, config, schedule) if schedule.sounds.count else _source(data, config, schedule)


def _source(data: str, config: AVISMConfig, schedule: TrainConfig) -> ClipSource:
    if data.partition(":")[0] != _MADE:
        split = open_split(data, "train", config.classes)
        return DatasetClips(split, config, frames=schedule.frames, config=schedule.augment, seed=schedule.seed)
    protocol = Protocol.load()
    width, height = protocol.size
    small = network_size(height, width, config.input)
    return SynthClips(
        _library(data, protocol, config.classes),
        streaming(protocol) if schedule.streams.count else harder(protocol),
        frames=schedule.frames,
        size=(small[1], small[0]),
        seed=schedule.seed,
        classes=config.classes,
        photograph_share=protocol.photograph_share["train"],
        augment=schedule.augment,
    )


def _sound_source(data: str, config: AVISMConfig, schedule: TrainConfig) -> SynthSounds:
    protocol = Protocol.load()
    return SynthSounds(
        _library(data, protocol, config.classes),
        harder(protocol),
        seed=schedule.seed,
        classes=config.classes,
        augment=schedule.augment,
    )


def _library(data: str, protocol: Protocol, classes: tuple[str, ...]) -> Library:
    """What `synth`, `synth:ASSETS` or `synth:ASSETS:MORE` is made from: of the model's classes alone."""
    folder, _, more = data.partition(":")[2].partition(os.pathsep)
    library: Library
    if folder:
        library = AssetLibrary(Path(folder), protocol, "train", only=classes)
    else:
        drawn = tuple(name for name in AVISEG_CLASSES if name in classes)
        if not drawn:
            raise ConfigError(
                f"--data {_MADE} draws the classes of AVISeg ({', '.join(AVISEG_CLASSES[:3])}, ...), of which the "
                f"model has none; give it some of them, or {_MADE}:ASSETS with cut-outs and sounds of its own"
            )
        library = ProceduralLibrary(drawn)
    return MoreSounds(library, Path(more)) if more else library


def _first() -> bool:
    return rank_and_count()[0] == 0
