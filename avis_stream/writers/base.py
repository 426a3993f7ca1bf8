"""What every writer has in common: it takes pairs and results, and its file appears complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

from avis_stream.files import atomic_path
from avis_stream.types import AVPair, OnlineResult


class Writer(Protocol):
    """Takes results in order, one call a frame. Afterwards exactly one of `close` and `abort`."""

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame and what is known about it."""

    def close(self) -> None:
        """Completes the file: only now it appears under its name."""

    def abort(self) -> None:
        """Leaves nothing behind. Harmless after `close`."""


class Pending:
    """A file or folder in the making: `path` to write to, then `commit` or `discard`."""

    def __init__(self, target: str | Path) -> None:
        self._target = Path(target)
        self._context: AbstractContextManager[Path] | None = atomic_path(self._target)
        self.path = self._context.__enter__()

    def commit(self) -> None:
        """Gives the file its name; a second call does nothing."""
        context, self._context = self._context, None
        if context is not None:
            if self.path.is_dir() and self._target.is_dir():
                shutil.rmtree(self._target)  # a folder does not take the place of a folder by renaming
            context.__exit__(None, None, None)

    def discard(self) -> None:
        """Removes what was written; after `commit` it does nothing."""
        context, self._context = self._context, None
        if context is not None:
            reason = _DiscardedError()
            context.__exit__(_DiscardedError, reason, None)


class _DiscardedError(Exception):
    """Tells `atomic_path` that its block did not end well."""


class Writers:
    """Several writers as one. As a context manager it closes them, or aborts them all on any error and on Ctrl-C.

    With `keep`, for what happens only once, it closes them on errors too: what was written until then stays.

    Example:
        >>> with Writers([JsonlWriter("results.jsonl", classes)]) as writers:
        ...     for pair in clip:
        ...         writers.write(pair, step(pair))
    """

    def __init__(self, writers: Sequence[Writer], *, keep: bool = False) -> None:
        self._writers = tuple(writers)
        self._keep = keep

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Hands one frame to every writer."""
        for writer in self._writers:
            writer.write(pair, result)

    def close(self) -> None:
        """Closes every writer; if one fails, those after it are aborted (closed, with `keep`) and the error goes on."""
        if self._keep:
            self._close_each()
            return
        try:
            for writer in self._writers:
                writer.close()
        except BaseException:
            self.abort()
            raise

    def _close_each(self) -> None:
        with ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.abort)  # harmless after `close`
                stack.callback(writer.close)

    def abort(self) -> None:
        """Aborts every writer."""
        for writer in self._writers:
            writer.abort()

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._keep:
            self.close()
        else:
            self.abort()
