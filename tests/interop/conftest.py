"""GStreamer with the element in it, a model in its place, and no thread left behind by any test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from gst_runs import in_place_of_a_model
from live_tools import StubSegmenter, need_gstreamer


@pytest.fixture
def gst() -> Any:
    need_gstreamer()
    from gi.repository import Gst

    from avis_stream.interop.gst_element import register

    register()
    return Gst


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubSegmenter:
    return in_place_of_a_model(monkeypatch, StubSegmenter())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name == "avis element"]
