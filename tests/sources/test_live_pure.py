"""Addresses, supervision and the clocks of live sources, on a clock that the tests hold."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avis_stream.errors import ConfigError
from avis_stream.sources.address import audio_address, redacted, video_address
from avis_stream.sources.child import Message
from avis_stream.sources.items import Item, Lost, SessionClock
from avis_stream.sources.live import LiveSource
from avis_stream.sources.stream_clock import MicrophoneClock, StreamClock
from avis_stream.sources.supervisor import Supervisor, SupervisorConfig
from avis_stream.sources.synthetic import FlashBeep, beep_onsets, flash_onsets, skew_of
from avis_stream.sources.worker import wire
from avis_stream.sources.worker.gstreamer import _hint
from avis_stream.sources.worker.wire import words_of
from avis_stream.types import SAMPLE_RATE, Event, VideoFrame

MS = 1_000_000
S = 1_000_000_000


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        (0, "camera", "0"),
        ("1", "camera", "1"),
        ("/dev/video2", "camera", "/dev/video2"),
        ("rtsp://host/cam", "network", "rtsp://host/cam"),
        ("udp://@:5000", "network", "udp://@:5000"),
        ("gst: videotestsrc ! appsink name=video", "pipeline", "videotestsrc ! appsink name=video"),
        ("synthetic://flashbeep?fps=30", "synthetic", "synthetic://flashbeep?fps=30"),
        ("clips/street.mp4", "file", "clips/street.mp4"),
    ],
)
def test_what_people_write(wanted: str | int, kind: str, text: str) -> None:
    address = video_address(wanted)
    assert (address.kind, address.text) == (kind, text)


@pytest.mark.parametrize("wanted", ["ftp://host/x.mp4", "synthetic://ball"])
def test_what_nobody_knows_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        video_address(wanted)


@pytest.mark.parametrize(
    ("wanted", "got", "meant"),
    [
        ("rtsp:/127.0.0.1/a", "one", "rtsp://127.0.0.1/a"),
        ("udp:@:5000", "none", "udp://***@:5000"),
        ("rtsp:/admin:s3cr3t@10.0.0.7/cam", "one", "rtsp://***@10.0.0.7/cam"),
        (Path("synthetic://flashbeep"), "one", "synthetic://flashbeep"),
    ],
    ids=str,
)
def test_an_address_has_two_slashes(wanted: str | Path, got: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        video_address(wanted)
    scheme = meant.partition(":")[0]
    assert str(caught.value) == f"an address must have two slashes after {scheme}:, got {got}; write {meant!r}, as text"


def test_where_sound_comes_from() -> None:
    assert audio_address(None) is None
    assert audio_address("source") == "source"
    microphone = audio_address("mic:USB Audio")
    assert microphone is not None
    assert microphone != "source"
    assert (microphone.kind, microphone.text, microphone.shown) == ("microphone", "USB Audio", "mic:USB Audio")


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:s3cr3t@10.0.0.7:554/cam",
        "rtsp://admin:s3cr3t@x@10.0.0.7/cam",
        "http://cam/video?user=a&password=s3cr3t&x=1",
        "rtspsrc location=rtsp://10.0.0.7/cam user-id=admin user-pw=s3cr3t ! appsink",
        'souphttpsrc location="http://u:s3cr3t@h/v" ! appsink',
        "https://h/v.m3u8?token=s3cr3t",
        "could not open rtsp://u:s3cr3t@h/ (401)",
        "srt://10.0.0.7:9000?passphrase=s3cr3t&mode=caller",
        "srtsrc uri=srt://10.0.0.7:9000 passphrase=s3cr3t ! decodebin ! appsink name=video",
        'souphttpsrc location=http://h/v proxy-id=admin proxy-pw="s3cr3t word" ! appsink',
        "rtspsrc location=rtsp://10.0.0.7/cam proxy-id=s3cr3t ! appsink",
    ],
)
def test_no_password_is_shown(text: str) -> None:
    assert "s3cr3t" not in redacted(text)
    assert "***" in redacted(text)


def test_what_is_no_password_stays() -> None:
    for text in ("rtsp://10.0.0.7/cam", "gst: videotestsrc num-buffers=5 ! appsink name=video", "mail me @ noon"):
        assert redacted(text) == text


# --- supervision ------------------------------------------------------------------------------------------------------


def test_a_source_that_never_comes_is_tried_ever_more_rarely() -> None:
    supervisor = Supervisor("cam", SupervisorConfig())
    now, tries, events = 0, [], []
    while now < 60 * S:
        if supervisor.wants(now) == "open":
            tries.append(now / S)
            supervisor.opened(now)
            events += supervisor.ended("connection refused", now + 10 * MS)
        now += 50 * MS
    waits = np.diff(tries)
    assert waits[:5] == pytest.approx([0.3, 0.55, 1.05, 2.05, 4.05], abs=0.06)
    assert waits[5:] == pytest.approx(5.0, abs=0.06)
    assert [(e.kind, e.detail) for e in events] == [("unreachable", "connection refused")]  # once, not eighteen times


def test_a_source_that_comes_back_begins_a_segment() -> None:
    supervisor = Supervisor("cam", SupervisorConfig())
    supervisor.opened(0)
    assert [e.kind for e in supervisor.media(1 * S)] == ["connected"]
    assert supervisor.media(2 * S) == ()
    (lost,) = supervisor.ended("end of stream", 3 * S)
    assert (lost.kind, lost.detail, lost.source_id) == ("lost", "end of stream", "cam")
    assert supervisor.wants(3 * S + 200 * MS) is None
    assert supervisor.wants(3 * S + 250 * MS) == "open"
    supervisor.opened(4 * S)
    supervisor.ended("connection refused", 5 * S)
    supervisor.opened(6 * S)
    (back,) = supervisor.media(7 * S)
    assert (back.kind, back.gap_seconds, supervisor.segment, supervisor.reconnects) == ("reconnected", 5.0, 1, 1)
    supervisor.ended("end of stream", 8 * S)
    assert supervisor.wants(8 * S + 250 * MS) == "open", "the wait begins small again"


def test_a_source_that_freezes_or_hangs_is_closed() -> None:
    supervisor = Supervisor("cam", SupervisorConfig(stall_seconds=2, open_seconds=8))
    supervisor.opened(0)
    assert supervisor.wants(8 * S) is None
    assert supervisor.wants(9 * S) == "close"
    supervisor.media(9 * S)
    assert supervisor.wants(11 * S) is None
    assert supervisor.wants(12 * S) == "close"


def test_patience_may_end() -> None:
    supervisor = Supervisor("cam", SupervisorConfig(give_up_seconds=3))
    supervisor.opened(0)
    supervisor.ended("no route", 1 * S)
    assert supervisor.wants(3 * S) == "open"
    assert supervisor.wants(4 * S + MS) == "give_up"


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_zero_of_stamps_is_found_behind_a_backlog() -> None:
    """300 ms of a stream lay in buffers when it was opened; they arrive at once, the rest as it happens."""
    clock = StreamClock(known=False)
    placed = []
    for n in range(100):
        stamp = 1_460 * MS + n * 40 * MS  # MPEG-TS begins anywhere
        arrival = max(5 * S, 5 * S - 300 * MS + n * 40 * MS) + (n % 3) * 2 * MS
        at = clock.place(stamp, arrival)
        placed.append((at, arrival))
    kept = [(at, arrival) for at, arrival in placed if at is not None]
    assert 78 <= len(kept) <= 82  # half a second and the backlog are passed over
    lateness = [arrival - at for at, arrival in kept]
    assert min(lateness) == 0
    assert max(lateness) <= 4 * MS
    assert all(b[0] > a[0] for a, b in itertools.pairwise(kept))


@pytest.mark.parametrize("ppm", [-150, 150])
def test_a_sender_whose_clock_is_off_is_followed(ppm: int) -> None:
    clock = StreamClock(known=True)
    worst = 0
    for n in range(90_000):  # an hour
        stamp = n * 40 * MS
        arrival = round(stamp * (1 + ppm * 1e-6)) + 20 * MS + (n * 7919 % 11) * MS
        at = clock.place(stamp, arrival)
        assert at is not None
        if n > 4500:
            worst = max(worst, abs(arrival - (n * 7919 % 11) * MS - 20 * MS - at))
    assert worst < 12 * MS  # without following: 540 ms


def test_a_connection_that_cannot_keep_up_stays_visible() -> None:
    clock = StreamClock(known=True)
    for n in range(9_000):
        arrival = n * 41 * MS  # 2.5 % too slow: nobody's crystal
        at = clock.place(n * 40 * MS, arrival)
    assert at is not None
    assert arrival - at > 8_000 * MS


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("off", [3600 * S, 6 * S, -3600 * S])
@pytest.mark.parametrize("wrong", [5, 100])
def test_one_wrong_stamp_is_left_out_alone(wrong: int, off: int, known: bool) -> None:
    """One is while the connection settles."""
    clock = StreamClock(known=known)
    late = []
    for n in range(2000):
        at = clock.place(n * 40 * MS + (off if n == wrong else 0), n * 40 * MS + 20 * MS)
        if at is None:
            assert n == wrong or (n * 40 < 520 and not known), n
        else:
            late.append(n * 40 * MS + 20 * MS - at)
    assert max(late) - min(late) <= MS
    assert clock.take_jump() is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("off", [3600 * S, -3600 * S])
def test_stamps_that_go_on_elsewhere_are_followed(off: int, known: bool) -> None:
    """Sound notices 20 ms after pictures, late by up to 5 ms; they belong together as before."""
    clock = StreamClock(known=known)
    jumps, missing, apart = [], 0, set()
    for n in range(1000):
        at = {}
        for kind, delay in (("video", 0), ("audio", 20)):
            stamp = n * 40 * MS + delay * MS
            late = 30 * MS + (n * 7919 + delay) % 6 * MS
            at[kind] = clock.place(stamp + (off if stamp >= 20 * S else 0), stamp + late, kind)
            jump = clock.take_jump()
            jumps += [] if jump is None else [(kind, round(jump / S))]
        if at["video"] is None or at["audio"] is None:
            missing += n * 40 > 520
        else:
            apart.add(at["audio"] - at["video"])
            assert abs(stamp + late - 20 * MS - at["video"]) < 60 * MS
    assert jumps == [("video", off / S), ("audio", off / S)]
    assert 12 <= missing <= 14, "half a second"
    assert apart == {20 * MS}


def test_a_stall_and_what_waited_behind_it_are_no_jump() -> None:
    """The sender's buffer was full: after a part of it a picture comes that is 8 s younger."""
    clock = StreamClock(known=False)
    for n in [*range(1200), *range(1400, 2000)]:
        arrival = max(n * 40 * MS, 60 * S if n > 1000 else 0)
        assert clock.place(n * 40 * MS, arrival) == (None if n < 13 else n * 40 * MS)
    assert clock.take_jump() is None


