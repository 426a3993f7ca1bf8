"""`avis-stream`, the command: reads arguments, calls `commands/`, turns errors into one sentence and an exit status.

Exit status: 0 done, 2 wrong use, 141 nobody reads stdout any more, 1 any other error. Results go to files or stdout,
everything else to stderr.
Each file here has some commands: their arguments, and below what they call. That is imported when it is called, so that
`--help` and wrong use answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from avis_stream._version import __version__
from avis_stream.cli import datasets, machine, recordings, streams, weights
from avis_stream.cli.options import Commands, Parser
from avis_stream.errors import AvisStreamError, ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with _ending_by_interrupt():
            options.command(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it may fail
    except ConfigError as error:
        return _fail(error, options.debug, status=2)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does: end as other programs do then
        if options.debug:
            raise
        _let_go_of_stdout()
        return 141
    except (AvisStreamError, OSError) as error:
        return _fail(error, options.debug, status=1)
    except KeyboardInterrupt:
        sys.stderr.write("avis-stream: interrupted\n")
        return 1
    except Exception as error:
        what = " ".join(f"unexpected {type(error).__name__}: {error}".split())
        return _fail(error, options.debug, status=1, sentence=f"{what}; --debug shows more")
    return 0


@contextmanager
def _ending_by_interrupt() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, so that what is half-written goes; commands that go on writing have ways of their own."""
    if threading.current_thread() is not threading.main_thread():  # signals are not for others to set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _let_go_of_stdout() -> None:
    """Or Python would try once more to write what is left, and complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _fail(error: Exception, debug: bool, status: int, sentence: str = "") -> int:
    if debug:
        raise error
    sys.stderr.write(f"avis-stream: {sentence or error}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="avis-stream", description="Which objects are making sound, where, and who.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(debug=False)
    commands = Commands(parser)
    for group in (recordings, streams, datasets, weights, machine):
        group.add_commands(commands)
    return parser
