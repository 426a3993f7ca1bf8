"""Runs `worker/` and hands on what it says, from a thread; can be ended at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from avis_stream.errors import SourceError
from avis_stream.needs import install_extra
from avis_stream.sources.worker import wire

_PROGRAM = str(Path(wire.__file__).parent)
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker said."""

    kind: bytes
    """One of the kinds in `worker/wire.py`."""
    payload: bytearray
    stamp_ns: int | None
    """On the source's own clock."""
    arrival_ns: int
    """On the monotonic clock."""
    sizes: tuple[int, int]
    lost: int
    """Frames that the worker lost so far."""

    @property
    def text(self) -> str:
        """The payload of a message that is not media."""
        return self.payload.decode(errors="replace")


class Child:
    """One worker process and the thread that reads what it says."""

    def __init__(self, request: Mapping[str, Any], deliver: Callable[[Message], None], *, name: str) -> None:
        """Starts both.

        Args:
            request: What `worker/` is to read; it may hold passwords.
            deliver: Called from the thread with every message; the last one is always of kind ENDED or FATAL.
            name: Of the thread, for people.
        """
        # The worker's own words about a crash; a pipe would need a reader.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the thread)
        self._process = subprocess.Popen(
            [sys.executable, _PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints,
        )  # fmt: skip
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it died at once; the thread will say so
            self._process.stdin.write(_line(request))
            self._process.stdin.flush()
        self._deliver = deliver
        self._thread = threading.Thread(target=self._listen, name=name, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Kills the process, at which the thread ends too; waits for neither. Harmless when they are gone."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def join(self, timeout: float) -> None:
        """Returns when process and thread are gone, or after `timeout` seconds."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        pipe, last = self._process.stdout, b""
        _enlarge(pipe)
        try:
            while (head := pipe.read(wire.HEADER.size)) and len(head) == wire.HEADER.size:
                kind, size, stamp, arrival, a, b, lost = wire.HEADER.unpack(head)
                payload = bytearray(size)
                if not _fill(pipe, payload):
                    break
                last = kind
                stamp_ns = None if stamp == wire.NO_STAMP else stamp
                self._deliver(Message(kind, payload, stamp_ns, arrival, (a, b), lost))
        finally:
            pipe.close()
            with contextlib.suppress(OSError):
                self._process.kill()
            status = self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            if last not in (wire.ENDED, wire.FATAL):
                why = f"the reader process ended (status {status}){self._last_complaint()}"
                self._deliver(Message(wire.ENDED, bytearray(why.encode()), None, 0, (0, 0), 0))
            self._complaints.close()

    def _last_complaint(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:200]}" if said else ""


def _line(request: Mapping[str, Any]) -> bytes:
    """The request as a worker reads it. A worker imports nothing of the package, so it is told our remedies too."""
    return json.dumps(dict(request) | {"install_mic": install_extra("mic")}).encode() + b"\n"


def _fill(pipe: IO[bytes], payload: bytearray) -> bool:
    view = memoryview(payload)
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True


def _enlarge(pipe: IO[bytes]) -> None:
    """A pipe of 64 KiB would wake both sides ten times a picture."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):  # other systems, or no right to so much
        pass


def list_microphones(timeout_seconds: float = 10.0) -> list[dict[str, Any]]:
    """Every device that records, by PortAudio: index, name, channels, rate, and whether it is the default.

    Raises:
        SourceError: PyAudio is missing, or the sound system does not answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, _PROGRAM],
            input=_line({"reader": "list-microphones"}), capture_output=True, timeout=timeout_seconds, check=False,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"the sound system must answer within {timeout_seconds:g} s, it does not; restart it"
        ) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().split("\n")
        raise SourceError(lines[-1] or f"listing microphones ended with status {done.returncode}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
