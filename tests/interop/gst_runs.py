"""Pipelines with the element avisseg in them, for tests."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import numpy as np
import pytest
from live_tools import StubSegmenter

Stub = TypeVar("Stub", bound=StubSegmenter)

VIDEO = "videotestsrc num-buffers={n} {live} ! video/x-raw,format=RGB,width={w},height={h},framerate=30/1 ! queue"
SOUND = (
    "audiotestsrc num-buffers={n} samplesperbuffer=800 {live} ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! queue"
)


def video(n: int = 30, *, live: bool = False, width: int = 64, height: int = 48) -> str:
    return VIDEO.format(n=n, live="is-live=true" if live else "", w=width, h=height)


def sound(n: int = 20, *, live: bool = False) -> str:
    return SOUND.format(n=n, live="is-live=true" if live else "")


def in_place_of_a_model(monkeypatch: pytest.MonkeyPatch, segmenter: Stub) -> Stub:
    """Lets elements have this segmenter, whatever weights they are to load."""
    loaded = (segmenter, ("dog",), False)
    monkeypatch.setattr("avis_stream.interop.follower.model_segmenter", lambda *_: loaded)
    return segmenter


class Run:
    """A pipeline with an appsink called out, pulled to its end."""

    def __init__(self, gst: Any, text: str) -> None:
        self.gst = gst
        self.pipeline = gst.parse_launch(text)
        self.element = self.pipeline.get_by_name("m")
        self.samples: list[Any] = []
        self.messages: list[Any] = []

    def __enter__(self) -> Run:
        self.pipeline.set_state(self.gst.State.PLAYING)
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.set_state(self.gst.State.NULL)

    def pull(self, name: str = "out") -> list[Any]:
        """Every sample, until the end of the stream or an error."""
        appsink = self.pipeline.get_by_name(name)
        taken = []
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sample = appsink.emit("try-pull-sample", 100 * self.gst.MSECOND)
            self._take_messages()
            if sample is not None:
                taken.append(sample)
            elif appsink.get_property("eos"):
                return taken
            assert not self.errors, self.errors
        raise AssertionError("the pipeline did not end")

    def _take_messages(self) -> None:
        while (message := self.pipeline.get_bus().pop()) is not None:
            self.messages.append(message)

    @property
    def errors(self) -> list[str]:
        self._take_messages()
        found = [m.parse_error() for m in self.messages if m.type == self.gst.MessageType.ERROR]
        return [f"{error.message} {detail}" for error, detail in found]

    @property
    def records(self) -> list[Any]:
        self._take_messages()
        structures = [m.get_structure() for m in self.messages if m.type == self.gst.MessageType.ELEMENT]
        return [s for s in structures if s is not None and s.get_name() == "avisseg"]


OUT = "m.video_src ! queue ! appsink name=out sync=false max-buffers=1000"


def picture(sample: Any) -> np.ndarray:
    structure = sample.get_caps().get_structure(0)
    width, height = structure.get_value("width"), structure.get_value("height")
    channels = 1 if structure.get_value("format") == "GRAY8" else 3
    data = sample.get_buffer().extract_dup(0, sample.get_buffer().get_size())
    stride = len(data) // height
    return np.frombuffer(data, np.uint8).reshape(height, stride)[:, : channels * width].reshape(height, width, channels)


def regions(sample: Any) -> list[Any]:
    """Of identity 1, the only one that the stub knows."""
    from gi.repository import GstVideo

    region = GstVideo.buffer_get_video_region_of_interest_meta_id(sample.get_buffer(), 1)
    return [] if region is None else [region]