def test_a_film_may_be_read_at_any_pace_and_have_gaps() -> None:
    clock = StreamClock(known=False, finite=True)
    stamps = [n * 40 * MS + (3600 * S if n > 100 else 0) for n in range(200)]
    assert [clock.place(stamp, 7 * S + n * MS) for n, stamp in enumerate(stamps)] == [7 * S + stamp for stamp in stamps]


class Deaf:
    """In the place of a worker: says nothing by itself."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def kill(self) -> None: ...

    def join(self, timeout: float) -> None: ...


def test_a_live_source_outlives_wrong_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera at 25 fps: one stamp an hour ahead, then its clock is set back by two, then another connection."""
    monkeypatch.setattr("avis_stream.sources.live.Child", Deaf)
    source = LiveSource("cam", {"reader": "ffmpeg"}, gives_pictures=True, gives_sound=False)
    clock = SessionClock()
    source.start(clock, lambda what: True)
    items: list[Item] = []

    def shown(connection: int, begin: int, count: int, off: int) -> None:
        items.extend(source.tick(begin * 40 * MS))
        for n in range(begin, begin + count):
            at = n * 40 * MS
            message = Message(wire.VIDEO, bytearray(12), at + off, clock.origin_ns + at, (2, 2), 0)
            items.extend(source.receive((connection, message), at))

    shown(1, 0, 500, 9000 * S)
    shown(1, 500, 1, 12_600 * S)
    shown(1, 501, 499, 9000 * S)
    shown(1, 1000, 500, 1800 * S)
    shown(1, 1500, 1, 5400 * S)
    items.extend(source.receive((1, Message(wire.ENDED, bytearray(b"reset"), None, 0, (0, 0), 0)), 1501 * 40 * MS))
    shown(3, 1520, 500, 77 * S)
    frames = [item for item in items if isinstance(item, VideoFrame)]
    assert [item.kind for item in items if isinstance(item, Event)] == ["connected", "jumped", "lost", "reconnected"]
    assert Counter(item.cause for item in items if isinstance(item, Lost)) == {"reconnect": 26, "wrong_stamp": 15}
    assert [len(list(group)) for _, group in itertools.groupby(frame.segment for frame in frames)] == [986, 487, 487]
    assert [frame.segment for frame in frames if frame.discontinuity] == [1, 2]
    assert all(b.pts_ns > a.pts_ns for a, b in itertools.pairwise(frames))
    assert all(abs(frame.frame_id * 40 * MS - frame.pts_ns) < 2 * S for frame in frames)


