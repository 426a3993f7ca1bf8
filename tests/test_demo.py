"""`avis-stream demo`: the bundled model on the bundled clip does what the README's picture shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avis_stream.commands.demo import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("demo")
    run_demo(folder, video=False)
    return folder


def test_a_dog_is_found_and_named(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert "dog" in {track["label"] for track in summary["tracks"]}


def test_its_scores_are_no_worse_than_they_were(demo: Path) -> None:
    metrics = json.loads((demo / "summary.json").read_text())["metrics"]
    assert metrics["FA"] > 15
    assert metrics["FAn"] == 100, "nothing is shown while nothing sounds"


def test_nothing_but_what_is_documented_is_written(demo: Path) -> None:
    assert sorted(p.name for p in demo.iterdir()) == [
        "predictions.json", "results.jsonl", "summary.json", "timeline.png"
    ]  # fmt: skip
