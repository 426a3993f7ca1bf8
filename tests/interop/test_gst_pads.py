"""The pads beside the element's video, for masks and for JSON: they come and go on request, and their streams end."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from gst_runs import OUT, Run, in_place_of_a_model, picture, video
from live_tools import StubSegmenter, wait_for


def test_masks_and_json_on_request(gst: Any, stub: StubSegmenter) -> None:
    text = (
        f"{video(5, width=62)} ! avisseg name=m sync=true {OUT} "
        "m.mask_src ! queue ! appsink name=masks sync=false max-buffers=100 "
        "m.json_src ! queue ! appsink name=texts sync=false max-buffers=100"
    )
    with Run(gst, text) as run:
        frames, masks, texts = run.pull(), run.pull("masks"), run.pull("texts")
    assert [s.get_buffer().pts for s in masks] == [s.get_buffer().pts for s in frames]
    assert all((picture(s) == 1).all() and picture(s).shape == (48, 62, 1) for s in masks)
    records = [json.loads(s.get_buffer().extract_dup(0, s.get_buffer().get_size())) for s in texts]
    assert [r["frame_id"] for r in records] == list(range(5))
    assert records[0]["tracks"][0]["label"] == "dog"
    assert {(r["source_id"], r["audio_valid"]) for r in records} == {("m", 0.0)}, "there was no sound"


def test_json_is_written_where_the_model_runs(gst: Any, stub: StubSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs milliseconds of large masks, for which no frame waits."""
    threads = set()

    def noted(*_: object) -> dict[str, Any]:
        threads.add(threading.current_thread().name)
        return {}

    monkeypatch.setattr("avis_stream.interop.gst_stream.result_record", noted)
    text = f"{video(30, live=True)} ! avisseg name=m {OUT} m.json_src ! queue ! appsink name=texts sync=false"
    with Run(gst, text) as run:
        run.pull()
        assert run.pull("texts")
    assert threads == {"avis element"}


