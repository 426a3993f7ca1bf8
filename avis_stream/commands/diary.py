"""What a training run leaves to read: one line of JSON a step, and TensorBoard's files where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from avis_stream.files import atomic_path


class Diary:
    """`folder/log.jsonl`, added to when a run goes on, and `folder/tensorboard/`."""

    def __init__(self, folder: Path, done: int = 0) -> None:
        """Opens both.

        Args:
            folder: Of the run.
            done: Steps that are not done again. What is there about later ones goes: the run ended after it had noted
                them and before it had saved its state.
        """
        _cut(folder / "log.jsonl", done)
        self._lines = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard", done)

    def note(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures of a step; what is written can be read at once."""
        self._lines.write(json.dumps({"step": step} | {name: round(v, 5) for name, v in figures.items()}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in figures.items():
                kind, _, rest = name.partition("_")
                self._board.add_scalar(f"{kind}/{rest}" if rest else name, value, step)

    def close(self) -> None:
        """Ends both."""
        self._lines.close()
        if self._board is not None:
            self._board.close()


def _cut(path: Path, done: int) -> None:
    """Leaves lines of the first `done` steps alone in a file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= done)
    if kept != text:
        with atomic_path(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")


def _step_of(line: str) -> float:
    """Infinite of a line that broke off, which was the last."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _board(folder: Path, done: int) -> Any:
    """TensorBoard's writer, which passes over later steps than `done` of before; None where `avis_stream[train]` is
    not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
