"""How far a command is, on stderr: a bar on a terminal, elsewhere (a log, CI, `nohup`) a line every now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS = 10.0
"""From one line to the next, and until the first: what is quicker says nothing."""


class _Lines:
    """A stream that gets a line where tqdm draws over the last one."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[T], total: int | None, what: str, unit: str = "frame") -> Iterable[T]:
    """The items, and meanwhile how many of them there were, their rate and the time left."""
    quietly: dict[str, Any] = {"file": _Lines(), "mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": _SECONDS}
    how = {} if sys.stderr.isatty() else quietly | {"ascii": True, "ncols": 80, "leave": False}
    bar: Iterable[T] = tqdm(items, total=total, desc=what, unit=unit, **how)
    return bar
