"""`avis-stream serve`: a page on which to watch what sounds."""

from __future__ import annotations

import socket
import sys
from typing import Any

from avis_stream.errors import SourceError
from avis_stream.serve.app import ServeConfig, run_server
from avis_stream.serve.sources import Sources


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
    with _listening(config) as listener:
        sys.stderr.write(f"watch at {config.url} (Ctrl-C ends it)\n")
        _run(server, listener, sources)


def _listening(config: ServeConfig) -> socket.socket:
    """A socket where visitors may knock from now on."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise SourceError(
            f"port {config.port} of {config.host} must be free, and the host an address of this machine: "
            f"{error.strerror or error}; give another --port or --host"
        ) from error


def _run(server: Any, listener: socket.socket, sources: Sources) -> None:
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # handed on by uvicorn, after everything has ended
        pass
    finally:
        for one in sources:
            one.hub.stop()
    errors = [one.hub.error for one in sources if one.hub.error is not None]
    if errors:
        raise SourceError("; ".join(errors))
