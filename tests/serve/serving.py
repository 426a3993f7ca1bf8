"""A server on a free port for tests, what it watches, and how its viewers read."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import struct
import threading
from typing import Any

import numpy as np
import torch
from live_tools import StubSegmenter, free_port, wait_for
from PIL import Image
from websockets.sync.client import connect

from avis_stream.serve.app import ServeConfig, run_server
from avis_stream.serve.hub import Hub
from avis_stream.serve.sources import Sources
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import Event, OnlineResult

CLASSES = ("dog", "acoustic_guitar")
SCENE = "synthetic://flashbeep?size=320x180&fps=10"


class TwoOfThem(StubSegmenter):
    """A dog at the left that always sounds, a guitar at the right that does so every other second."""

    def _result(self, image: torch.Tensor, pts_ns: int, frame_id: int, events: tuple[Event, ...]) -> OnlineResult:
        height, width = image.shape[1:]
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[0, height // 4 : height // 2, width // 8 : width // 3] = True
        mask[1, height // 3 : -height // 4, width // 2 : -width // 8] = True
        sounding = torch.tensor([True, pts_ns // 10**9 % 2 == 0])
        mask &= sounding[:, None, None]
        box = torch.tensor(
            [[width / 8, height / 4, width / 5, height / 4], [width / 2, height / 3, width / 3, height / 3]]
        )
        return OnlineResult(
            pts_ns=pts_ns, frame_id=frame_id, track_id=torch.tensor([1, 2]), class_id=torch.tensor([0, 1]),
            score=torch.tensor([0.92, 0.61]), sounding=sounding, mask=mask, box=box * sounding[:, None], events=events,
        )  # fmt: skip


class Running:
    """A server on a free port."""

    def __init__(
        self, video: str = SCENE, *, segmenter: Any = None, audio: str | None = "source", **options: Any
    ) -> None:
        self.config = ServeConfig(port=free_port(), **options).with_token()

        def watch(video: str, audio: str | None) -> Session:
            return Session(segmenter or TwoOfThem(), video, audio, config=SessionConfig(max_latency_ms=60_000))

        self.sources = Sources(watch, CLASSES, most=3)
        self.sources.open(video, audio)
        self.server = run_server(self.sources, self.config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Running:
        self.thread.start()
        wait_for(lambda: self.server.started, 30, "the server")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def hub(self) -> Hub:
        """Of the first source."""
        first = self.sources.find(None)
        assert first is not None
        return first.hub

    def get(self, path: str, **headers: str | bytes) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, **headers)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.config.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), named)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def socket(self, path: str = "/ws", **options: Any) -> Any:
        return connect(f"ws://127.0.0.1:{self.config.port}{path}", max_size=None, **options)


def next_picture(socket: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    while True:
        message = socket.recv(30)
        socket.send("ok")
        if isinstance(message, bytes):
            sizes = struct.unpack(">III", message[:12])
            ends = np.cumsum([12, *sizes])
            text, picture, ids = (message[a:b] for a, b in itertools.pairwise(ends))
            return json.loads(text), np.array(Image.open(io.BytesIO(picture))), np.array(Image.open(io.BytesIO(ids)))


def read_on(socket: Any, *, answer: bool = False) -> None:
    while True:
        socket.recv(30)
        if answer:
            socket.send("ok")


def other(number: int) -> str:
    return SCENE + f"&seconds={1000 + number}"
