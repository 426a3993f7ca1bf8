"""Sources of a running server: they come, go and begin anew; what visitors may not add; the page's choice of them."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from live_tools import wait_for

pytest.importorskip("starlette", reason="starlette is not there (make test installs it)")

from serving import CLASSES, SCENE, Running, next_picture, other, read_on
from websockets.exceptions import ConnectionClosed

from avis_stream.errors import ConfigError
from avis_stream.serve.sources import Sources, together
from avis_stream.stream.session import Session


def test_sources_come_and_go() -> None:
    with Running() as running:
        first = {"id": "1", "video": SCENE, "audio": "source", "state": "ok", "error": None}
        wait_for(lambda: json.loads(running.get("/api/sources")[2]) == {"sources": [first]}, 30, "the first source")
        status, _, text = running.ask("POST", "/api/sources", {"video": other(2), "audio": None})
        added = json.loads(text)
        assert added.pop("state") in ("no results", "ok")  # by how fast the machine is
        assert (status, added) == (201, {"id": "2", "video": other(2), "audio": None, "error": None})
        with running.socket("/ws?source=2") as socket:
            hello = json.loads(socket.recv(30))
            socket.send("ok")
            assert hello["sources"] == [other(2).partition("?")[0]]
            assert next_picture(socket)[0]["tracks"]
            wait_for(lambda: running.get("/healthz")[0] == 200, 30, "results of both")
            assert json.loads(running.get("/stats?source=2")[2])["frames_in"] > 0
            status, _, _ = running.ask("DELETE", "/api/sources/2")
            assert status == 204
            with pytest.raises(ConnectionClosed):
                read_on(socket, answer=True)
        assert [one["id"] for one in json.loads(running.get("/api/sources")[2])["sources"]] == ["1"]
        for path in ("/stats?source=2", "/results?source=2", "/mjpeg?source=2"):
            assert running.get(path)[0] == 404
        for method, path in (("DELETE", "/api/sources/2"), ("POST", "/api/sources/2/restart")):
            assert running.ask(method, path)[0] == 404
        with pytest.raises(Exception, match=r"403|4404|reject"), running.socket("/ws?source=2"):
            pass


def test_a_source_begins_anew() -> None:
    with Running() as running, running.socket() as socket:
        assert socket.recv(30)
        before = running.hub
        status, _, text = running.ask("POST", "/api/sources/1/restart")
        assert (status, json.loads(text)["id"]) == (200, "1")
        assert running.hub is not before
        assert before.over
        with pytest.raises(ConnectionClosed):  # the page connects again, and to the new one
            read_on(socket, answer=True)
        with running.socket() as again:
            assert json.loads(again.recv(30))["over"] is False
            again.send("ok")
            assert next_picture(again)[0]["frame_id"] < 1000


def test_what_was_removed_does_not_begin_anew() -> None:
    made: list[object] = []

    class Silent:
        def stop(self) -> None: ...

    def watch(video: str, audio: str | None) -> Session:
        made.append(video)
        return Silent()  # type: ignore[return-value]

    async def both_at_once() -> None:
        sources = Sources(watch, CLASSES)
        one = sources.open("synthetic://flashbeep", None)
        with pytest.raises(ConfigError, match="removed meanwhile"):
            await asyncio.gather(sources.remove(one), sources.restart(one))

    asyncio.run(both_at_once())
    assert len(made) == 1


class Noted:
    """A session that says whether it runs."""

    over = False

    def __init__(self, running: set[object]) -> None:
        self.running, self.stopped = running, threading.Event()

    def start(self) -> None:
        self.running.add(self)

    def stop(self) -> None:
        self.running.discard(self)
        self.stopped.set()

    def next(self, _timeout: float) -> None:
        self.stopped.wait(10)

    def take_events(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize("change", ["add", "restart"])
def test_what_is_being_opened_when_all_end_is_given_up(change: str) -> None:
    """An address may take for ever to answer, or answer after the end."""
    running: set[object] = set()
    opening, may_open, opened = threading.Event(), threading.Event(), threading.Event()

    def watch(video: str, audio: str | None) -> Session:
        if running or change == "add":
            opening.set()
            assert may_open.wait(60)
            opened.set()
        return Noted(running)  # type: ignore[return-value]

    async def change_and_end() -> list[object]:
        sources = Sources(watch, CLASSES)
        if change == "restart":
            one = sources.open("synthetic://flashbeep", None)
            running.add(one)
            changing: asyncio.Task[Any] = asyncio.create_task(sources.restart(one))
        else:
            changing = asyncio.create_task(sources.add("synthetic://flashbeep", None))
        assert await asyncio.to_thread(opening.wait, 20)
        running.clear()
        await asyncio.wait_for(sources.stop(), 20)
        late = asyncio.create_task(sources.add("synthetic://flashbeep?seed=2", None))
        refused = await asyncio.gather(changing, late, return_exceptions=True)
        may_open.set()
        assert await asyncio.to_thread(opened.wait, 20)
        return refused

    refused = asyncio.run(change_and_end())
    for thread in threading.enumerate():
        if thread.name == "avis opening":
            thread.join(20)
    assert [str(error) for error in refused if isinstance(error, ConfigError)] == [
        "the server must go on for a source to begin, it is about to end"
    ] * 2
    assert not running


def test_a_server_ends_while_a_source_is_being_opened() -> None:
    """Its loop's end waits for no address either."""
    opening, may_open = threading.Event(), threading.Event()

    def watch(video: str, audio: str | None) -> Session:
        opening.set()
        assert may_open.wait(60)
        return Noted(set())  # type: ignore[return-value]

    async def add_and_end() -> None:
        sources = Sources(watch, CLASSES)
        adding = asyncio.create_task(sources.add("synthetic://flashbeep", None))
        assert await asyncio.to_thread(opening.wait, 20)
        adding.cancel()  # as uvicorn does with requests that take too long
        await sources.stop()

    server = threading.Thread(target=lambda: asyncio.run(add_and_end()), daemon=True)
    server.start()
    server.join(30)
    ended = not server.is_alive()
    may_open.set()
    server.join(20)
    assert ended


