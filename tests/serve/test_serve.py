"""The page and its addresses: by HTTP, by websocket, and in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from live_tools import Crowded, StubSegmenter, free_port, wait_for
from PIL import Image
from small_model import SMALL

pytest.importorskip("starlette", reason="starlette is not there (make test installs it)")


from serving import CLASSES, SCENE, Running, next_picture, read_on
from starlette.datastructures import URL
from starlette.requests import Request
from websockets.exceptions import ConnectionClosed

from avis_stream.errors import ConfigError
from avis_stream.serve.allowance import Allowances
from avis_stream.serve.app import ServeConfig, _Door, _Views, run_server
from avis_stream.serve.hub import Hub, LineSlot, Slot
from avis_stream.serve.sources import Sources
from avis_stream.stream.session import Session
from avis_stream.types import Event
from avis_stream.writers.colors import identity_color


def test_a_viewer_gets_what_the_model_got() -> None:
    with Running() as running, running.socket() as socket:
        hello = json.loads(socket.recv(30))
        socket.send("ok")
        assert hello["sources"] == ["synthetic://flashbeep"]
        record, picture, ids = next_picture(socket)
        assert picture.shape == (180, 320, 3)
        assert ids.shape == (180, 320)
        assert ids[60, 60] == 1
        assert [t["label"] for t in record["tracks"]] == ["dog", "acoustic_guitar"]
        assert record["tracks"][0]["color"] == list(identity_color(1))
        assert "segmentation" not in record["tracks"][0]
        assert 0 <= record["level"] <= 1
        numbers = [next_picture(socket)[0]["frame_id"] for _ in range(5)]
    assert numbers == sorted(set(numbers))


def test_viewers_are_told_of_a_full_table() -> None:
    with Running(segmenter=Crowded()) as running:
        wait_for(lambda: running.hub.hello()["events"], 30, "news")
        (event,) = running.hub.hello()["events"]
    assert (event["kind"], event["source"], event["detail"]) == ("full", "synthetic://flashbeep", "2 without a place")


def test_a_slow_viewer_slows_nobody() -> None:
    with Running() as running, running.socket() as slow, running.socket() as quick:
        assert slow.recv(30)
        slow.send("ok")
        while isinstance(slow.recv(30), str):
            slow.send("ok")  # the next picture is never acknowledged
        quick.recv(30)
        quick.send("ok")
        numbers = [next_picture(quick)[0]["frame_id"] for _ in range(20)]
        assert numbers[-1] - numbers[0] >= 19
        slow.send("ok")
        record, _, _ = next_picture(slow)
        assert record["frame_id"] >= numbers[-1] - 2, "what was old is skipped"
        assert running.hub.session.stats().unread == 0


def test_a_viewer_of_what_has_ended_may_go() -> None:
    with Running(SCENE + "&seconds=1") as running:
        with running.socket() as socket:
            while not (isinstance(message := socket.recv(30), str) and json.loads(message).get("over")):
                socket.send("ok")
            socket.send("ok")
            assert running.sources.viewers == 1
        wait_for(lambda: running.sources.viewers == 0, 30, "the viewer to be missed")


def test_a_viewer_that_says_too_much_is_sent_away() -> None:
    """Its next word would hide that it goes."""

    def chatter(socket: Any) -> None:
        while True:
            socket.recv(30)
            socket.send("ok")
            socket.send("ok")

    with Running(SCENE + "&seconds=1") as running, running.socket() as socket:
        with pytest.raises(ConnectionClosed):
            chatter(socket)
        wait_for(lambda: running.sources.viewers == 0, 30, "the viewer's end")


def test_viewers_do_not_hold_up_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    with contextlib.ExitStack() as viewers:
        with Running(SCENE + "&seconds=1") as ended, Running() as live:
            wait_for(lambda: ended.hub.over, 30, "the end of a source")
            for running in (ended, live):
                viewers.enter_context(running.socket())
            for path in ("/results", "/mjpeg"):
                connection = viewers.enter_context(
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", live.config.port, timeout=20))
                )
                connection.request("GET", path)
                assert connection.getresponse().read(1)
            wait_for(lambda: (ended.sources.viewers, live.sources.viewers) == (1, 3), 30, "all viewers")
        assert "ERROR" not in capfd.readouterr().err


def test_results_for_programs() -> None:
    with Running() as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.config.port, timeout=20)
        connection.request("GET", "/results")
        answer = connection.getresponse()
        assert answer.getheader("content-type") == "application/x-ndjson"
        lines = [json.loads(answer.readline()) for _ in range(5)]
        connection.close()
    assert [line["frame_id"] for line in lines] == list(range(lines[0]["frame_id"], lines[0]["frame_id"] + 5))
    assert lines[0]["tracks"][0]["segmentation"]["size"] == [180, 320]


@pytest.mark.parametrize("path", ["/results", "/mjpeg"])
def test_the_head_of_a_stream_ends(path: str) -> None:
    """It says what GET would, takes no viewer's place, and leaves the connection to the next request."""
    with Running(max_viewers=1) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.config.port, timeout=20)
        with contextlib.closing(connection):
            for _ in range(2):
                connection.request("HEAD", path)
                answer = connection.getresponse()
                assert (answer.status, answer.read(), running.sources.viewers) == (200, b"", 0)
            connection.request("GET", path)
            full = connection.getresponse()
            told = {"content-type", "content-length", "cache-control", "content-security-policy"}
            assert {name: full.getheader(name) for name in told} == {name: answer.getheader(name) for name in told}


