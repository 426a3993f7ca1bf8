"""The element avisseg in real pipelines, inside this process."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gst_runs import OUT, Run, picture, regions, sound, video
from live_tools import StubSegmenter, wait_for


def test_a_slow_model_holds_up_no_frame(gst: Any, stub: StubSegmenter) -> None:
    stub.step_seconds = stub.refresh_seconds = 0.3
    with Run(gst, f"{video(90, live=True)} ! avisseg name=m {sound(60, live=True)} ! m.audio_sink {OUT}") as run:
        samples = run.pull()
        stats = run.element.get_property("stats")
    stamps = [s.get_buffer().pts for s in samples]
    assert len(stamps) == 90
    assert stamps == sorted(stamps)
    assert stats.get_value("frames-in") == stats.get_value("frames-out") == 90
    assert 0 < stats.get_value("results") < 30
    assert stats.get_value("passed-over") > 40


def test_with_sync_every_frame_has_its_own_result(gst: Any, stub: StubSegmenter) -> None:
    with Run(gst, f"{video(35)} ! avisseg name=m sync=true {sound(40)} ! m.audio_sink {OUT}") as run:
        samples = run.pull()
        stats = run.element.get_property("stats")
        assert run.element.get_property("result-age-ms") == 0
    assert len(samples) == 35
    assert stats.get_value("results") == 35
    assert stats.get_value("steps") == 2
    assert [pair.audio_valid > 0.9 for pair in stub.steps] == [False, True]
    for sample in samples:
        (region,) = regions(sample)
        assert (region.id, region.w, region.h) == (1, 64, 48)
    assert [r.get_value("sounding") for r in run.records] == [1] * 35
    assert json.loads(run.records[0].get_value("objects")) == [
        {"id": 1, "label": "dog", "score": 0.9, "bbox": [0, 0, 64, 48]}
    ]
    assert run.records[3].get_value("pts") == 100_000_000


@pytest.mark.parametrize("begin", ["true", "false"])
def test_who_runs_the_model_is_settled_for_a_whole_run(gst: Any, stub: StubSegmenter, begin: str) -> None:
    threads = set()
    refresh = stub.refresh_pair

    def noted(*given: Any) -> Any:
        threads.add(threading.current_thread().name == "avis element")
        return refresh(*given)

    stub.refresh_pair = noted  # type: ignore[method-assign]
    with Run(gst, f"{video(30, live=True)} ! avisseg name=m sync={begin} {OUT}") as run:
        wait_for(lambda: bool(threads), 20, "a refresh")
        run.element.set_property("sync", begin == "false")
        before = run.element.get_property("stats").get_value("results")
        run.pull()
        assert run.element.get_property("stats").get_value("results") > before
    assert threads == {begin == "false"}


def test_metadata_downstream(gst: Any, stub: StubSegmenter) -> None:
    with Run(gst, f"{video(3)} ! avisseg name=m sync=true {OUT}") as run:
        (region,) = regions(run.pull()[-1])
    parameters = region.get_param("avis")
    assert parameters.get_value("track-id") == 1
    assert parameters.get_value("score") == pytest.approx(0.9)
    assert parameters.get_value("sounding") is True
    assert parameters.get_value("result-pts") == 66_666_666
    # Behind a conversion GStreamer 1.22 keeps box, id and label, but not the parameters.
    out = OUT.replace("queue", "videoconvert ! video/x-raw,format=I420 ! queue")
    with Run(gst, f"{video(3)} ! avisseg name=m sync=true {out}") as run:
        (region,) = regions(run.pull()[-1])
    from gi.repository import GLib

    assert (region.id, region.w, region.h, GLib.quark_to_string(region.roi_type)) == (1, 64, 48, "dog")


@pytest.mark.parametrize("width", [64, 65])
def test_an_overlay_changes_frames_and_no_other_branch(gst: Any, stub: StubSegmenter, width: int) -> None:
    """Rows of 65 pixels are padded; the branch beside the element must get the frames as they were."""
    text = (
        f"{video(3, width=width)} ! tee name=t ! queue ! avisseg name=m sync=true overlay=true {OUT} "
        "t. ! queue ! appsink name=plain sync=false max-buffers=100"
    )
    with Run(gst, text) as run:
        drawn = [picture(s) for s in run.pull()]
        plain = [picture(s) for s in run.pull("plain")]
    assert len(drawn) == len(plain) == 3
    for mine, other in zip(drawn, plain, strict=True):
        assert (mine[20:40] != other[20:40]).mean() > 0.5
    assert plain[0][5, 2].tolist() == plain[0][5, 4].tolist(), "bars, untouched"


def test_an_overlay_may_come_and_go(gst: Any, stub: StubSegmenter) -> None:
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=1/1"
    with Run(gst, f"appsrc name=in format=time caps={caps} ! avisseg name=m sync=true {OUT}") as run:
        appsrc, appsink = (run.pipeline.get_by_name(name) for name in ("in", "out"))
        drawn = []
        for n, wanted in enumerate((False, True, False)):
            run.element.set_property("overlay", wanted)
            buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
            buffer.pts, buffer.duration = n * gst.SECOND, gst.SECOND
            appsrc.emit("push-buffer", buffer)
            drawn.append(bool(picture(appsink.emit("try-pull-sample", 20 * gst.SECOND)).any()))
        appsrc.emit("end-of-stream")
    assert drawn == [False, True, False]


def test_caps_may_change_in_mid_stream(gst: Any, stub: StubSegmenter) -> None:
    text = (
        f"concat name=c ! avisseg name=m sync=true overlay=true {OUT} {video(5)} ! c. "
        f"{video(5, width=48, height=64)} ! c."
    )
    with Run(gst, text) as run:
        shapes = [picture(s).shape for s in run.pull()]
    assert shapes == [(48, 64, 3)] * 5 + [(64, 48, 3)] * 5


def test_sound_may_come_late_and_end_early(gst: Any, stub: StubSegmenter) -> None:
    with Run(gst, f"{video(60, live=True)} ! avisseg name=m {OUT}") as run:
        wait_for(lambda: run.element.get_property("stats").get_value("frames-out") > 10, 30, "frames")
        branch = gst.parse_bin_from_description(sound(10, live=True), True)
        run.pipeline.add(branch)
        pad = run.element.request_pad_simple("audio_sink")
        assert run.element.request_pad_simple("audio_sink") is None, "there is one only"
        assert branch.get_static_pad("src").link(pad) == gst.PadLinkReturn.OK
        branch.sync_state_with_parent()
        assert len(run.pull()) == 60
        assert not run.errors


def test_a_flushing_seek_begins_anew(gst: Any, stub: StubSegmenter) -> None:
    with Run(gst, f"{video(300, live=False)} ! avisseg name=m sync=true {OUT.replace('1000', '5')}") as run:
        appsink = run.pipeline.get_by_name("out")
        for _ in range(10):
            assert appsink.emit("try-pull-sample", 20 * gst.SECOND) is not None
        answers = run.element.get_property("stats").get_value("results")
        assert run.pipeline.seek_simple(gst.Format.TIME, gst.SeekFlags.FLUSH, 5 * gst.SECOND)
        sample = appsink.emit("try-pull-sample", 20 * gst.SECOND)
        assert sample.get_buffer().pts == 5 * gst.SECOND
        wait_for(lambda: run.element.get_property("stats").get_value("results") > answers, 20, "further results")
        assert not run.errors


def begun(gst: Any, start: int = 0) -> tuple[Any, Any, Any, Any]:
    """An element that is fed by hand, its pads of video and sound, and the segment that both are in, from `start` s."""
    element = gst.ElementFactory.make("avisseg")
    element.set_property("sync", True)
    element.set_property("audio-wait-ms", 50)
    video_sink, audio_sink = element.get_static_pad("video_sink"), element.request_pad_simple("audio_sink")
    element.set_state(gst.State.PAUSED)
    segment = gst.Segment()
    segment.init(gst.Format.TIME)
    segment.start = start * gst.SECOND
    caps = {video_sink: "video/x-raw,format=RGB,width=64,height=48,framerate=30/1",
            audio_sink: "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"}  # fmt: skip
    for pad, text in caps.items():
        pad.send_event(gst.Event.new_stream_start(pad.get_name()))
        pad.send_event(gst.Event.new_caps(gst.Caps.from_string(text)))
        pad.send_event(gst.Event.new_segment(segment))
    return element, video_sink, audio_sink, segment


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("same_seek", [True, False])
def test_after_a_seek_sound_may_come_before_the_video_knows(
    gst: Any, stub: StubSegmenter, same_seek: bool, ends: bool
) -> None:
    """Each pad is flushed by a thread of its own; sound that follows its flush belongs to where was sought to.

    Sound that also ended before the video's flush is not waited for afterwards.
    """
    element, video_sink, audio_sink, segment = begun(gst)

    def flush(pad: Any, seek: int) -> None:
        for event in (gst.Event.new_flush_start(), gst.Event.new_flush_stop(True)):
            event.set_seqnum(seek)
            pad.send_event(event)
        pad.send_event(gst.Event.new_segment(segment))

    def hear(begin: int, seconds: int) -> None:
        buffer = gst.Buffer.new_wrapped(np.full(16_000 * seconds, 0.5, np.float32).tobytes())
        buffer.pts = begin * gst.SECOND
        audio_sink.chain(buffer)

    def show(at: int) -> None:
        buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
        buffer.pts, buffer.duration = at * gst.SECOND, gst.SECOND // 30
        video_sink.chain(buffer)

    hear(100, 2)
    show(101)
    seek = gst.util_seqnum_next()
    flush(audio_sink, seek)
    hear(0, 2)
    if ends:
        audio_sink.send_event(gst.Event.new_eos())
    flush(video_sink, seek if same_seek else gst.util_seqnum_next())
    show(1)
    late = element.get_property("stats").get_value("late-sound")
    show(3)  # a second after the sound that there is
    waited = element.get_property("stats").get_value("late-sound") > late
    element.set_state(gst.State.NULL)
    assert [pair.audio_valid for pair in stub.steps] == [1.0, 1.0 if same_seek else 0.0, 0.0]
    if same_seek:
        assert waited != ends


@pytest.mark.parametrize("start", [0, 2])
def test_sound_that_is_told_not_to_come_is_not_waited_for(gst: Any, stub: StubSegmenter, start: int) -> None:
    """`start`: of the segment; the gap begins with 0 all the same, and has no end worth the name."""
    element, video_sink, audio_sink, _ = begun(gst, start)
    audio_sink.send_event(gst.Event.new_gap(0, gst.CLOCK_TIME_NONE))  # says nothing
    audio_sink.send_event(gst.Event.new_gap(0, 10 * gst.SECOND))
    audio_sink.send_event(gst.Event.new_gap(10 * gst.SECOND, gst.CLOCK_TIME_NONE - 1))
    for at in (3, 4, 9, 20, 3000):
        buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
        buffer.pts, buffer.duration = at * gst.SECOND, gst.SECOND // 30
        video_sink.chain(buffer)
    late = element.get_property("stats").get_value("late-sound")
    element.set_state(gst.State.NULL)
    assert late == 0
    assert {pair.audio_valid for pair in stub.steps} == {0.0}


def test_a_wrong_stamp_ends_no_results_and_its_answer_is_on_no_frame_before_it(gst: Any, stub: StubSegmenter) -> None:
    element, video_sink, _, _ = begun(gst)
    element.set_property("audio-wait-ms", 0)
    bus = gst.Bus()
    element.set_bus(bus)
    ages = []
    for at in (1000, 1040, 3_600_000, 1080, 1120, 1160, 1200, 0, 40, 80):
        buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
        buffer.pts, buffer.duration = at * gst.MSECOND, 40 * gst.MSECOND
        video_sink.chain(buffer)
        ages.append(element.get_property("result-age-ms"))
    stats = element.get_property("stats")
    warned = 0
    while (message := bus.pop_filtered(gst.MessageType.WARNING)) is not None:
        warned += "begin anew" in message.parse_warning()[0].message
    element.set_state(gst.State.NULL)
    assert ages == [0, 0, 0, -1, -1, 0, 0, -1, -1, 0]
    assert (stats.get_value("results"), stats.get_value("out-of-order"), warned) == (6, 4, 1)


@pytest.mark.parametrize("sync", [True, False])
def test_what_downstream_holds_is_no_missing_picture(gst: Any, stub: StubSegmenter, sync: bool) -> None:
    """And a gap tells the follower that none is to come."""
    element, video_sink, _, segment = begun(gst)
    element.set_state(gst.State.NULL)
    element.set_property("sync", sync)
    found: list[int] = []

    def held(*_: Any) -> Any:
        found.append(element._stream._follower._in_hand)
        return gst.FlowReturn.OK

    def told(_pad: Any, _parent: Any, event: Any) -> bool:
        if event.type == gst.EventType.GAP:
            held()
        return True

    peer = gst.Pad.new("peer", gst.PadDirection.SINK)
    peer.set_chain_function_full(held)
    peer.set_event_function_full(told)
    peer.set_active(True)
    assert element.get_static_pad("video_src").link(peer) == gst.PadLinkReturn.OK
    element.set_state(gst.State.PAUSED)
    video_sink.send_event(gst.Event.new_stream_start("video"))
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=30/1"
    video_sink.send_event(gst.Event.new_caps(gst.Caps.from_string(caps)))
    video_sink.send_event(gst.Event.new_segment(segment))
    buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
    buffer.pts, buffer.duration = 0, gst.SECOND // 30
    video_sink.chain(buffer)
    video_sink.send_event(gst.Event.new_gap(gst.SECOND, 19 * gst.SECOND))
    follower = element._stream._follower
    assert (found, follower._in_hand, follower._seen_ns()) == ([1, 1], 0, 20 * gst.SECOND)
    element.set_state(gst.State.NULL)


def stop_while_a_frame_waits_for_sound(gst: Any) -> tuple[int, float]:
    """How often sound came too late, and the seconds that the stop took; ten were to be waited."""
    silent = "appsrc name=nobody format=time ! audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"
    text = f"{video(30)} ! avisseg name=m sync=true audio-wait-ms=10000 {silent} ! m.audio_sink {OUT}"
    with Run(gst, text) as run:
        wait_for(lambda: run.element.get_property("stats").get_value("frames-in") == 1, 20, "the first frame")
        follower, begin = run.element._stream._follower, time.monotonic()
    return follower.counts["late_sound"], time.monotonic() - begin


def test_a_stop_while_a_frame_waits_for_sound(gst: Any, stub: StubSegmenter) -> None:
    late, _ = stop_while_a_frame_waits_for_sound(gst)
    assert late == 0, "the stop ended the wait, not the wait itself"


@pytest.mark.slow
def test_a_stop_does_not_wait_for_sound_that_will_not_come(gst: Any, stub: StubSegmenter) -> None:
    _, seconds = stop_while_a_frame_waits_for_sound(gst)
    assert seconds < 8


def test_states_may_be_cycled(gst: Any, stub: StubSegmenter) -> None:
    run = Run(gst, f"{video(-1)} ! avisseg name=m {sound(-1)} ! m.audio_sink m.video_src ! fakesink")
    files = open_files()
    for cycle in range(100):
        if cycle == 10:
            gc.collect()
            files, memory = open_files(), resident()
        run.pipeline.set_state(gst.State.PAUSED if cycle % 2 else gst.State.PLAYING)
        run.pipeline.get_state(5 * gst.SECOND)
        run.pipeline.set_state(gst.State.NULL)
    gc.collect()
    assert open_files() <= files + 3
    assert resident() - memory < 60e6, "a leaked model or picture for each cycle would be more"
    assert not [t for t in threading.enumerate() if t.name == "avis element"]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_latency_is_told(gst: Any, stub: StubSegmenter) -> None:
    with Run(gst, f"{video(-1, live=True)} ! avisseg name=m ! fakesink sync=true") as run:
        run.pipeline.get_state(10 * gst.SECOND)
        query = gst.Query.new_latency()
        assert run.pipeline.query(query)
        live, least, _ = query.parse_latency()
    assert live
    assert least >= 20 * gst.MSECOND


def test_a_model_that_cannot_be_loaded_is_an_error(gst: Any) -> None:
    run = Run(gst, f"{video(3)} ! avisseg name=m model=nobody {OUT}")
    assert run.pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE
    assert any("the model cannot be loaded" in error and "nobody" in error for error in run.errors)
    run.pipeline.set_state(gst.State.NULL)


@pytest.mark.parametrize("sync", ["true", "false"])
def test_a_model_that_fails_ends_the_pipeline_with_its_words(
    gst: Any, stub: StubSegmenter, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(stub, "step_pair", fail)
    with Run(gst, f"{video(300, live=True)} ! avisseg name=m sync={sync} {OUT}") as run:
        wait_for(lambda: run.errors, 30, "an error")
        assert "MemoryError: no memory left" in run.errors[0]


def test_thresholds_are_the_models(gst: Any, stub: StubSegmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []

    def loaded(*given: Any) -> Any:
        wanted.append(given)
        return stub, ("dog",), False

    monkeypatch.setattr("avis_stream.interop.follower.model_segmenter", loaded)
    with Run(gst, f"{video(1)} ! avisseg name=m sync=true score-threshold=0.25 mask-threshold=0.75 {OUT}") as run:
        run.pull()
    with Run(gst, f"{video(1)} ! avisseg name=m sync=true {OUT}") as run:
        run.pull()
    assert wanted == [("avism_mini", "", "cpu", 0.25, 0.75), ("avism_mini", "", "cpu", -1.0, 0.5)]


def test_rows_lie_as_the_buffer_says(gst: Any, stub: StubSegmenter) -> None:
    """Cameras and GPUs give strides of their own, and say so in a GstVideoMeta; the last row need not be whole."""
    from gi.repository import GstVideo

    offset, stride = 32, 256
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    data = np.zeros(offset + 48 * stride, np.uint8)
    rows = data[offset:].reshape(48, stride)
    rows[:, :192] = pixels.reshape(48, 192)
    buffer = gst.Buffer.new_wrapped(data[: offset + 47 * stride + 192].tobytes())
    buffer.pts, buffer.duration = 0, gst.SECOND
    GstVideo.buffer_add_video_meta_full(
        buffer, GstVideo.VideoFrameFlags.NONE, GstVideo.VideoFormat.RGB, 64, 48, 1, [offset, 0, 0, 0], [stride, 0, 0, 0]
    )
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=1/1"
    with Run(gst, f"appsrc name=in format=time caps={caps} ! avisseg name=m sync=true overlay=true {OUT}") as run:
        run.pipeline.get_by_name("in").emit("push-buffer", buffer)
        run.pipeline.get_by_name("in").emit("end-of-stream")
        (sample,) = run.pull()
    (pair,) = stub.steps
    assert np.array_equal(pair.frame.image.permute(1, 2, 0).numpy(), pixels)
    drawn = np.frombuffer(sample.get_buffer().extract_dup(0, len(data)), np.uint8)
    tinted = np.lib.stride_tricks.as_strided(drawn[offset:], (48, 64, 3), (stride, 3, 1))
    assert (tinted[20:40] != pixels[20:40]).mean() > 0.5
    assert not drawn[:offset].any(), "nothing is drawn outside the picture"
    assert not drawn[offset + 192 : offset + stride].any()


@pytest.mark.parametrize("sync", [True, False], ids=["read", "drawn_into"])
def test_a_buffer_shorter_than_its_picture_is_an_error_that_says_so(gst: Any, stub: StubSegmenter, sync: bool) -> None:
    """Whoever forgets to pad the rows of a picture 63 wide sends 9072 bytes."""
    caps = "video/x-raw,format=RGB,width=63,height=48,framerate=1/1"
    text = f"appsrc name=in format=time caps={caps} ! avisseg name=m overlay=true sync={str(sync).lower()} {OUT}"
    with Run(gst, text) as run:
        for pts, length in enumerate((48 * 192, 48 * 189)):
            buffer = gst.Buffer.new_wrapped(bytes(length))
            buffer.pts = pts * gst.SECOND
            run.pipeline.get_by_name("in").emit("push-buffer", buffer)
            wait_for(lambda: run.errors or run.element.get_property("stats").get_value("results"), 20, "a result")
        wait_for(lambda: run.errors, 20, "an error")
        assert "a video buffer must hold 9213 bytes for 63x48 RGB in rows 192 bytes apart" in run.errors[0]
        assert "got 9072; whoever makes it must pad its rows to 4 bytes" in run.errors[0]


def test_frames_without_a_time_go_through_and_are_counted(gst: Any, stub: StubSegmenter) -> None:
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=1/1"
    with Run(gst, f"appsrc name=in format=time caps={caps} ! avisseg name=m sync=true {OUT}") as run:
        for pts in (0, gst.CLOCK_TIME_NONE, gst.SECOND):
            buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
            buffer.pts = pts
            run.pipeline.get_by_name("in").emit("push-buffer", buffer)
        run.pipeline.get_by_name("in").emit("end-of-stream")
        assert len(run.pull()) == 3
        stats = run.element.get_property("stats")
    assert [stats.get_value(name) for name in ("frames-in", "frames-out", "results")] == [3, 3, 2]


def test_sound_that_is_always_late_is_worth_one_warning(gst: Any, stub: StubSegmenter) -> None:
    silent = "appsrc name=nobody format=time ! audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"
    text = f"{video(30)} ! avisseg name=m sync=true audio-wait-ms=1 {silent} ! m.audio_sink {OUT}"
    with Run(gst, text) as run:
        assert len(run.pull()) == 30
        assert not run.errors
    (warning,) = [m.parse_warning() for m in run.messages if m.type == gst.MessageType.WARNING]
    assert "sound comes more than 1 ms after its frames" in warning[0].message
    assert "queue" in warning[1]


@pytest.mark.parametrize(
    ("form", "stamped", "heard", "told"),
    [
        ("time", 40, True, []),
        ("time", 1, True, []),
        ("time", 0, False, ["sound without time stamps is not heard"]),
        ("bytes", 40, False, ["sound without time stamps is not heard"]),
    ],
)
def test_sound_follows_on_from_a_stamp_and_needs_one(
    gst: Any, stub: StubSegmenter, form: str, stamped: int, heard: bool, told: list[str]
) -> None:
    caps = "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"
    with Run(
        gst, f"{video(60)} ! avisseg name=m sync=true appsrc name=in format={form} caps={caps} ! m.audio_sink {OUT}"
    ) as run:
        for n in range(40):  # two seconds
            buffer = gst.Buffer.new_wrapped(np.full(800, 0.5, np.float32).tobytes())
            buffer.pts = n * gst.SECOND // 20 if n < stamped else gst.CLOCK_TIME_NONE
            run.pipeline.get_by_name("in").emit("push-buffer", buffer)
        run.pipeline.get_by_name("in").emit("end-of-stream")
        assert len(run.pull()) == 60
        assert not run.errors
    assert [pair.audio_valid for pair in stub.steps][1:] == [1.0 if heard else 0.0]
    assert [m.parse_warning()[0].message for m in run.messages if m.type == gst.MessageType.WARNING] == told


def test_pictures_in_bytes_pass_without_results_and_are_told_of_once(gst: Any, stub: StubSegmenter) -> None:
    caps = "video/x-raw,format=RGB,width=64,height=48,framerate=1/1"
    with Run(gst, f"appsrc name=in caps={caps} ! avisseg name=m sync=true {OUT}") as run:
        for n in range(3):
            buffer = gst.Buffer.new_wrapped(bytes(48 * 64 * 3))
            buffer.pts = n * gst.SECOND
            run.pipeline.get_by_name("in").emit("push-buffer", buffer)
        run.pipeline.get_by_name("in").emit("end-of-stream")
        assert len(run.pull()) == 3
        assert not run.errors
    (warning,) = [m.parse_warning() for m in run.messages if m.type == gst.MessageType.WARNING]
    assert "frames without time stamps pass without results" in warning[0].message
    assert "format=time" in warning[1]


def test_a_flush_lets_go_a_frame_that_waits_for_sound(gst: Any, stub: StubSegmenter) -> None:
    silent = "appsrc name=nobody format=time ! audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved"
    text = f"{video(30)} ! avisseg name=m sync=true audio-wait-ms=10000 {silent} ! m.audio_sink {OUT}"
    with Run(gst, text) as run:
        wait_for(lambda: run.element.get_property("stats").get_value("frames-in") == 1, 20, "the first frame")
        assert run.element.get_static_pad("video_sink").send_event(gst.Event.new_flush_start())
        wait_for(lambda: run.element.get_property("stats").get_value("results") == 1, 5, "its result")


@pytest.mark.slow
def test_a_frame_without_a_model_costs_less_than_100_us(gst: Any, stub: StubSegmenter) -> None:
    """One after the other: what the element itself costs, of a model that finds nothing and takes no time."""
    stub.sounding = False
    text = f"{video(600, width=640, height=360)} ! avisseg name=m {sound(400)} ! m.audio_sink {OUT}"
    with Run(gst, text) as run:
        assert len(run.pull()) == 600
        stats = run.element.get_property("stats")
    print(f"\nelement us p50 {stats.get_value('frame-p50-us')} p99 {stats.get_value('frame-p99-us')}")
    assert stats.get_value("frame-p50-us") < 100


@pytest.mark.slow
def test_twenty_seconds_with_a_slow_model(gst: Any, stub: StubSegmenter) -> None:
    """600 frames of a 30-fps source with a 300-ms model and a region on each: none is lost or late by 50 ms."""
    stub.step_seconds = stub.refresh_seconds = 0.3
    text = (
        f"{video(600, live=True, width=640, height=360)} ! avisseg name=m {sound(400, live=True)} ! m.audio_sink {OUT}"
    )
    late = []
    with Run(gst, text) as run:
        appsink = run.pipeline.get_by_name("out")
        while (sample := appsink.emit("try-pull-sample", 5 * gst.SECOND)) is not None:
            now = run.pipeline.get_clock().get_time() - run.pipeline.get_base_time()
            late.append((now - sample.get_buffer().pts) / 1e6)
        stats = run.element.get_property("stats")
    print(f"\nlateness ms p50 {np.median(late):.1f} p99 {np.percentile(late, 99):.1f} max {max(late):.1f}; "
          f"element us p50 {stats.get_value('frame-p50-us')} p99 {stats.get_value('frame-p99-us')}")  # fmt: skip
    assert len(late) == 600
    assert np.percentile(late, 99) < 50 + 40
    assert np.mean(late[-100:]) < np.mean(late[50:150]) + 10, "it grows"
