"""Threads that have ended before the interpreter does.

A daemon thread that comes back from torch while Python is being taken down is ended on the spot, in the middle of C++
that cannot be left like that: the program aborts (SIGABRT). So those that compute are told to end when the program
does, and waited for. They are daemons all the same: Python would wait for others before anybody could tell them.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable


class ComputingThread(threading.Thread):
    """A daemon that is told to end, and waited for, when the program ends."""

    def __init__(
        self, run: Callable[[], object], *, end: Callable[[], object], name: str, patience_seconds: float = 30.0
    ) -> None:
        """Does not start yet.

        Args:
            run: What it does.
            end: Makes `run` return after what is at hand; called from another thread, perhaps more than once.
            name: Of the thread.
            patience_seconds: How long the end of the program may be held up at most.
        """
        super().__init__(target=run, name=name, daemon=True)
        self.end = end
        self.patience_seconds = patience_seconds

    def run(self) -> None:
        """What `threading` calls."""
        try:
            super().run()
        finally:
            self.end = _nothing  # what it would end may be large, and may hold this thread: neither would go


def _nothing() -> None:
    pass


@atexit.register
def _end_all() -> None:
    running = [thread for thread in threading.enumerate() if isinstance(thread, ComputingThread)]
    for thread in running:
        thread.end()
    begin = time.monotonic()
    for thread in running:
        thread.join(max(0.0, begin + thread.patience_seconds - time.monotonic()))
