"""The web server: a page, a stream of results, and figures; for this machine only, unless there is a token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from avis_stream.errors import ConfigError
from avis_stream.serve.hub import Hub, LineSlot, Slot

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as error:
    raise ConfigError("serve needs starlette, uvicorn and websockets: pip install 'avis-stream[serve]'") from error

_ASSETS = Path(__file__).parents[1] / "assets" / "viewer"
_COOKIE = "avis_token"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_STALLED_SECONDS = 10.0
_ACK_SECONDS = 15.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Who may come, and how many."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    """None: none is asked for on loopback; elsewhere one is made up."""
    max_viewers: int = 16
    requests_per_second: float = 50.0

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return self.host in _LOCAL

    def with_token(self) -> ServeConfig:
        """The same, with a token where one is needed."""
        if self.token is not None or self.is_local:
            return self
        return ServeConfig(
            host=self.host, port=self.port, token=secrets.token_urlsafe(18), max_viewers=self.max_viewers,
            requests_per_second=self.requests_per_second,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where to look."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")


def make_app(hub: Hub, config: ServeConfig) -> ASGIApp:
    """The application; it starts and stops the hub's session itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        hub.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.to_thread(hub.stop)

    views = _Views(hub, config)
    routes = [
        Route("/", views.page),
        Route("/viewer.js", views.script),
        Route("/viewer.css", views.style),
        Route("/results", views.results),
        Route("/mjpeg", views.mjpeg),
        Route("/stats", views.stats),
        Route("/metrics", views.metrics),
        Route("/healthz", views.health),
        WebSocketRoute("/ws", views.socket),
    ]
    return _Door(Starlette(routes=routes, lifespan=lifespan), config)


class _Door:
    """Lets in whom it may: by name of the host, by origin, by token, and not too often."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._config = app, config
        self._allowance, self._since = config.requests_per_second, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status, why = self._refusal(HTTPConnection(scope))
        if status == 0:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse(why + "\n", status, _HEADERS)(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 4000 + status, "reason": why})

    def _refusal(self, connection: HTTPConnection) -> tuple[int, str]:
        if not self._may_ask():
            return 429, "too many requests; wait a second"
        host = urlsplit(f"//{connection.headers.get('host', '')}")
        # A page of another site could have its name point here (DNS rebinding), or open our websocket.
        if self._config.is_local and (host.hostname or "") not in _LOCAL:
            return 403, "this server answers to localhost only"
        origin = connection.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host.netloc:
            return 403, "not for pages of other sites"
        if connection.url.path in ("/viewer.js", "/viewer.css", "/healthz") or self._knows_token(connection):
            return 0, ""
        return 401, "a token is needed: open the address that avis-stream serve printed"

    def _may_ask(self) -> bool:
        now, rate = time.monotonic(), self._config.requests_per_second
        self._allowance = min(rate, self._allowance + (now - self._since) * rate)
        self._since = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _knows_token(self, connection: HTTPConnection) -> bool:
        wanted = self._config.token
        if wanted is None:
            return True
        bearer = connection.headers.get("authorization", "").removeprefix("Bearer ")
        given = (connection.query_params.get("token"), connection.cookies.get(_COOKIE), bearer)
        return any(value and hmac.compare_digest(value.encode(), wanted.encode()) for value in given)


class _Views:
    def __init__(self, hub: Hub, config: ServeConfig) -> None:
        self._hub, self._config = hub, config

    async def page(self, _request: Request) -> Response:
        response = _asset("viewer.html", "text/html")
        if self._config.token is not None:
            response.set_cookie(_COOKIE, self._config.token, httponly=True, samesite="strict")
        return response

    async def script(self, _request: Request) -> Response:
        return _asset("viewer.js", "text/javascript")

    async def style(self, _request: Request) -> Response:
        return _asset("viewer.css", "text/css")

    async def stats(self, _request: Request) -> Response:
        return JSONResponse(self._hub.session.stats().as_json(), headers=_HEADERS)

    async def metrics(self, _request: Request) -> Response:
        return PlainTextResponse(
            self._hub.session.prometheus(), headers=_HEADERS, media_type="text/plain; version=0.0.4"
        )

    async def health(self, _request: Request) -> Response:
        hub = self._hub
        age = None if hub.last_result_at is None else time.monotonic() - hub.last_result_at
        good = not hub.over and age is not None and age < _STALLED_SECONDS
        state = "ok" if good else hub.error or ("over" if hub.over else "no results")
        return JSONResponse({"status": state, "seconds_since_result": age}, 200 if good else 503, _HEADERS)

    async def results(self, _request: Request) -> Response:
        return self._stream(LineSlot(), "application/x-ndjson", b"", b"")

    async def mjpeg(self, _request: Request) -> Response:
        head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
        return self._stream(Slot("mjpeg"), "multipart/x-mixed-replace; boundary=frame", head, b"\r\n")

    def _stream(self, slot: Slot, kind: str, head: bytes, tail: bytes) -> Response:
        if self._hub.viewers >= self._config.max_viewers:
            return PlainTextResponse("too many viewers; close one\n", 503, _HEADERS)

        async def parts() -> AsyncIterator[bytes]:
            self._hub.join(slot)
            try:
                while not self._hub.over:
                    message = await slot.take(0.5)
                    if message is not None:
                        yield head + message + tail
            finally:
                self._hub.leave(slot)

        return StreamingResponse(parts(), media_type=kind, headers=_HEADERS)

    async def socket(self, socket: WebSocket) -> None:
        if self._hub.viewers >= self._config.max_viewers:
            await socket.close(4503, "too many viewers")
            return
        await socket.accept()
        slot = self._hub.join(Slot("ws"))
        try:
            message: bytes | None = json.dumps(self._hub.hello()).encode()
            while True:
                if message is not None:
                    await self._send(socket, message)
                    # One on its way at a time: whoever is slow skips what is old by then, and delays nobody.
                    await asyncio.wait_for(socket.receive_text(), _ACK_SECONDS)
                message = await slot.take(1.0)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            with contextlib.suppress(RuntimeError):
                await socket.close()
        finally:
            self._hub.leave(slot)

    async def _send(self, socket: WebSocket, message: bytes) -> None:
        if message.startswith(b"{"):
            await socket.send_text(message.decode())
        else:
            await socket.send_bytes(message)


def _asset(name: str, kind: str) -> Response:
    return Response((_ASSETS / name).read_bytes(), media_type=kind, headers=_HEADERS)


def run_server(hub: Hub, config: ServeConfig) -> Any:
    """A uvicorn server, ready for `run()`; it ends on Ctrl-C, or when `should_exit` is set."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            make_app(hub, config), host=config.host, port=config.port, log_level="warning", access_log=False,
            ws_max_size=1024, timeout_graceful_shutdown=1, limit_concurrency=4 * config.max_viewers,
        )
    )  # fmt: skip
