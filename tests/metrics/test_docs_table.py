"""The table of `docs/metrics.md`: six cases, three readings, as the code gives them."""

from __future__ import annotations

from pathlib import Path

from tiny import Box, Tracks, score

from avis_stream.commands.evaluate import ANSWER_COLUMNS, COLUMNS

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


def test_the_documented_figures_are_the_codes(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in CASES:
        assert row(tmp_path, name) in text


def test_columns_and_keys_of_eval_are_documented(tmp_path: Path) -> None:
    table = DOCS.read_text(encoding="utf-8").partition("key in JSON")[2].partition("\n\n")[0]
    documented = set(table.split("`")[1::2])
    columns = {**COLUMNS, **ANSWER_COLUMNS}
    keys = {key for key in score(tmp_path, "fixed", *CASES["silence kept"]) if not key.endswith(("_count", "_all"))}
    assert not {*columns, *columns.values(), *keys} - documented
