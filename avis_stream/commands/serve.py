"""`avis-stream serve`: a page on which to watch what sounds."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import ExitStack
from typing import Any

from avis_stream.errors import SourceError
from avis_stream.serve.app import ServeConfig, run_server
from avis_stream.serve.sources import Sources

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""`localhost` may have an address of IPv6 on a machine that has none."""


def serve(sources: Sources, config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Args:
        sources: With those that are watched from the beginning.
        config: Who may come.

    Raises:
        SourceError: The address is taken, or a source is missing for good.
    """
    config = config.with_token()
    server = run_server(sources, config)
    with ExitStack() as stack:
        listeners = _listening(config, stack)
        sys.stderr.write(f"watch at {config.url} (Ctrl-C ends it)\n")
        _run(server, listeners, sources)


def _listening(config: ServeConfig, stack: ExitStack) -> list[socket.socket]:
    """Sockets where visitors may knock from now on: of each address that the host's name has and this machine knows."""
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((family, place[:2]) for family, _, _, _, place in found):
            try:
                listeners.append(stack.enter_context(socket.create_server(place, family=family)))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                failure = error
        if not listeners and failure is not None:
            raise failure
    except OSError as error:
        raise SourceError(
            f"port {config.port} of {config.host} must be free, and the host an address of this machine: "
            f"{error.strerror or error}; give another --port or --host"
        ) from error
    return listeners


def _run(server: Any, listeners: list[socket.socket], sources: Sources) -> None:
    try:
        server.run(sockets=listeners)
    except KeyboardInterrupt:  # handed on by uvicorn, after everything has ended
        pass
    except SystemExit as error:  # uvicorn's way to say that the sources could not begin; it has said why
        raise SourceError("the server must be able to begin, it could not; what it said before tells why") from error
    finally:
        for one in sources:
            one.hub.stop()
    errors = [one.hub.error for one in sources if one.hub.error is not None]
    if errors:
        raise SourceError("; ".join(errors))