class Gated(StubSegmenter):
    """A model that has no answer until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    def step_pair(self, pair: Any, state: int) -> Any:
        assert self.may_answer.wait(60)
        return super().step_pair(pair, state)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Gated:
    return in_place_of_a_model(monkeypatch, Gated())


TEXTS = "m.json_src ! queue ! appsink name=texts sync=false async=false max-buffers=100"


def frame_ids(texts: list[Any]) -> list[int]:
    return [json.loads(s.get_buffer().extract_dup(0, s.get_buffer().get_size()))["frame_id"] for s in texts]


def test_json_of_the_last_frame_comes_before_its_end(gst: Any, gated: Gated) -> None:
    """The video has ended by then, and does not wait for it."""
    with Run(gst, f"{video(5)} ! avisseg name=m {OUT} {TEXTS}") as run:
        frames = run.pull()
        assert not run.pipeline.get_by_name("texts").get_property("eos")
        gated.may_answer.set()
        texts = run.pull("texts")
    assert frame_ids(texts)[-1] == 4
    last = texts[-1].get_buffer()
    assert (last.pts, last.duration) == (frames[-1].get_buffer().pts, frames[-1].get_buffer().duration)


def test_json_ends_without_an_answer_that_does_not_come(
    gst: Any, gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avis_stream.interop.gst_stream._LAST_ANSWER_SECONDS", 0.0)
    with Run(gst, f"{video(5)} ! avisseg name=m {OUT} {TEXTS}") as run:
        assert run.pull("texts") == []
        gated.may_answer.set()
        assert not run.errors
    (warning,) = [m.parse_warning() for m in run.messages if m.type == gst.MessageType.WARNING]
    assert "the last frame's result took more than 0 s, its JSON is missing" in warning[0].message


def test_pads_beside_a_video_without_frames_end_with_it(gst: Any, stub: StubSegmenter) -> None:
    masks = "m.mask_src ! queue ! appsink name=masks sync=false"
    with Run(gst, f"{video(0)} ! avisseg name=m {OUT} {masks} {TEXTS}") as run:
        assert [run.pull(name) for name in ("out", "masks", "texts")] == [[], [], []]


def test_texts_for_a_released_pad_go_with_it(gst: Any, stub: StubSegmenter) -> None:
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=1/1"
    with Run(gst, f"appsrc name=in format=time caps={caps} ! avisseg name=m {OUT}") as run:

        def show(at: int) -> None:
            buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
            buffer.pts, buffer.duration = at * gst.SECOND, gst.SECOND
            run.pipeline.get_by_name("in").emit("push-buffer", buffer)

        stream = run.element._stream
        pad = run.element.request_pad_simple("json_src")
        show(0)
        wait_for(lambda: stream._written, 20, "a text that waits for the next frame")
        run.element.release_request_pad(pad)
        assert not stream._written
        texts = gst.parse_bin_from_description("queue ! appsink name=texts sync=false", True)
        run.pipeline.add(texts)
        texts.sync_state_with_parent()
        pad = run.element.request_pad_simple("json_src")
        assert pad.link(texts.get_static_pad("sink")) == gst.PadLinkReturn.OK
        pad.set_active(True)
        for at in (1, 2):
            show(at)
        run.pipeline.get_by_name("in").emit("end-of-stream")
        found = frame_ids(run.pull("texts"))
    assert found[-1] == 2
    assert 0 not in found


def test_a_text_that_is_finished_when_its_pad_is_gone_is_for_no_other(
    gst: Any, stub: StubSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    element = gst.ElementFactory.make("avisseg")
    element.set_property("sync", True)

    def exchanged(*_: object) -> dict[str, Any]:
        element.release_request_pad(element.get_static_pad("json_src"))
        assert element.request_pad_simple("json_src") is not None
        return {}

    monkeypatch.setattr("avis_stream.interop.gst_stream.result_record", exchanged)
    pushed: list[Any] = []
    monkeypatch.setattr("avis_stream.interop.gst_stream.SideStream.push", lambda *given: pushed.append(given))
    element.request_pad_simple("json_src")
    element.set_state(gst.State.PAUSED)
    sink, segment = element.get_static_pad("video_sink"), gst.Segment()
    segment.init(gst.Format.TIME)
    sink.send_event(gst.Event.new_stream_start("video"))
    sink.send_event(gst.Event.new_caps(gst.Caps.from_string("video/x-raw,format=RGB,width=64,height=48,framerate=1/1")))
    sink.send_event(gst.Event.new_segment(segment))
    buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
    buffer.pts = 0
    sink.chain(buffer)
    answers = element.get_property("stats").get_value("results")
    element.set_state(gst.State.NULL)
    assert answers == 1
    assert not pushed


def test_a_pad_beside_the_video_may_come_again(gst: Any, stub: StubSegmenter) -> None:
    """Each has a stream of its own, with all that belongs to one."""
    with Run(gst, f"{video(-1, live=True)} ! avisseg name=m sync=true m.video_src ! fakesink") as run:
        for _ in range(2):
            appsink = gst.ElementFactory.make("appsink", None)
            appsink.set_property("sync", False)
            # A pipeline that is still about to play would wait in PAUSED for this one, where a live source is still.
            appsink.set_property("async", False)
            run.pipeline.add(appsink)
            appsink.sync_state_with_parent()
            pad = run.element.request_pad_simple("mask_src")
            assert pad.link(appsink.get_static_pad("sink")) == gst.PadLinkReturn.OK
            pad.set_active(True)
            sample = appsink.emit("try-pull-sample", 20 * gst.SECOND)
            assert sample is not None
            assert sample.get_segment().format == gst.Format.TIME
            run.element.release_request_pad(pad)
            appsink.set_state(gst.State.NULL)
            run.pipeline.remove(appsink)
        assert not run.errors
