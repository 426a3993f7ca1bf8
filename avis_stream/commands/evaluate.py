"""`avis-stream eval`: how good predictions are, as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from avis_stream.checks import refuse
from avis_stream.commands.output import aligned
from avis_stream.commands.progress import progress
from avis_stream.data.annotations import parse_predictions, read_annotations, read_json
from avis_stream.data.dataset import annotation_file, open_split
from avis_stream.files import atomic_path
from avis_stream.metrics import (
    Evaluation,
    as_live,
    evaluation,
    label_maps,
    parse_answers,
    score_answers,
    segmentation_summary,
)
from avis_stream.metrics.answers import is_answers
from avis_stream.metrics.evaluate import UNDEFINED, Scores
from avis_stream.metrics.fsla import Mode
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.online.predictions import predict_streams
from avis_stream.writers.verdicts import draw_verdicts

COLUMNS = {
    "FSLA": "FA",
    "silent": "FAn",
    "single": "FAs",
    "multi": "FAm",
    "HOTA": "HOTA",
    "pooled": "HOTA_pooled",
    "DetA": "DetA",
    "AssA": "AssA",
    "LocA": "LocA",
    "mAP": "AP_all",
    "AR": "AR_all",
    "IDF1": "IDF1",
    "IDSW": "IDSW",
    "frame AP50": "frame_AP50",
}
"""Heading and key of each column; those without any value in a mode are left out."""


ANSWER_COLUMNS = {
    "FSLA": "FA",
    "silent": "FAn",
    "single": "FAs",
    "multi": "FAm",
    "labels": "labels",
    "precision": "precision",
    "recall": "recall",
}
"""The same for answers without identity (`metrics/answers.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How to score, and what to write."""

    mode: Mode | None = None
    """None: `official`, where there are modes."""
    semantic: bool = False
    """Also score pixels: mIoU and F-score."""
    json_file: Path | None = None
    plot_file: Path | None = None
    latencies: tuple[float, ...] = ()
    """Seconds: score what had been delivered at each instant (`metrics/streaming.py`); none: what was answered."""


def evaluate_predictions(
    data: Path, split: str, predictions: Path, options: EvalOptions, *, model: str | None = None
) -> str:
    """Scores a predictions file against `data/split.json`; returns the table for people.

    Answers of other systems, known by their intervals, are scored second by second instead.

    Args:
        data: Folder of the set.
        split: Its name.
        predictions: The file.
        options: How to score, and what to write.
        model: Who gave the answers, where the file is not kept; None: reports name the file.
    Raises:
        DataError: A file is missing or broken, or they do not belong together.
        ConfigError: Something was asked for that answers cannot give.
    """
    truth = read_annotations(annotation_file(data, split))
    document = read_json(predictions)
    frames = sum(video.length for video in truth.videos)
    head = f"{model or predictions} on {split}: {len(truth.videos)} videos, {frames} frames; "
    answered = {"predictions": str(predictions)} if model is None else {"model": model}
    report: dict[str, Any] = {"data": str(data), "split": split, **answered}
    if is_answers(document):
        given = {
            "--plot": options.plot_file,
            "--semantic": options.semantic,
            "--as-live": options.latencies,
            "--metrics": options.mode,
        }
        refuse(given, "answers with intervals are scored second by second")
        scores = score_answers(truth, parse_answers(predictions, document, truth))
        _write(options.json_file, report | {"mode": "answers", "summary": scores})
        return f"{head}answers second by second, in percent\n\n{table([('all', scores)], ANSWER_COLUMNS)}"
    found = parse_predictions(predictions, document, truth)
    mode = options.mode or "official"
    scored = f"{mode} scores"
    if options.latencies:
        truth, found = as_live(truth, found, 1.0, options.latencies)
        ordered = sorted(options.latencies)
        scored = f"{mode} scores as live (latency {1000 * ordered[len(ordered) // 2]:.0f} ms p50)"
        report["latency_seconds_p50"] = ordered[len(ordered) // 2]
    result = evaluation(truth, found, mode)
    text = f"{head}{scored} in percent\n\n{as_table(result)}"
    report |= as_json(result)
    if options.semantic:
        report["pixels"] = segmentation_summary(label_maps(truth, found))
        text += "\n\npixels: " + ", ".join(f"{key} {_cell(value)}" for key, value in report["pixels"].items())
    _write(options.json_file, report)
    if options.plot_file is not None:
        title = f"{model or predictions.name} on {split}: FSLA {_cell(result.summary()['FA'])} ({mode})"
        draw_verdicts([video.verdicts for video in result.videos], options.plot_file, title=title)
    return text


def evaluate_model(
    model: AVISM, data: Path, split: str, options: EvalOptions, *, keep: Path | None, online: OnlineConfig | None = None
) -> str:
    """Lets a model answer for every video of a split and scores that; returns the table for people.

    Args:
        model: Prepared for inference.
        data: Folder of the set.
        split: Its name.
        options: As for `evaluate_predictions`.
        keep: Where the answers stay; None: nowhere.
        online: Run each video as a stream; None: each as a whole.
    Raises:
        DataError: The split is missing or broken, or has classes that the model does not know.
    """
    opened = open_split(data, split, model.classes)
    answering = predict(model, opened) if online is None else predict_streams(OnlineSegmenter(model, online), opened)
    bar = progress(answering, len(opened), split, "video")
    answers = json.dumps([entry for video in bar for entry in video]) + "\n"
    with TemporaryDirectory() as folder:
        file = keep or Path(folder) / "predictions.json"
        with atomic_path(file) as temporary:
            temporary.write_text(answers, encoding="utf-8")
        # A file that goes at once says nothing to whoever reads the report.
        return evaluate_predictions(data, split, file, options, model=None if keep else model.config.name)


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(report, allow_nan=False) + "\n", encoding="utf-8")


def as_table(result: Evaluation) -> str:
    """Total, scenarios and classes, one line each."""
    parts = (*result.by_scenario().items(), *result.by_class().items())
    return table([("all", result.summary()), *parts], COLUMNS)


def table(rows: Sequence[tuple[str, Scores]], columns: Mapping[str, str]) -> str:
    """Scores under each other by their labels, of which two may be equal; a dash where nothing can be measured."""
    columns = {name: key for name, key in columns.items() if any(row.get(key) is not None for _, row in rows)}
    cells = [[label, *(_cell(row.get(key)) for key in columns.values())] for label, row in rows]
    return aligned([["", *columns], *cells])


def as_json(result: Evaluation) -> dict[str, Any]:
    """Everything: total, by scenario, by class, and of every frame the share of thresholds at which it is right."""
    videos = [
        {
            "name": video.verdicts.name,
            "scenario": video.scenario,
            "sounding": video.verdicts.sounding.tolist(),
            "shown": video.verdicts.shown.tolist(),
            "right": [round(float(share), 4) for share in video.verdicts.right.mean(axis=1)],
        }
        for video in result.videos
    ]
    return {
        "mode": result.mode,
        "summary": result.summary(),
        "by_scenario": result.by_scenario(),
        "by_class": result.by_class(),
        "videos": videos,
    }


def _cell(value: float | int | None) -> str:
    if value is None or value == UNDEFINED:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
