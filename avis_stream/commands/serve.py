"""`avis-stream serve`: a page on which to watch what sounds."""

from __future__ import annotations

import sys

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
        for one in sources:
            one.hub.stop()
    errors = [one.hub.error for one in sources if one.hub.error is not None]
    if errors:
        raise SourceError("; ".join(errors))