@pytest.mark.parametrize("ending", [False, True])
def test_lines_that_wait_when_a_source_or_the_server_ends_are_handed_out(ending: bool) -> None:
    class Ended:
        over = True

        def join(self, slot: LineSlot) -> None:
            for n in range(3):
                slot.put(b"{%d}" % n)

        def leave(self, slot: LineSlot) -> None: ...

    async def lines() -> list[bytes]:
        sources = Sources(lambda *_: None, CLASSES)  # type: ignore[arg-type, return-value]
        sources.ending = ending
        views = _Views(sources, ServeConfig())
        request, kind = Request({"type": "http", "method": "GET"}), "application/x-ndjson"
        response: Any = views._stream(request, Ended(), LineSlot(), kind, b"", b"\n")  # type: ignore[arg-type]
        return [line async for line in response.body_iterator]

    assert asyncio.run(lines()) == [b"{0}\n", b"{1}\n", b"{2}\n"]


def test_a_slot_hands_out_all_before_it_says_that_there_is_nothing() -> None:
    async def taken() -> list[bytes | None]:
        slot = LineSlot()
        for n in range(3):
            slot.put(b"{%d}" % n)
        found = [await slot.take(5) for _ in range(3)]
        asyncio.get_running_loop().call_soon(slot.put, b"{3}")  # as a hub does from its thread, just before its end
        return [*found, await slot.take(5), await slot.take(0.01)]

    assert asyncio.run(taken()) == [b"{0}", b"{1}", b"{2}", b"{3}", None]


def test_nothing_overtakes_in_a_slot() -> None:
    async def taken() -> list[bytes | None]:
        slot = Slot("ws", most=2)
        for message in (b"1st", b"{a}", b"2nd", b"{b}", b"{c}", b"3rd", b"{over}"):
            slot.put(message)
        return [await slot.take(0) for _ in range(4)]

    assert asyncio.run(taken()) == [b"{c}", b"3rd", b"{over}", None]


def test_a_slow_viewer_gets_the_last_picture_before_the_end() -> None:
    with Running(SCENE + "&seconds=1") as running, running.socket() as socket:
        assert json.loads(socket.recv(30))["over"] is False
        wait_for(lambda: running.hub.over, 30, "the end")
        messages = []
        while not messages or isinstance(messages[-1], bytes) or not json.loads(messages[-1]).get("over"):
            socket.send("ok")
            messages.append(socket.recv(30))
        (last,) = running.hub.hello()["history"][-1:]
        pictures = [message for message in messages if isinstance(message, bytes)]
        (length,) = struct.unpack(">I", pictures[-1][:4])
        assert json.loads(pictures[-1][12 : 12 + length])["pts"] == pytest.approx(last[0], abs=0.001)


