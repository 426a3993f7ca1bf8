"""Time of live sources on a clock that the tests hold: alignment, late or missing sound, wrong clocks, drops."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from avis_stream.errors import ConfigError
from avis_stream.sources.items import ItemSource
from avis_stream.sources.sample_clock import SampleClock
from avis_stream.stream.align import AlignerConfig, AVAligner
from avis_stream.stream.drift import DriftWatch
from avis_stream.stream.ingest import Ingest
from avis_stream.stream.policy import PairQueue
from avis_stream.stream.ring import SoundRing, stretched
from avis_stream.stream.session_config import SessionConfig
from avis_stream.types import SAMPLE_RATE, AudioChunk, AVPair, Event, VideoFrame

ROOT = Path(__file__).parents[2]
MS = 1_000_000
S = 1_000_000_000
PERIOD = 40 * MS
IMAGE = torch.zeros(3, 2, 2, dtype=torch.uint8)


def frame(number: int, *, segment: int = 0, period: int = PERIOD) -> VideoFrame:
    return VideoFrame(image=IMAGE, pts_ns=number * period, frame_id=number, segment=segment)


def chunk(begin_ms: int, length_ms: int = 20, *, valid: bool = True) -> AudioChunk:
    """Each sample is its own time in seconds, so that what is in a window can be read off."""
    first = begin_ms * SAMPLE_RATE // 1000
    samples = torch.arange(first, first + length_ms * SAMPLE_RATE // 1000, dtype=torch.float64) / SAMPLE_RATE
    return AudioChunk(samples=samples.float(), pts_ns=begin_ms * MS, valid=valid)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_a_frame_waits_for_the_second_that_ends_with_its_interval() -> None:
    aligner = AVAligner()
    for begin in range(0, 2000, 20):
        aligner.push_audio(chunk(begin))
    assert aligner.push_video(frame(50), duration_ns=PERIOD, now_ns=2000 * MS) == []  # ends at 2.04 s
    aligner.push_audio(chunk(2000))
    assert aligner.ready(2020 * MS) == []
    aligner.push_audio(chunk(2020))
    (pair,) = aligner.ready(2041 * MS)
    assert pair.frame.frame_id == 50
    assert pair.audio_valid == 1.0
    assert pair.audio[0] == pytest.approx(1.04, abs=1e-4)
    assert pair.audio[-1] == pytest.approx(2.04 - 1 / SAMPLE_RATE, abs=1e-4)
    assert aligner.late == 0


def test_a_file_at_one_frame_a_second_hears_the_second_after_the_frame() -> None:
    aligner = AVAligner()
    for begin in range(0, 3000, 100):
        aligner.push_audio(chunk(begin, 100))
    (pair,) = aligner.push_video(frame(1, period=S), duration_ns=S, now_ns=0)
    assert pair.audio[0] == pytest.approx(1.0)
    assert pair.audio[-1] == pytest.approx(2.0, abs=1e-3)


def test_sound_that_does_not_come_is_waited_for_so_long_and_no_longer() -> None:
    aligner = AVAligner(AlignerConfig(audio_wait_ms=200))
    for begin in range(0, 500, 20):
        aligner.push_audio(chunk(begin))
    assert aligner.push_video(frame(25), duration_ns=PERIOD, now_ns=1040 * MS) == []
    assert aligner.deadline_ns() == 1240 * MS
    assert aligner.ready(1239 * MS) == []
    (pair,) = aligner.ready(1240 * MS)
    assert pair.audio_valid == pytest.approx((500 - 40) / 1000, abs=1e-3)
    assert not pair.audio[round(0.47 * SAMPLE_RATE) :].any()
    assert pair.valid_samples == SAMPLE_RATE, "late sound makes no encoder deaf to what came"
    assert aligner.late == 1
    assert aligner.deadline_ns() is None


@pytest.mark.parametrize("how", ["never", "ended"])
def test_without_sound_nothing_waits(how: str) -> None:
    aligner = AVAligner(has_audio=how != "never")
    if how == "ended":
        aligner.push_audio(chunk(0))
        aligner.end_audio()
    (pair,) = aligner.push_video(frame(60), duration_ns=PERIOD, now_ns=0)
    assert pair.audio_valid == 0.0
    assert pair.valid_samples == (0 if how == "never" else SAMPLE_RATE)
    assert aligner.late == 0


@pytest.mark.parametrize("samples", [-1, SAMPLE_RATE + 1, 0.5])
def test_a_second_has_so_many_samples(samples: float) -> None:
    with pytest.raises(ConfigError, match=r"AVPair\.valid_samples must be"):
        AVPair(frame=frame(0), audio=torch.zeros(SAMPLE_RATE), valid_samples=samples)  # type: ignore[arg-type]


def test_sound_that_starts_late_is_used_from_then_on() -> None:
    aligner = AVAligner()
    for number in range(10):
        aligner.push_video(frame(number), duration_ns=PERIOD, now_ns=number * PERIOD)
    assert [p.audio_valid for p in aligner.ready(700 * MS)] == [0.0] * 4  # the last four; the others had waited enough
    for begin in range(1000, 2000, 20):
        aligner.push_audio(chunk(begin))
    (pair,) = [p for p in aligner.push_video(frame(48), duration_ns=PERIOD, now_ns=1960 * MS) if p.frame.frame_id == 48]
    assert pair.audio_valid == pytest.approx(0.96, abs=1e-3)


def test_too_many_waiting_frames_drop_the_oldest_and_count_it() -> None:
    aligner = AVAligner(AlignerConfig(max_pending=3, audio_wait_ms=10_000))
    for number in range(8):
        assert aligner.push_video(frame(number), duration_ns=PERIOD, now_ns=0) == []
    assert aligner.pending == 3
    assert aligner.dropped == {"audio_late": 5}
    assert [p.frame.frame_id for p in aligner.ready(20 * S)] == [5, 6, 7]


def test_a_new_segment_releases_the_old_and_forgets_its_sound() -> None:
    aligner = AVAligner()
    for begin in range(0, 1000, 20):
        aligner.push_audio(chunk(begin))
    aligner.push_video(frame(26), duration_ns=PERIOD, now_ns=1040 * MS)
    (old,) = aligner.push_video(frame(30, segment=1), duration_ns=PERIOD, now_ns=1200 * MS)
    assert old.frame.frame_id == 26
    assert old.audio_valid > 0.9
    (new,) = aligner.ready(1400 * MS)
    assert new.frame.segment == 1
    assert new.audio_valid == 0.0


def test_a_microphone_of_its_own_hears_on_while_the_camera_is_away() -> None:
    aligner = AVAligner(same_source=False)
    for begin in range(0, 1400, 20):
        aligner.push_audio(chunk(begin))
    assert aligner.push_video(frame(35), duration_ns=PERIOD, now_ns=1400 * MS) == []
    assert aligner.push_video(frame(36, segment=1), duration_ns=PERIOD, now_ns=1410 * MS) == []
    for begin in range(1400, 1500, 20):
        aligner.push_audio(chunk(begin))
    old, new = aligner.ready(1500 * MS)
    assert (old.frame.segment, new.frame.segment) == (0, 1)
    assert (old.audio_valid, new.audio_valid) == (1.0, 1.0)


@pytest.mark.parametrize("apart", [False, True])
def test_sound_and_pictures_know_whether_they_share_a_source(apart: bool) -> None:
    def source(*, pictures: bool, sound: bool) -> ItemSource:
        return ItemSource("it", (), realtime=True, gives_pictures=pictures, gives_sound=sound)

    both = [source(pictures=True, sound=not apart)] + [source(pictures=False, sound=True)] * apart
    ingest = Ingest(both, SessionConfig(), live=True, wants_previous=False)
    for begin in range(0, 1400, 20):
        ingest.take(chunk(begin), begin * MS)
    ingest.take(frame(30), 1200 * MS)
    pairs, _ = ingest.take(frame(34, segment=1), 1400 * MS)
    assert [pair.audio_valid for pair in pairs] == ([1.0] if apart else []), "its sound is still there, or to come"


def test_when_a_frame_came_in_is_known_however_many_wait() -> None:
    """Of a recording whose sound comes from elsewhere thousands may; those that the aligner drops are passed over."""
    source = ItemSource("it", (), realtime=False, gives_pictures=True, gives_sound=True)
    ingest = Ingest([source], SessionConfig(), live=False, wants_previous=False)
    for number in range(10_003):
        assert not ingest.take(frame(number), 7 + number)[0]
    pairs = ingest.rest()
    assert [pair.frame.frame_id for pair in pairs] == list(range(3, 10_003))
    assert [ingest.arrived_ns(pair) for pair in pairs] == [7 + n for n in range(3, 10_003)]


def test_a_frame_that_nobody_noted_takes_no_other_from_the_record() -> None:
    source = ItemSource("it", (), realtime=False, gives_pictures=True, gives_sound=True)
    ingest = Ingest([source], SessionConfig(), live=False, wants_previous=False)
    for number in range(3):
        ingest.take(frame(number), 7 + number)
    unknown = AVPair(frame=frame(9), audio=torch.zeros(SAMPLE_RATE), audio_valid=0.0, end_ns=10 * PERIOD)
    assert ingest.arrived_ns(unknown) is None
    assert [ingest.arrived_ns(pair) for pair in ingest.rest()] == [7, 8, 9]


def test_filler_does_not_count_as_heard() -> None:
    aligner = AVAligner()
    for begin in range(0, 1000, 20):
        aligner.push_audio(chunk(begin, valid=not 400 <= begin < 500))
    (pair,) = aligner.push_video(frame(24), duration_ns=PERIOD, now_ns=0)
    assert pair.audio_valid == pytest.approx(0.9, abs=1e-3)


def test_an_offset_moves_sound() -> None:
    aligner = AVAligner(AlignerConfig(audio_offset_ms=100))
    for begin in range(0, 2000, 20):
        aligner.push_audio(chunk(begin))
    (pair,) = aligner.push_video(frame(40), duration_ns=PERIOD, now_ns=0)
    assert pair.audio[-1] == pytest.approx(1.54, abs=1e-3)


@pytest.mark.parametrize("bad", [{"audio_wait_ms": -1}, {"max_pending": 0}, {"ring_seconds": 1.0}])
def test_aligner_configuration_is_checked(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AlignerConfig(**bad)  # type: ignore[arg-type]


# --- the ring ---------------------------------------------------------------------------------------------------------


def test_a_hole_is_missing_and_an_overlap_is_heard_once() -> None:
    ring = SoundRing()
    ring.push(np.full(8000, 0.1, np.float32), 0)
    ring.push(np.full(4000, 0.2, np.float32), 750 * MS)  # 250 ms are missing
    ring.push(np.full(8000, 0.3, np.float32), 500 * MS)  # repeats all of it: nothing new but its last part
    samples, heard = ring.window(16_000)
    assert heard == pytest.approx(0.75)
    assert np.unique(samples).tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert ring.end == 16_000


def test_what_is_older_than_the_ring_is_missing() -> None:
    ring = SoundRing(seconds=3)
    ring.push(np.ones(5 * SAMPLE_RATE, np.float32), 0)
    assert ring.window(3 * SAMPLE_RATE)[1] == 1.0
    assert ring.window(2 * SAMPLE_RATE + 800)[1] == pytest.approx(0.05)
    assert ring.window(SAMPLE_RATE)[1] == 0.0
    assert ring.window(6 * SAMPLE_RATE)[1] == 0.0


@pytest.mark.parametrize("off_ms", [3_600_000, -3_600_000])
def test_a_wrong_time_silences_nothing_that_follows(off_ms: int) -> None:
    ring = SoundRing()
    for begin in range(10_000_000, 10_004_000, 100):
        wrong = off_ms if begin == 10_002_000 else 0
        ring.push(np.ones(1600, np.float32), (begin + wrong) * MS)
    assert ring.end == 10_004 * SAMPLE_RATE
    assert ring.window(ring.end)[1] == 1.0
    assert ring.window(ring.end - SAMPLE_RATE)[1] == pytest.approx(0.9, abs=1e-3), "what the wrong one stands for"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_block_with_something_that_is_no_number_is_missing(broken: float) -> None:
    ring = SoundRing()
    ring.push(np.full(8000, 0.1, np.float32), 0)
    ring.push(np.full(320, broken, np.float32), 501 * MS)  # one that would be stretched
    ring.push(np.full(7680, 0.1, np.float32), 520 * MS)
    samples, heard = ring.window(16_000)
    assert np.isfinite(samples).all()
    assert heard == pytest.approx(1 - 320 / 16_000, abs=1e-3)


def test_a_stretch_makes_no_click() -> None:
    tone = np.sin(np.arange(320) * 0.2).astype(np.float32)
    longer = stretched(tone, 321)
    assert len(longer) == 321
    assert longer[0] == tone[0]
    assert longer[-1] == tone[-1]
    assert np.abs(np.diff(longer)).max() <= np.abs(np.diff(tone)).max() + 1e-6


@pytest.mark.parametrize(("seconds", "block"), [(3600, 320), (86_400, 8000)])
def test_a_sound_card_200_ppm_off_stays_in_step(seconds: int, block: int) -> None:
    """An hour in blocks of 20 ms that arrive late by 5 ms on average, at times by 60; then a day of such blocks, of
    which only the earliest of every 25 is looked at."""
    rng = np.random.default_rng(0)
    clock, ring = SampleClock(SAMPLE_RATE), SoundRing()
    rate = SAMPLE_RATE * (1 - 200e-6)
    silence, jitter = np.zeros(block, np.float32), 5 * MS * 320 / block  # the least of n is one n times as quick
    worst = 0.0
    kept = 0
    begin = 7 * S
    for number in range(1, int(seconds * rate / block)):
        total = number * block
        taken = begin + total / rate * S
        stale = 460 * MS if number == 1 else 0
        clock.observe(total, round(taken + stale + rng.exponential(jitter)))
        start = clock.time_of(total - block)
        ring.push(silence, start)
        if total > SampleClock.STALE_SECONDS * SAMPLE_RATE + SAMPLE_RATE:
            assert ring.end is not None
            worst = max(worst, abs(ring.end / SAMPLE_RATE * 1000 - taken / MS))
            kept += 1
    assert kept > 1000
    assert worst < 5.0, f"{worst:.2f} ms"
    assert clock.rate_ppm == pytest.approx(200, abs=3)
    assert len(clock._earliest) <= SampleClock.WINDOWS
    assert len(ring._samples) == 8 * SAMPLE_RATE


def test_a_sample_clock_says_when_it_knows_nothing() -> None:
    with pytest.raises(RuntimeError, match="no block of sound has arrived yet"):
        SampleClock(48_000).time_of(0)


# --- drift ------------------------------------------------------------------------------------------------------------


def test_drift_beyond_the_limit_is_corrected_once() -> None:
    """Sound slips behind by 1 ms a second; pictures and sound share a network that slows down."""
    watch, added = DriftWatch(), 0
    rng = np.random.default_rng(0)
    corrections = []
    for second in range(400):
        network = 20 * MS + second * MS // 10
        for kind, slip in (("video", 0), ("audio", second * MS)):
            for part in range(10):
                taken = second * S + part * 100 * MS
                pts = taken - (slip - added if kind == "audio" else 0)
                change = watch.observe(kind, pts, taken + network + round(rng.exponential(3 * MS)))  # type: ignore[arg-type]
                added += change
                if change:
                    corrections.append((second, change))
        if second > 60:
            assert abs(second * MS - added) < 150 * MS
    assert 3 <= len(corrections) <= 6
    assert all(80 * MS < change < 130 * MS for _, change in corrections)


@pytest.mark.parametrize("step_ms", [-120, 120])
@pytest.mark.parametrize("late_ms", [190, 210])
def test_a_step_is_corrected_once_whatever_closes_the_window(late_ms: int, step_ms: int) -> None:
    """Pictures come 200 ms after they were taken, after 70 s so much earlier or later; sound before or after them."""
    watch, added, corrections = DriftWatch(), 0, []
    arrivals = []
    for taken in range(0, 300 * S, PERIOD):
        arrivals.append((taken + late_ms * MS, "audio", taken))
        arrivals.append((taken + (200 - step_ms * (taken > 70 * S)) * MS, "video", taken))
    for arrival, kind, taken in sorted(arrivals):
        change = watch.observe(kind, taken + added * (kind == "audio"), arrival)  # type: ignore[arg-type]
        added += change
        corrections += [change] if change else []
    assert corrections == [step_ms * MS]
    assert watch.drift_ns == 0


def test_a_drift_is_told_with_the_name_of_its_source() -> None:
    """Who watches is told of sources alone; an event without one would be taken for an identity's."""
    source = ItemSource("cam", (), realtime=True, gives_pictures=True, gives_sound=True)
    ingest = Ingest([source], SessionConfig(), live=True, wants_previous=False)
    told: list[Event] = []
    for number in range(25 * 150):
        now = number * PERIOD
        told += ingest.take(frame(number), now)[1]
        told += ingest.take(chunk(number * 40, 40), now + 40 * MS + number * PERIOD // 1000)[1]
    assert [(event.kind, event.source_id) for event in told] == [("drift", "cam")]
    assert told[0].detail.startswith("sound moved by ")


def test_without_one_of_them_there_is_no_drift() -> None:
    watch = DriftWatch()
    assert not any(watch.observe("video", t * S, t * S + t * 5 * MS) for t in range(200))
    assert watch.drift_ns == 0


# --- what may be dropped ----------------------------------------------------------------------------------------------


def pair(number: int) -> AVPair:
    return AVPair(frame=frame(number), audio=torch.zeros(SAMPLE_RATE))


def serve(queue: PairQueue, *, step_ms: int, seconds: int) -> tuple[list[float], int]:
    """A camera at 25 fps and a model of so many ms a step: ages of the frames when taken, and how many were refused."""
    ages, refused, busy_until = [], 0, 0
    for number in range(seconds * 25):
        now = number * PERIOD
        while busy_until <= now and (taken := queue.take(busy_until if busy_until > now - PERIOD else now)) is not None:
            at = max(busy_until, taken.frame.pts_ns)
            ages.append((at - taken.frame.pts_ns) / MS)
            busy_until = at + step_ms * MS
        refused += not queue.offer(pair(number))
    return ages, refused


def test_a_slow_model_never_gets_a_frame_older_than_the_bound() -> None:
    queue = PairQueue("auto", live=True, max_latency_ms=500)
    ages, refused = serve(queue, step_ms=300, seconds=60)
    assert max(ages) <= 500 + 40
    assert refused == 0
    assert len(ages) + sum(queue.dropped.values()) + len(queue) == 60 * 25
    assert queue.dropped["stale"] > 1000


def test_a_model_that_cannot_keep_up_gets_the_newest() -> None:
    """In order, every frame would be as old as is just allowed."""
    ages, _ = serve(PairQueue("auto", live=True, max_latency_ms=500), step_ms=100, seconds=60)
    assert np.mean(ages[40:]) < 60
    assert max(ages[40:]) <= 80


@pytest.mark.parametrize("step_ms", [41, 42, 44, 48])
def test_a_model_that_hardly_keeps_up_does_not_let_frames_grow_old(step_ms: int) -> None:
    """They go in order, as fewer than 1.3 arrive between two takes; how long some have been waiting says it."""
    queue = PairQueue("auto", live=True, max_latency_ms=500)
    ages, _ = serve(queue, step_ms=step_ms, seconds=60)
    assert max(ages) < 40 + 1000 * (step_ms - 40) / 40 + step_ms, "as old as what comes within a second is late"
    assert queue.dropped["stale"] < 60 * (25 - 1000 / step_ms) + 25, "no more are passed over than there is no time for"


def test_pairs_that_come_together_after_a_long_time_are_all_taken() -> None:
    queue = PairQueue("auto", live=True, max_latency_ms=500)
    for number in range(0, 500, 50):
        assert queue.offer(pair(number))
        assert queue.offer(pair(number + 1))
        taken = [queue.take((number + 2) * PERIOD) for _ in range(3)]
        assert [None if one is None else one.frame.frame_id for one in taken] == [number, number + 1, None]


def test_looking_into_an_empty_queue_counts_nothing() -> None:
    queue, taken = PairQueue("auto", live=True, max_latency_ms=500), 0
    for number in range(400):
        queue.offer(pair(number))
        if number % 4 == 3:
            taken += queue.take(number * PERIOD) is not None
            if number > 200:  # it is behind by now, so one look empties it
                assert queue.take(number * PERIOD) is None
    assert len(queue) == 0
    assert taken + queue.dropped["stale"] == 400


def test_a_long_step_now_and_then_loses_nothing() -> None:
    queue, busy_until, taken = PairQueue("auto", live=True, max_latency_ms=500), 0, 0
    for number in range(60 * 25):
        now = number * PERIOD
        while busy_until <= now and queue.take(now) is not None:
            busy_until = max(busy_until, now - PERIOD) + (200 if taken % 25 == 0 else 25) * MS
            taken += 1
        queue.offer(pair(number))
    assert not queue.dropped


def test_latest_is_always_the_newest() -> None:
    queue = PairQueue("latest", live=True)
    ages, _ = serve(queue, step_ms=300, seconds=30)
    assert max(ages) <= 40
    assert set(queue.dropped) == {"queue_full"}


def test_a_fast_model_loses_nothing() -> None:
    for policy in ("auto", "latest", "every"):
        queue = PairQueue(policy, live=True)
        ages, refused = serve(queue, step_ms=10, seconds=20)
        assert (len(ages), refused, dict(queue.dropped)) == (20 * 25 - 1, 0, {})


@pytest.mark.parametrize(("policy", "live"), [("every", True), ("every", False), ("auto", False)])
def test_where_nothing_may_be_lost_a_full_queue_refuses(policy: str, live: bool) -> None:
    queue = PairQueue(policy, live=live, capacity=4)  # type: ignore[arg-type]
    assert [queue.offer(pair(n)) for n in range(5)] == [True] * 4 + [False]
    assert [p.frame.frame_id for _ in range(4) if (p := queue.take(100 * S)) is not None] == [0, 1, 2, 3]
    assert queue.take(100 * S) is None
    assert not queue.dropped


def test_every_cause_of_a_loss_is_in_the_guide() -> None:
    code = "".join(path.read_text() for path in (ROOT / "avis_stream").rglob("*.py"))
    causes = set(re.findall(r"""Lost\(\w+, "(\w+)"\)|dropped\["(\w+)"\]""", code))
    (told,) = re.findall(r"\*\*Losses\*\*.*?(?=\n- )", (ROOT / "docs" / "live.md").read_text(), re.DOTALL)
    assert len(causes) >= 7
    for cause in causes:
        assert f"`{''.join(cause)}`" in told


def test_an_old_frame_is_better_than_none() -> None:
    queue = PairQueue("auto", live=True, max_latency_ms=100)
    queue.offer(pair(0))
    taken = queue.take(10 * S)
    assert taken is not None
    assert taken.frame.frame_id == 0


def test_a_policy_must_be_one() -> None:
    with pytest.raises(ConfigError, match="policy must be one of auto, latest, every, got 'newest'"):
        PairQueue("newest", live=True)  # type: ignore[arg-type]
