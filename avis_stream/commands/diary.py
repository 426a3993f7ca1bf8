"""What a training run leaves to read: one line of JSON a step, and TensorBoard's files where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Diary:
    """`folder/log.jsonl`, added to when a run goes on, and `folder/tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        self._lines = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard")

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


def _board(folder: Path) -> Any:
    """TensorBoard's writer; None where `avis_stream[train]` is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