def test_why_a_session_ended_is_known_even_if_no_one_was_waiting() -> None:
    """It fails while the hub is busy with the result before."""
    segmenter = StubSegmenter()
    segmenter.fail_after = 1
    session = Session(segmenter, "synthetic://flashbeep?size=32x24&fps=1&seconds=3", realtime=False)
    hub = Hub(session, CLASSES)
    take, told = hub._take, threading.Event()

    def slowly(result: Any) -> None:
        wait_for(lambda: session._state == "over", 20, "the failure")
        take(result)
        told.set()

    hub._take = slowly  # type: ignore[method-assign]
    loop = asyncio.new_event_loop()
    hub.start(loop)
    try:
        wait_for(lambda: hub.over, 20, "the end")
    finally:
        hub.stop()
        loop.close()
    assert told.is_set()
    assert hub.error == "the model failed"


def test_pictures_for_viewers_that_cannot_blend() -> None:
    with Running() as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.config.port, timeout=20)
        connection.request("GET", "/mjpeg")
        answer = connection.getresponse()
        start = answer.read(4000)
        connection.close()
    assert start.startswith(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8")


def test_figures_and_health() -> None:
    with Running() as running:
        wait_for(lambda: running.get("/healthz")[0] == 200, 30, "health")
        status, headers, text = running.get("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'avis_stream_results_total{source="synthetic://flashbeep",kind="step"}' in text
        assert json.loads(running.get("/stats")[2])["frames_in"] > 0
        assert running.get("/nothing")[0] == 404


def test_a_source_that_is_away_is_unhealthy() -> None:
    with Running(f"rtsp://u:s3cr3t@127.0.0.1:{free_port()}/cam") as running, running.socket() as socket:
        said = ""
        while "unreachable" not in said:
            said += str(socket.recv(60))
            socket.send("ok")
        status, _, health = running.get("/healthz")
        assert (status, "unreachable" in json.loads(health)["status"]) == (503, True)
        (listed,) = json.loads(running.get("/api/sources")[2])["sources"]
        assert (listed["state"], "unreachable" in listed["error"]) == ("no results", True)
        assert "s3cr3t" not in said + str(health) + str(listed)
        assert b"s3cr3t" not in running.get("/metrics")[2]


def asked(app: Any, path: str, *, client: str = "10.0.0.2", query: str = "", **headers: str) -> int:
    """The status that an ASGI application answers a request with; 200 if it says nothing."""
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    named = {"host": "10.0.0.1:8080"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "path": path, "query_string": query.encode(), "client": (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()], "method": "GET",
        "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, None, send))
    return statuses[0] if statuses else 200


async def silent(_scope: Any, _receive: Any, _send: Any) -> None: ...


def test_the_path_that_is_answered_is_the_one_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette before 1.0.1 makes its URL of any Host, so that this one hides the path."""
    monkeypatch.setattr("starlette.requests.HTTPConnection.url", URL("http://10.0.0.1/viewer.js?/stats"))
    door = _Door(silent, ServeConfig(host="0.0.0.0", token="sesame"))
    assert asked(door, "/stats") == 401
    assert asked(door, "/viewer.js") == 200
    assert asked(door, "/stats", host="10.0.0.1/viewer.js?") == 400


@pytest.mark.parametrize("wrong", [{"host": "["}, {"origin": "http://["}, {"host": "localhost/viewer.js?"}], ids=str)
def test_a_host_or_an_origin_that_is_none_is_refused(wrong: dict[str, str]) -> None:
    assert asked(_Door(silent, ServeConfig()), "/stats", **{"host": "localhost:8080", **wrong}) == 400


def test_pages_of_others_are_kept_out() -> None:
    with Running() as running:
        assert running.get("/", Host="evil.example")[0] == 403
        assert running.get("/results", Origin="http://evil.example")[0] == 403
        assert running.get("/", Host=f"localhost:{running.config.port}")[0] == 200
        with pytest.raises(Exception, match=r"403|4403|reject"), running.socket(origin="http://evil.example"):
            pass
        policy = running.get("/")[1]["content-security-policy"]
        assert "default-src 'self'" in policy


@pytest.mark.parametrize("port", [0, 65_536])
def test_ports_that_there_are_not(port: int) -> None:
    with pytest.raises(ConfigError, match="port must be 1 to 65535"):
        ServeConfig(port=port)


@pytest.mark.parametrize("token", ["a&b+c d#e", "50%20", "Käse"])
def test_the_address_that_is_told_holds_the_token_as_it_is(token: str) -> None:
    url = URL(ServeConfig(token=token).url)
    door = _Door(silent, ServeConfig(host="0.0.0.0", token=token))
    assert asked(door, url.path, query=url.query) == 200


@pytest.mark.parametrize("token", ["ключ", "Käse", "50%20 a;b,c", "sesame"])
def test_a_token_of_any_letters_opens_the_page(token: str) -> None:
    """By the address that is told, by the cookie that comes with the page, and as a header of either encoding."""
    with Running(token=token) as running:
        url = URL(running.config.url)
        status, headers, _ = running.get(f"{url.path}?{url.query}")
        assert status == 200
        assert running.get("/stats", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200
        assert running.get("/stats", Authorization=f"Bearer {token}".encode())[0] == 200
        if token != "ключ":
            assert running.get("/stats", Authorization=f"Bearer {token}".encode("latin-1"))[0] == 200
        assert running.get("/stats", Authorization="Bearer wrong")[0] == 401


def test_elsewhere_a_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avis_stream.serve.app._GUESSES_PER_SECOND", 100.0)  # more than are made here
    made_up = ServeConfig(host="0.0.0.0").with_token()
    assert made_up.token is not None
    assert len(made_up.token) >= 20
    assert made_up.token in made_up.url
    assert ServeConfig().with_token().token is None
    with Running(token="open sesame") as running:
        for path in ("/", "/metrics", "/results", "/stats", "/mjpeg", "/api/sources"):
            assert running.get(path)[0] == 401
            assert running.get(path + "?token=wrong")[0] == 401
        assert running.get("/metrics", Authorization="Bearer open sesame")[0] == 200
        status, headers, _ = running.get("/?token=open%20sesame")
        assert status == 200
        assert "HttpOnly" in headers["set-cookie"]
        assert running.get("/metrics", Cookie='avis_token="open sesame"')[0] == 200
        with pytest.raises(Exception, match=r"401|4401|reject"), running.socket():
            pass


def test_crowds_and_floods_are_bounded() -> None:
    with Running(max_viewers=2) as running, running.socket() as one, running.socket() as two:
        assert one.recv(30)
        assert two.recv(30)
        assert running.get("/results")[0] == 503
        with pytest.raises(Exception, match=r"4503|too many|reject"):  # noqa: SIM117
            with running.socket() as three:
                three.recv(30)
    with Running(requests_per_second=5) as running:
        statuses = [running.get("/stats")[0] for _ in range(40)]
        assert 429 in statuses
        assert statuses[0] == 200
    with Running() as running, running.socket() as socket:
        assert socket.recv(30)
        socket.send("x" * 100_000)  # nobody needs to say so much
        with pytest.raises(ConnectionClosed):
            read_on(socket)


def test_one_client_does_not_spend_what_another_may_ask() -> None:
    """And strangers spend nothing, not even from an address that they share with those who know the token."""
    answered: list[str] = []

    async def inside(scope: Any, _receive: Any, _send: Any) -> None:
        answered.append(scope["path"])

    door = _Door(inside, ServeConfig(host="0.0.0.0", token="sesame", requests_per_second=3))

    def ask(client: str, path: str = "/stats", token: str = "sesame") -> int:
        return asked(door, path, client=client, query=f"token={token}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avis_stream.serve.app.time.monotonic", lambda: 100.0)
        assert [ask("10.0.0.2", token="wrong") for _ in range(12)] == [401] * 10 + [429] * 2
        assert [ask("10.0.0.2") for _ in range(5)] == [200, 200, 200, 429, 429]
        assert ask("10.0.0.2", "/healthz", token="") == 200
        assert ask("10.0.0.3") == 200
        patch.setattr("avis_stream.serve.app.time.monotonic", lambda: 100.5)
        assert [ask("10.0.0.2") for _ in range(2)] == [200, 429]
    assert answered.count("/stats") == 5


def test_nobody_says_which_address_he_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy on this machine all are one, and so is whoever only says that he is a proxy."""
    sources = Sources(lambda *_: None, CLASSES)  # type: ignore[arg-type, return-value]
    settings = run_server(sources, ServeConfig(token="sesame")).config
    settings.load()
    app = settings.loaded_app
    monkeypatch.setattr("avis_stream.serve.app.time.monotonic", lambda: 100.0)
    said = [f"9.9.9.{n}" for n in range(12)]
    statuses = [asked(app, "/stats", client="127.0.0.1", host="localhost", x_forwarded_for=one) for one in said]
    assert statuses == [401] * 10 + [429] * 2


def test_allowances_remember_so_many_clients_and_no_more() -> None:
    allowances = Allowances(1.0, most=2)
    assert [allowances.spend(client, 0.0) for client in "abab"] == [True, True, False, False]
    assert allowances.spend("c", 0.0), "a is forgotten for it"
    assert len(allowances) == 2
    assert not allowances.spend("b", 0.0)


def test_without_viewers_nothing_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("avis_stream.serve.hub.picture_of", lambda result: made.append(result) or b"")
    with Running() as running:
        wait_for(lambda: running.hub.session.stats().stages["deliver"].count > 5, 30, "results")
    assert not made


def test_a_page_in_a_browser(tmp_path: Path) -> None:
    """The picture has masks; a click takes one away; the list and the timeline say who sounds."""
    with Running() as running:
        browser = Browser(tmp_path)
        try:
            browser.open(running.config.url)
            browser.until("document.querySelectorAll('#tracks li').length === 2", "two identities")
            browser.until("document.querySelector('#state').textContent === 'live'", "live pictures")
            names = browser.run("[...document.querySelectorAll('#tracks .name')].map(e => e.textContent)")
            assert names == ["#1 dog", "#2 acoustic guitar"]
            assert browser.run("document.querySelector('[data-id=\"1\"] .status').textContent") == "sounding"
            assert browser.run("document.querySelector('[data-id=\"1\"] .score').textContent") == "0.92"
            # By turns, as the stub has it.
            browser.until("document.querySelector('[data-id=\"2\"]').className === 'sounding'", "the guitar")
            browser.until("document.querySelector('[data-id=\"2\"] .status').textContent === 'silent'", "its silence")
            tinted = "(() => { const d = document.querySelector('#picture').getContext('2d')" \
                ".getImageData(80, 70, 1, 1).data; return [d[0], d[1], d[2]]; })()"  # fmt: skip
            color = np.array(identity_color(1))
            browser.until(f"(() => {{ const [r, g, b] = {tinted}; return r - b > 40; }})()", "an orange tint")
            assert color[0] - color[2] > 40
            browser.click('[data-id="1"] input')
            assert browser.run("document.querySelector('[data-id=\"1\"] input').checked") is False
            browser.until(f"(() => {{ const [r, g, b] = {tinted}; return Math.abs(r - b) < 12; }})()", "no tint")
            browser.click('[data-id="1"] input')
            browser.until(f"(() => {{ const [r, g, b] = {tinted}; return r - b > 40; }})()", "the tint again")
            strip = "(() => { const c = document.querySelector('#timeline'), d = c.getContext('2d')" \
                ".getImageData(0, 0, c.width, 20).data; let n = 0; for (let i = 0; i < d.length; i += 4)" \
                " n += d[i] > 200 && d[i + 2] < 80; return n; })()"  # fmt: skip
            assert browser.until(strip, "orange in the timeline") > 0
            figures = browser.run("document.querySelector('#figures').textContent")
            assert "latency" in figures
            assert browser.run("document.querySelector('#events').textContent") == "no news"
            label = "(() => { const c = document.querySelector('#labels'), d = c.getContext('2d')" \
                ".getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4)" \
                " n += d[i] > 0; return n; })()"  # fmt: skip
            assert browser.until(label, "a label") > 500
            shot = Path(os.environ.get("AVIS_STREAM_SCREENSHOT", tmp_path / "page.png"))
            time.sleep(float(os.environ.get("AVIS_STREAM_SCREENSHOT_AFTER", "0")))
            browser.screenshot(shot)
            assert Image.open(shot).size[0] == 1280
        finally:
            browser.close()


NO_PICTURE = """{pts: 132, tracks: [], level: 0, latency_ms: null, audio_valid: 1, stats:
    {fps_in: 0, masks_hz: 0, steps_hz: 0, latency_p95_ms: 0, dropped: 0, reconnects: 0}}"""
STATE = "document.querySelector('#state')?.textContent"


def test_the_page_of_what_has_ended(tmp_path: Path) -> None:
    """It says so, whatever the news before were and pictures come late, and tells them once, however often it asks."""
    with Running(SCENE + "&seconds=1") as running:
        wait_for(lambda: running.hub.over, 30, "the end")
        hub = running.hub
        hub._tell([Event(kind=kind, source_id="camera:0") for kind in ("lost", "reconnected")])
        # As if it had run for two minutes before; the last that they were seen is a while ago then.
        hub._history = deque((pts + 130, sounding) for pts, sounding in hub._history)
        browser = Browser(tmp_path)
        try:
            browser.open(running.config.url)
            browser.until(f"{STATE} === 'ended'", "that it has ended")
            news = "[...document.querySelectorAll('#events li')].map(e => e.textContent.split(' ').pop()).join()"
            assert browser.run(news).endswith("reconnected,lost")
            once = browser.run(news)

            browser.run(f"update({NO_PICTURE})")
            for number, label in enumerate(CLASSES, 1):
                shown = browser.run(f"document.querySelector('[data-id=\"{number}\"] .name').textContent")
                assert shown == f"#{number} {label.replace('_', ' ')}"
                assert browser.run(f"known.get({number}).color") == list(identity_color(number))

            browser.run("document.querySelector('#source').textContent = ''; socket.close()")
            browser.until("document.querySelector('#source').textContent !== ''", "another hello")
            assert browser.run(news) == once
            browser.until(f"{STATE} === 'ended'", "that it is over still")
            late = "new OffscreenCanvas(8, 8).getContext('2d').canvas.convertToBlob().then(b => b.arrayBuffer())"
            assert (
                browser.run(
                    f"(async () => {{ const png = await {late}, text = new TextEncoder().encode(JSON.stringify("
                    f"Object.assign({NO_PICTURE}, {{width: 8, height: 8}}))), data = new Uint8Array(12 + text.length + "
                    "2 * png.byteLength); [text.length, png.byteLength, png.byteLength].forEach((n, i) => "
                    "new DataView(data.buffer).setUint32(4 * i, n)); data.set(text, 12); [0, 1].forEach(i => data.set("
                    "new Uint8Array(png), 12 + text.length + i * png.byteLength)); await shown(data.buffer); "
                    f"return last.record.pts + ' ' + {STATE}; }})()"
                )
                == "132 ended"
            )
        finally:
            browser.close()


def test_the_page_says_that_a_source_is_away(tmp_path: Path) -> None:
    """To whoever comes later, too."""
    with Running(f"rtsp://127.0.0.1:{free_port()}/cam") as running:
        wait_for(lambda: running.hub.hello()["away"], 60, "that it is away")
        browser = Browser(tmp_path)
        try:
            browser.open(running.config.url)
            browser.until(f"{STATE} === 'source is away'", "that the source is away")
        finally:
            browser.close()


def test_serve_as_a_program(tmp_path: Path) -> None:
    port = free_port()
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = [sys.executable, "-m", "avis_stream", "serve", "--video", SCENE, "--weights", "random", *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = subprocess.run(
            [*command, "--port", str(taken.getsockname()[1])], capture_output=True, text=True, env=environment,
            timeout=120, check=False,
        )  # fmt: skip
    assert refused.returncode == 1
    assert "must be free" in refused.stderr
    assert "watch at" not in refused.stderr
    assert "Traceback" not in refused.stderr
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, text=True, env=environment)

    def healthy() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    wait_for(healthy, 90, "a healthy server")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}/" in said
    assert "Traceback" not in said
