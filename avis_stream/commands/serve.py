"""`avis-stream serve`: a page on which to watch what sounds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from avis_stream.errors import SourceError
from avis_stream.serve.app import ServeConfig, run_server
from avis_stream.serve.hub import Hub
from avis_stream.stream.session import Session


def serve(session: Session, classes: Sequence[str], config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Raises:
        SourceError: The address is taken, or a source is missing for good.
    """
    config = config.with_token()
    hub = Hub(session, classes)
    server = run_server(hub, config)
    sys.stderr.write(f"watch at {config.url} (Ctrl-C ends it)\n")
    try:
        server.run()
    except KeyboardInterrupt:  # handed on by uvicorn, after everything has ended
        pass
    except SystemExit as error:  # uvicorn's way to say that it cannot listen
        raise SourceError(
            f"port {config.port} of {config.host} must be free, it is not; give another --port"
        ) from error
    finally:
        hub.stop()
    if hub.error is not None:
        raise SourceError(hub.error)
