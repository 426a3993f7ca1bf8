"""What goes over the pipe: every message is a HEADER and so many bytes; the last one says why there are no more."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from typing import Any

HEADER = struct.Struct("<4sIqqIII")
"""Kind, bytes that follow, stamp, arrival on the monotonic clock (both ns), two sizes, frames lost so far."""

OPENED, VIDEO, AUDIO, ENDED, FATAL = b"OPEN", b"VIDE", b"AUDI", b"ENDE", b"FATL"
"""Opened: JSON about the source. Video: RGB, sizes are width and height. Audio: float32 mono, the first size is its
rate. Ended: why, worth another try. Fatal: why, and that no other try will help."""

NO_STAMP = -(1 << 62)
SAMPLE_RATE = 16_000


class Ended(Exception):
    """The source is gone; another try may find it."""


class Hopeless(Exception):
    """Something is missing that will not appear by itself."""


class Outlet:
    """Writes messages; stdout itself is given to stderr, lest a library prints into them."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.lost = 0

    def send(
        self, kind: bytes, payload: Any = b"", stamp: int = NO_STAMP, a: int = 0, b: int = 0, *,
        arrival: int | None = None,
    ) -> None:  # fmt: skip
        """Writes one message; waits while nobody reads. `arrival`: None: it arrived just now."""
        view = memoryview(payload).cast("B")
        head = HEADER.pack(kind, len(view), stamp, time.monotonic_ns() if arrival is None else arrival, a, b, self.lost)
        with self._lock:
            self._write(memoryview(head))
            self._write(view)

    def _write(self, view: memoryview) -> None:
        while view:
            view = view[self._file.write(view) :]


def words_of(error: BaseException) -> str:
    """What the system says about a failure, without numbers, and what helps where that is known."""
    return with_remedy(str(getattr(error, "strerror", None) or error))


def with_remedy(words: str) -> str:
    """What the system says about a device; if it may not be opened, also what helps."""
    forbidden = os.strerror(errno.EACCES)
    return f"{words}; add your user to the group that owns it, usually video" if forbidden in words else words