def test_what_has_just_begun_when_all_end_is_ended_too() -> None:
    running: set[object] = set()

    async def add_and_end() -> int:
        sources = Sources(lambda *_: Noted(running), CLASSES)  # type: ignore[arg-type,return-value]
        await sources.add("synthetic://flashbeep", None)
        begun = len(running)
        await sources.stop()
        return begun

    assert asyncio.run(add_and_end()) == 1
    assert not running


def test_what_visitors_may_not_add() -> None:
    with Running() as running:

        def refusal(wanted: Any) -> tuple[int, str]:
            status, _, text = running.ask("POST", "/api/sources", wanted)
            return status, text.decode()

        for wanted, words in (
            ({"video": "film.mp4"}, "files and pipelines are for the command line"),
            ({"video": "file:///etc/hostname"}, "files and pipelines"),
            ({"video": "gst: videotestsrc ! appsink name=video"}, "files and pipelines"),
            ({"video": other(2), "audio": "/etc/hostname"}, "audio must be"),
            ({"video": "gopher://u:s3cr3t@h/x"}, "begins with"),
            ({"video": 3}, "a text"),
            ({"video": other(2), "audio": 3}, "a text"),
            ({}, "such as"),
            ([], "such as"),
            (b"{", "such as"),
            (b"[" * 4000, "such as"),
            ({"video": "rtsp://\ud800/cam"}, "whole characters"),
            ({"video": other(2), "audio": "mic:\udfff"}, "whole characters"),
            ({"video": SCENE}, "watched already"),
        ):
            status, text = refusal(wanted)
            assert status == 400
            assert words in text
            assert "s3cr3t" not in text
        assert refusal({"video": "x" * 5000})[0] == 413
        assert running.ask("POST", "/api/sources", {"video": other(2)}, Origin="http://evil.example")[0] == 403
        assert running.ask("DELETE", "/api/sources/1", Origin="null")[0] == 403
        assert [one.id for one in running.sources] == ["1"]


def test_figures_of_several_sources_are_one_text() -> None:
    def text(source: str) -> str:
        return f'# HELP a About a.\n# TYPE a gauge\na{{source="{source}"}} 1\n# HELP b About b.\n# TYPE b gauge\n'

    assert together([text("x"), text("y")]) == (
        '# HELP a About a.\n# TYPE a gauge\na{source="x"} 1\na{source="y"} 1\n# HELP b About b.\n# TYPE b gauge\n'
    )
    assert together([text("x")]) == text("x")
    assert together([]) == ""


def test_the_page_forgets_who_was_there_before_a_restart(tmp_path: Path) -> None:
    """Numbers are given anew, to others."""
    with Running() as running:
        browser = Browser(tmp_path)
        try:
            browser.open(running.config.url)
            browser.until("document.querySelectorAll('#tracks li').length === 2", "two identities")
            browser.click('[data-id="1"] input')
            assert browser.run("hidden.size") == 1
            browser.run("document.querySelector('#source').textContent = ''; socket.close()")
            browser.until("document.querySelector('#source').textContent !== ''", "another hello of the same session")
            assert browser.run("hidden.size") == 1
            browser.run("identity(7, 'dog', [1, 2, 3], 0)")
            assert running.ask("POST", "/api/sources/1/restart")[0] == 200
            browser.until("hidden.size === 0 && known.size === 2 && known.has(1)", "the new ones alone")
            assert browser.run("document.querySelector('[data-id=\"1\"] input').checked") is True
            assert browser.run("document.querySelector('[data-id=\"7\"]')") is None
        finally:
            browser.close()


def test_a_page_has_a_choice_of_sources(tmp_path: Path) -> None:
    with Running() as running:
        browser = Browser(tmp_path)
        try:
            browser.open(running.config.url)
            browser.until("document.querySelectorAll('#tracks li').length === 2", "two identities")
            assert browser.run("document.querySelector('#choice').hidden") is True
            assert running.ask("POST", "/api/sources", {"video": other(2)})[0] == 201
            browser.run("listSources()")
            browser.until("document.querySelectorAll('#choice option').length === 2", "a choice")
            assert browser.run("document.querySelector('#choice').hidden") is False
            browser.run(
                "document.querySelector('#choice').value = '2';"
                "document.querySelector('#choice').dispatchEvent(new Event('change'))"
            )
            browser.until("socket.url.endsWith('/ws?source=2')", "the other source")
            browser.until("document.querySelector('#state').textContent === 'live'", "its pictures")
            browser.until("document.querySelectorAll('#tracks li').length === 2", "its identities")
            assert running.ask("DELETE", "/api/sources/2")[0] == 204
            browser.until("socket.url.endsWith('/ws')", "the source that is left")
            browser.until("document.querySelector('#state').textContent === 'live'", "pictures again")
        finally:
            browser.close()