def microphone_blocks(seconds: int, ppm: float, seed: int = 0) -> list[tuple[int, int]]:
    """(samples, arrival) of 20-ms blocks of a card that is off by so much, late by up to some milliseconds."""
    random = np.random.default_rng(seed)
    blocks = []
    for n in range(seconds * 50):
        true_end = (n + 1) * 20 * MS * (1 + ppm * 1e-6)
        late = abs(random.normal(0, 3)) + (random.random() < 0.01) * random.random() * 40
        if n < 5:
            late += 400
        blocks.append((SAMPLE_RATE // 50, round(true_end + late * MS)))
    return blocks


def test_a_jittering_microphone_loses_nothing() -> None:
    clock = MicrophoneClock()
    assert sum(clock.place(samples, arrival)[1] for samples, arrival in microphone_blocks(120, 200)) == 0


def test_lost_samples_are_noticed_and_time_goes_on() -> None:
    clock = MicrophoneClock()
    blocks = microphone_blocks(60, 0)
    lost, at = [], 0
    for n, (samples, arrival) in enumerate(blocks):
        if 1500 <= n < 1510:
            continue  # 200 ms of sound never came
        at, missing = clock.place(samples, arrival)
        if missing:
            lost.append((n, missing / SAMPLE_RATE))
    assert len(lost) == 1
    assert lost[0][0] < 1600, "within two seconds"
    assert lost[0][1] == pytest.approx(0.2, abs=0.01)
    assert at == pytest.approx(59.98 * S, abs=10 * MS)


def test_the_latency_of_a_device_counts() -> None:
    near, far = MicrophoneClock(), MicrophoneClock(latency_ns=50 * MS)
    for samples, arrival in microphone_blocks(5, 0):
        a, b = near.place(samples, arrival)[0], far.place(samples, arrival)[0]
    assert a - b == 50 * MS


# --- flashes and tones ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", ["25", "29.97", "0.5", "30000/1001"])
def test_the_rate_of_a_made_scene(fps: str) -> None:
    assert FlashBeep.from_options({"fps": fps, "size": "8192x1"}).fps == Fraction(fps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": "1e2"}, {"fps": "1e1000000"}, {"fps": "1/0"}, {"fps": "-5"}, {"fps": "nan"}, {"size": "8193x90"},
        {"size": "100000x100000"}, {"size": "160x0"}, {"size": "160"}, {"seconds": "inf"}, {"skew_ms": "nan"},
    ],
    ids=str,
)  # fmt: skip
def test_a_made_scene_is_of_this_world(wrong: dict[str, str]) -> None:
    """Visitors of `serve` may ask for one; `Fraction` would take minutes over the digits of 1e1000000000."""
    with pytest.raises(ConfigError, match="flashbeep"):
        FlashBeep.from_options(wrong)


@pytest.mark.parametrize("skew_ms", [-70, -10, 0, 10, 50])
def test_skew_is_measured_from_seconds_that_overlap(skew_ms: int) -> None:
    """Windows cut through tones; only where one is seen to begin does it count."""
    fps, seconds = 25, 6
    time = np.arange(SAMPLE_RATE * seconds) / SAMPLE_RATE - skew_ms / 1000
    sound = np.where((time >= 1) & (time % 1 < 0.12), np.sin(2 * np.pi * 1000 * time), 0).astype(np.float32)
    stamps = np.arange(fps, fps * seconds) * S // fps
    brightness = np.array([235.0 if t % S < 0.12 * S else 16.0 for t in stamps.tolist()])
    ends = (stamps + S // fps) * SAMPLE_RATE // S
    beeps = [
        beep_onsets(sound[end - SAMPLE_RATE : end], (end - SAMPLE_RATE) * S // SAMPLE_RATE) for end in ends.tolist()
    ]
    found = skew_of(flash_onsets(stamps, brightness), np.unique(np.round(np.concatenate(beeps), 3)))
    assert found == pytest.approx(skew_ms / 1000, abs=0.002)


def test_a_device_that_may_not_be_opened_says_so_and_what_helps() -> None:
    remedy = "Permission denied; add your user to the group that owns it, usually video"
    assert words_of(PermissionError(13, "Permission denied")) == remedy
    assert words_of(OSError(19, "No such device")) == "No such device"
    detail = (
        "../sys/v4l2/v4l2_calls.c(622): gst_v4l2_open (): /GstPipeline:p/GstV4l2Src:s:\nsystem error: Permission denied"
    )
    assert _hint(detail) == f" {remedy}"
    assert _hint("streaming stopped, reason not-negotiated (-4)").startswith("; put videoconvert")
    assert _hint(None) == ""
