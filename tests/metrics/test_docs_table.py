"""The table of `docs/metrics.md`: six cases, three readings, as the code gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import Box, Tracks, score, write

from avis_stream.commands.evaluate import ANSWER_COLUMNS, COLUMNS, EvalOptions, evaluate_predictions

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
A: Box = (0, 0, 4, 4)
B: Box = (5, 5, 4, 4)
Videos = list[tuple[int, Tracks, Tracks]]
CASES: dict[str, Videos] = {
    "silence kept": [(3, [("dog", [A, A, None])], [("dog", [A, A, None])])],
    "a mask half beside the mark": [(2, [("dog", [A, A])], [("dog", [(2, 0, 4, 4)] * 2)])],
    "an identity that changes": [(4, [("dog", [A] * 4)], [("dog", [A, A, None, None]), ("dog", [None, None, A, A])])],
    "one of two missed": [(2, [("dog", [A, A]), ("cat", [B, B])], [("dog", [A, A]), ("cat", [B, None])])],
    "a false alarm in silence": [(3, [("dog", [A, None, None])], [("dog", [A, A, None])])],
    "a long video, a rare class": [
        (1, [("dog", [A])], [("dog", [A])]),
        (3, [("cat", [A] * 3)], [("dog", [A] * 3)]),
    ],
}


def row(folder: Path, name: str) -> str:
    cells = [name]
    for mode in ("official", "fixed", "paper"):
        scores = score(folder, mode, *CASES[name])
        cells.append(" / ".join(f"{scores[key]:.1f}" for key in ("FA", "HOTA", "AP_all")))
    return "| " + " | ".join(cells) + " |"


def reported(folder: Path, file: Path, options: EvalOptions, model: str | None = None) -> dict[str, Any]:
    """What `eval` writes as JSON of answers to what `write` wrote."""
    target = folder / "report.json"
    evaluate_predictions(folder, "truth", file, replace(options, json_file=target), model=model)
    report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return report


def quoted(text: str) -> set[str]:
    """What stands between backticks."""
    return set(text.split("`")[1::2])


def test_the_documented_figures_are_the_codes(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in CASES:
        assert row(tmp_path, name) in text


def test_columns_and_keys_of_eval_are_documented(tmp_path: Path) -> None:
    """And nothing else is."""
    section = DOCS.read_text(encoding="utf-8").partition("Where `eval` writes each")[2].partition("\n## ")[0]
    columns: set[str] = set()
    keys: set[str] = set()
    for line in section.splitlines():
        if line.startswith("|"):
            heading, key = line.split("|")[2:4]
            columns |= quoted(heading)
            keys |= quoted(heading + key if "the same" in key else key)
    assert columns == {*COLUMNS, *ANSWER_COLUMNS}

    _, predictions = write(tmp_path, CASES["silence kept"])
    report = reported(tmp_path, predictions, EvalOptions(mode="fixed", semantic=True, latencies=(0.5,)))
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps([{"video_id": 1, "label": "dog", "interval": [0, 2]}]))
    other = reported(tmp_path, answers, EvalOptions(), model="avism_mini")
    scores = [report["summary"], *report["by_scenario"].values(), *report["by_class"].values()]
    beside = {"pixels", "by_class"}  # where the table says of a score that it is there, or is another there
    assert keys == beside.union(*scores, report["pixels"], other["summary"])
    assert not {*report, *other} - quoted(section)
