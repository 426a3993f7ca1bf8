"""The web server: a page, a stream of results, and figures; for this machine only, unless there is a token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from avis_stream.checks import require
from avis_stream.errors import AvisStreamError, ConfigError
from avis_stream.needs import install_extra
from avis_stream.serve.allowance import Allowances
from avis_stream.serve.hub import Hub, LineSlot, Slot
from avis_stream.serve.message import is_text
from avis_stream.serve.sources import Sources, Watched, together
from avis_stream.sources.address import redacted

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect
except ImportError as error:
    raise ConfigError(f"serve needs starlette, uvicorn and websockets: {install_extra('serve')}") from error

_ASSETS = Path(__file__).parents[1] / "assets" / "viewer"
_COOKIE = "avis_token"
_OPEN = ("/viewer.js", "/viewer.css", "/healthz")
"""For all, as often as they like: nothing in them is secret or dear."""
_GUESSES_PER_SECOND = 10.0
"""Requests without the right token that one address is answered; a made-up token is 18 random bytes."""
_LOCAL = ("127.0.0.1", "localhost", "::1")
_LONGEST_REQUEST = 4096
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
    """Of one client address; what anybody may see, and strangers who are refused, do not count."""

    def __post_init__(self) -> None:
        require(
            self.requests_per_second >= 1, "requests_per_second", self.requests_per_second, ">= 1, or nobody gets in"
        )
        require(1 <= self.port <= 65_535, "port", self.port, "1 to 65535")

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
        return f"http://{host}:{self.port}/" + (f"?token={quote(self.token, safe='')}" if self.token else "")


def make_app(sources: Sources, config: ServeConfig) -> ASGIApp:
    """The application; it starts and stops the sessions itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        sources.start()
        try:
            yield
        finally:
            await sources.stop()

    views, api = _Views(sources, config), _SourcesApi(sources)
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
        Route("/api/sources", api.listed, methods=["GET"]),
        Route("/api/sources", api.add, methods=["POST"]),
        Route("/api/sources/{source}", api.remove, methods=["DELETE"]),
        Route("/api/sources/{source}/restart", api.restart, methods=["POST"]),
    ]
    return _Door(Starlette(routes=routes, lifespan=lifespan), config)


