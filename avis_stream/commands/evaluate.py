"""`avis-stream eval`: how good predictions are, as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avis_stream.commands.output import aligned
from avis_stream.data.annotations import read_annotations, read_predictions
from avis_stream.data.dataset import annotation_file
from avis_stream.files import atomic_path
from avis_stream.metrics import Evaluation, evaluation
from avis_stream.metrics.evaluate import Scores
from avis_stream.metrics.fsla import Mode
from avis_stream.writers.verdicts import draw_verdicts

COLUMNS = {
    "FSLA": "FA",
    "silent": "FAn",
    "single": "FAs",
    "multi": "FAm",
    "HOTA": "HOTA",
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


def evaluate_predictions(
    data: Path, split: str, predictions: Path, mode: Mode, *, json_file: Path | None, plot_file: Path | None
) -> str:
    """Scores a predictions file against `data/split.json`; returns the table for people.

    Raises:
        DataError: A file is missing or broken, or they do not belong together.
    """
    truth = read_annotations(annotation_file(data, split))
    result = evaluation(truth, read_predictions(predictions, truth), mode)
    if json_file is not None:
        report = {"data": str(data), "split": split, "predictions": str(predictions)} | as_json(result)
        with atomic_path(json_file) as path:
            path.write_text(json.dumps(report, allow_nan=False) + "\n", encoding="utf-8")
    if plot_file is not None:
        score = result.summary()["FA"]
        title = f"{predictions.name} on {split}: FSLA {_cell(score)} ({mode})"
        draw_verdicts([video.verdicts for video in result.videos], plot_file, title=title)
    frames = sum(video.length for video in truth.videos)
    head = f"{predictions} on {split}: {len(truth.videos)} videos, {frames} frames; {mode} scores in percent"
    return f"{head}\n\n{as_table(result)}"


def as_table(result: Evaluation) -> str:
    """Total, scenarios and classes, one line each."""
    return table({"all": result.summary()} | result.by_scenario() | result.by_class())


def table(rows: Mapping[str, Scores]) -> str:
    """Scores under each other; a dash where nothing can be measured."""
    columns = {name: key for name, key in COLUMNS.items() if any(row.get(key) is not None for row in rows.values())}
    cells = [[label, *(_cell(row.get(key)) for key in columns.values())] for label, row in rows.items()]
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
    if value is None or value == -100:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
