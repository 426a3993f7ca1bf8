"""`python avis_stream/sources/worker`: see `process.py`."""

import importlib
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # Ctrl-C reaches every process of a terminal; this one's parent ends it, when what was read is out.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The folder above, for just this import: its modules must not stand in for those that a library looks for.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    process = importlib.import_module("worker.process")
    del sys.path[0]
    sys.exit(process.main())