class _Door:
    """Lets in whom it may: by name of the host, by origin, by token, and not too often."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app, self._config = app, config
        self._allowances = Allowances(config.requests_per_second)
        self._guesses = Allowances(_GUESSES_PER_SECOND)

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
        named, origin = connection.headers.get("host", ""), connection.headers.get("origin")
        try:
            host, wanted_by = urlsplit(f"//{named}"), None if origin is None else urlsplit(origin).netloc
        except ValueError:  # such as an IPv6 address that is not closed
            return 400, "Host and Origin must be addresses such as localhost:8080 and http://localhost:8080"
        if host.netloc != named:  # something behind it would be read as a path
            return 400, "Host must be a name and perhaps a port, such as localhost:8080"
        # A page of another site could have its name point here (DNS rebinding), or open our websocket.
        if self._config.is_local and (host.hostname or "") not in _LOCAL:
            return 403, "this server answers to localhost only"
        if wanted_by is not None and wanted_by != host.netloc:
            return 403, "not for pages of other sites"
        # The path that is answered; that of `connection.url` is made of the Host too, which is what a visitor says.
        if connection.scope["path"] in _OPEN:  # a health check that is told to wait would call a well server ill
            return 0, ""
        address, now = connection.client.host if connection.client else "", time.monotonic()
        if not self._knows_token(connection):  # out of a purse of their own: strangers may share an address
            if not self._guesses.spend(address, now):
                return 429, "too many wrong tokens; wait a second"
            return 401, "a token is needed: open the address that avis-stream serve printed"
        if not self._allowances.spend(address, now):
            return 429, "too many requests; wait a second"
        return 0, ""

    def _knows_token(self, connection: HTTPConnection) -> bool:
        wanted = self._config.token
        if wanted is None:
            return True
        bearer = connection.headers.get("authorization", "").removeprefix("Bearer ")
        cookie = unquote(connection.cookies.get(_COOKIE, ""))
        given = [(value or "").encode() for value in (connection.query_params.get("token"), cookie, bearer)]
        given.append(bearer.encode("latin-1"))  # a header's bytes as they came: some programs send UTF-8, some Latin-1
        return any(value and hmac.compare_digest(value, wanted.encode()) for value in given)


def _of_a_source(
    view: Callable[[Any, Request, Watched], Awaitable[Response]],
) -> Callable[[Any, Request], Awaitable[Response]]:
    """A view of one source: that of the path or of `?source=`, else the first."""

    async def answer(self: Any, request: Request) -> Response:
        one = self.sources.find(request.path_params.get("source") or request.query_params.get("source"))
        if one is None:
            return PlainTextResponse("no such source; /api/sources lists what there is\n", 404, _HEADERS)
        return await view(self, request, one)

    return answer


class _Views:
    def __init__(self, sources: Sources, config: ServeConfig) -> None:
        self.sources, self._config = sources, config

    async def page(self, _request: Request) -> Response:
        response = _asset("viewer.html", "text/html")
        if self._config.token is not None:
            token = quote(self._config.token, safe="")  # headers hold no letters outside Latin-1
            response.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        return response

    async def script(self, _request: Request) -> Response:
        return _asset("viewer.js", "text/javascript")

    async def style(self, _request: Request) -> Response:
        return _asset("viewer.css", "text/css")

    @_of_a_source
    async def stats(self, _request: Request, one: Watched) -> Response:
        return JSONResponse(one.hub.session.stats().as_json(), headers=_HEADERS)

    async def metrics(self, _request: Request) -> Response:
        text = together([one.prometheus() for one in self.sources])
        return PlainTextResponse(text, headers=_HEADERS, media_type="text/plain; version=0.0.4")

    async def health(self, _request: Request) -> Response:
        """Well if all sources are; else of the first that is not."""
        hubs = [one.hub for one in self.sources]
        if not hubs:
            return JSONResponse({"status": "no sources", "seconds_since_result": None}, 503, _HEADERS)
        hub = next((hub for hub in hubs if hub.state != "ok"), hubs[0])
        found = {"status": hub.reason or hub.state, "seconds_since_result": hub.seconds_since_result}
        return JSONResponse(found, 200 if hub.state == "ok" else 503, _HEADERS)

    @_of_a_source
    async def results(self, request: Request, one: Watched) -> Response:
        return self._stream(request, one.hub, LineSlot(), "application/x-ndjson", b"", b"")

    @_of_a_source
    async def mjpeg(self, request: Request, one: Watched) -> Response:
        head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
        kind = "multipart/x-mixed-replace; boundary=frame"
        return self._stream(request, one.hub, Slot("mjpeg"), kind, head, b"\r\n")

    def _stream(self, request: Request, hub: Hub, slot: Slot, kind: str, head: bytes, tail: bytes) -> Response:
        if self.sources.viewers >= self._config.max_viewers:
            return PlainTextResponse("too many viewers; close one\n", 503, _HEADERS)
        if request.method == "HEAD":  # left to the server a stream without end would be made and thrown away
            answer = Response(media_type=kind, headers=_HEADERS)
            del answer.headers["content-length"]  # GET tells of none
            return answer

        async def parts() -> AsyncIterator[bytes]:
            hub.join(slot)
            try:
                while True:
                    over = hub.over  # then all that there will be is in the slot, or comes before `take` gives up
                    message = await slot.take(0.5)
                    while message is not None and self.sources.ending:
                        yield head + message + tail
                        message = await slot.take(0)
                    if self.sources.ending:
                        return
                    if message is not None:
                        yield head + message + tail
                    elif over:
                        return
            finally:
                hub.leave(slot)

        return StreamingResponse(parts(), media_type=kind, headers=_HEADERS)

    async def socket(self, socket: WebSocket) -> None:
        one = self.sources.find(socket.query_params.get("source"))
        if one is None or self.sources.viewers >= self._config.max_viewers:
            await socket.close(*((4404, "no such source") if one is None else (4503, "too many viewers")))
            return
        await socket.accept()
        hub = one.hub
        slot = hub.join(Slot("ws"))
        heard = asyncio.ensure_future(socket.receive_text())  # a receipt, or that the viewer has gone
        try:
            message: bytes | None = json.dumps(hub.hello()).encode()
            while one.hub is hub and self.sources.find(one.id) is one:  # else: begun anew, or removed
                if message is not None:
                    await self._send(socket, message)
                    # One on its way at a time: whoever is slow skips what is old by then, and delays nobody.
                    await asyncio.wait_for(heard, _ACK_SECONDS)
                    heard = asyncio.ensure_future(socket.receive_text())
                message = await _unless_gone(slot, heard)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            pass
        finally:
            hub.leave(slot)
            heard.cancel()
            await asyncio.gather(heard, return_exceptions=True)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may be gone
                await socket.close()

    async def _send(self, socket: WebSocket, message: bytes) -> None:
        if is_text(message):
            await socket.send_text(message.decode())
        else:
            await socket.send_bytes(message)


async def _unless_gone(slot: Slot, heard: asyncio.Future[str]) -> bytes | None:
    """The next message for a viewer within a second.

    Raises what `heard` does if the viewer goes before it comes, RuntimeError if he says what he was not asked for.
    """
    taken = asyncio.ensure_future(slot.take(1.0))
    either: set[asyncio.Future[Any]] = {taken, heard}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if heard.done():
            heard.result()
            raise RuntimeError("a receipt for nothing: it would hide that the viewer goes")
        return await taken
    finally:
        taken.cancel()


class _SourcesApi:
    """What is watched, for programs: a list, and changes of it."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    async def listed(self, _request: Request) -> Response:
        return JSONResponse({"sources": [one.record() for one in self.sources]}, headers=_HEADERS)

    async def add(self, request: Request) -> Response:
        """Takes {"video": ADDRESS, "audio": ADDRESS or null}, as on the command line; audio may be left out."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_REQUEST:
                return _refused("a request must be shorter", 413)
        try:
            return JSONResponse((await self.sources.add(*_asked_for(body))).record(), 201, _HEADERS)
        except AvisStreamError as error:
            return _refused(str(error), 400)

    @_of_a_source
    async def remove(self, _request: Request, one: Watched) -> Response:
        await self.sources.remove(one)
        return Response(status_code=204, headers=_HEADERS)

    @_of_a_source
    async def restart(self, _request: Request, one: Watched) -> Response:
        try:
            await self.sources.restart(one)
        except AvisStreamError as error:
            return _refused(str(error), 409)
        return JSONResponse(one.record(), headers=_HEADERS)


def _asked_for(body: bytes) -> tuple[str, str | None]:
    """Addresses of the pictures and of the sound that a request names; raises ConfigError if it names none."""
    try:
        wanted = json.loads(body)
        video, audio = wanted["video"], wanted.get("audio", "source")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:  # the last: "[[[[..."
        raise ConfigError(
            'a request must be JSON such as {"video": "rtsp://10.0.0.7/cam", "audio": "source"}'
        ) from error
    if not isinstance(video, str) or not isinstance(audio, (str, type(None))):
        raise ConfigError("video must be a text, audio a text or null")
    try:
        f"{video}{audio}".encode()
    except UnicodeEncodeError as error:  # nobody could be told of it: lists and pages are UTF-8
        raise ConfigError(f"video and audio must be whole characters, got {error.object[error.start]!a}") from error
    return video, audio


def _refused(why: str, status: int) -> Response:
    return PlainTextResponse(redacted(why) + "\n", status, _HEADERS)


def _asset(name: str, kind: str) -> Response:
    return Response((_ASSETS / name).read_bytes(), media_type=kind, headers=_HEADERS)


def run_server(sources: Sources, config: ServeConfig) -> Any:
    """A uvicorn server, ready for `run()`; it ends on Ctrl-C, or when `should_exit` is set."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            # Left to itself it waits for viewers first, cancels those that stay and reports that as an error.
            await asyncio.gather(sources.stop(), super().shutdown(sockets))

    return Server(
        uvicorn.Config(
            make_app(sources, config), host=config.host, port=config.port, log_level="warning", access_log=False,
            ws_max_size=1024, timeout_graceful_shutdown=1, limit_concurrency=4 * config.max_viewers,
            proxy_headers=False,  # else who is on this machine says which address he has, and may guess for ever
        )
    )  # fmt: skip
