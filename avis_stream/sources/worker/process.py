"""What the process does: reads what it is asked for on stdin, until that ends or nobody listens.

What to read comes as JSON, on stdin, where no list of processes shows a password.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading

from .ffmpeg import read_ffmpeg
from .gstreamer import read_gstreamer
from .microphone import microphones, read_microphone
from .wire import ENDED, FATAL, Ended, Hopeless, Outlet

_READERS = {"ffmpeg": read_ffmpeg, "gstreamer": read_gstreamer, "microphone": read_microphone}


def main() -> int:
    """Reads what stdin asks for until it ends or nobody listens."""
    wanted = json.loads(sys.stdin.readline())
    if wanted["reader"] == "list-microphones":
        try:
            sys.stdout.write(json.dumps(microphones(wanted)))
        except Hopeless as error:
            sys.stderr.write(str(error))
            return 1
        sys.stdout.flush()
        os._exit(0)
    out = Outlet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kind, why = ENDED, "end of stream"
    try:
        _READERS[wanted["reader"]](wanted, out)
    except Ended as end:
        why = str(end)
    except Hopeless as error:
        kind, why = FATAL, str(error)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        out.send(kind, why.encode())
    # Libraries may hang on their way out, and nothing here needs cleaning.
    os._exit(0)


def _end_with_parent() -> None:
    """The parent holds stdin open as long as it lives."""
    sys.stdin.read()
    os._exit(0)
