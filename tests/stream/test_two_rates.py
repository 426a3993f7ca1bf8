"""Steps once a hop, masks in between, identities through gaps; the picture 100 ms earlier; the length of a frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from live_tools import StubSegmenter
from small_model import open_config, scene, small_model

from avis_stream.errors import ConfigError
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.stream.two_rates import EarlierPictures, FramePeriod, RatesConfig, TwoRates
from avis_stream.types import SAMPLE_RATE, AVPair, VideoFrame

MS = 1_000_000
S = 1_000_000_000


def frame(number: int, *, period: int = 40 * MS, segment: int = 0, width: int = 4, start: int = 0) -> VideoFrame:
    image = torch.full((3, 4, width), number % 256, dtype=torch.uint8)
    return VideoFrame(image=image, pts_ns=start + number * period, frame_id=number, segment=segment)


def pair(number: int, **options: int) -> AVPair:
    return AVPair(frame=frame(number, **options), audio=torch.zeros(SAMPLE_RATE))


def test_one_step_a_second_and_masks_in_between() -> None:
    segmenter = StubSegmenter()
    rates = TwoRates(segmenter)
    done = [rates(pair(n)) for n in range(100)]
    steps = [n for n, one in enumerate(done) if one is not None and not one[1]]
    assert steps == [0, 25, 50, 75]
    assert all(one is not None and one[0].frame_id == n for n, one in enumerate(done)), (
        "refreshed ones are numbered too"
    )
    assert [p.frame.frame_id for p in segmenter.steps] == steps


def test_what_lies_between_steps_can_be_done_later_and_is_of_the_state_it_was_begun_with() -> None:
    class Telling(StubSegmenter):
        def refresh_pair(self, pair: AVPair, state: int) -> Any:
            states.append(state)
            return super().refresh_pair(pair, state)

    states: list[int] = []
    rates = TwoRates(Telling())
    rates(pair(0))
    jobs = [rates.between(pair(n)) for n in (1, 2)]
    assert states == []
    results = [job() for job in reversed(jobs) if job is not None]
    assert [result.frame_id for result in results] == [2, 1]
    rates(pair(25))
    last = rates.between(pair(26))
    assert last is not None
    last()
    assert states == [1, 1, 2]
    assert TwoRates(StubSegmenter(), RatesConfig(refresh=False)).between(pair(1)) is None


def test_a_step_is_expected_by_the_distance_between_frames() -> None:
    rates = TwoRates(StubSegmenter())
    assert rates.expects_step()
    expected = []
    for n in range(0, 62, 3):
        is_step = rates.is_step(pair(n))
        expected.append(rates.expects_step() == is_step)
        rates(pair(n))
    assert all(expected[2:]), "once there are two frames"


@pytest.mark.parametrize("late", [{"alignment": "official"}, {"refine_delay": 2}], ids=str)
def test_results_that_come_late_are_refused_in_so_many_words(late: dict[str, Any]) -> None:
    segmenter = StubSegmenter()
    segmenter.config = OnlineConfig(**late)
    with pytest.raises(ConfigError, match=r"alignment=.* and refine_delay=.*OnlineSegmenter\.step") as refused:
        TwoRates(segmenter)
    assert "frame_size" not in str(refused.value), "nobody can give it here"


def test_frames_that_jitter_do_not_put_steps_off() -> None:
    segmenter = StubSegmenter()
    rates = TwoRates(segmenter)
    for n in range(75):
        jittering = pair(n)
        moved = jittering.frame.pts_ns + (n % 5) * 4 * MS - 8 * MS
        rates(replace(jittering, frame=replace(jittering.frame, pts_ns=moved)))
    assert [p.frame.frame_id for p in segmenter.steps] == [0, 25, 50]


def test_at_one_frame_a_second_all_are_steps() -> None:
    segmenter = StubSegmenter()
    rates = TwoRates(segmenter)
    assert [rates(pair(n, period=S)) is not None for n in range(5)] == [True] * 5
    assert len(segmenter.steps) == 5


def test_without_refresh_frames_between_steps_give_nothing() -> None:
    rates = TwoRates(StubSegmenter(), RatesConfig(refresh=False))
    assert [n for n in range(50) if rates(pair(n)) is not None] == [0, 25]


@pytest.mark.parametrize(("gap", "told"), [(5, [0, 0]), (20, [0, 1])])
def test_short_interruptions_are_not_told(gap: int, told: list[int]) -> None:
    segmenter = StubSegmenter()
    rates = TwoRates(segmenter)
    rates(pair(0))
    rates(pair(1, segment=1, start=gap * S))
    assert [p.frame.segment for p in segmenter.steps] == told


@pytest.mark.parametrize("refresh", [True, False])
def test_an_interruption_begins_with_the_last_frame_whatever_is_drawn(refresh: bool) -> None:
    segmenter = StubSegmenter()
    rates = TwoRates(segmenter, RatesConfig(refresh=refresh, keep_seconds=2.0))
    for n in range(25):
        rates(pair(n))
    rates(pair(0, segment=1, start=24 * 40 * MS + 1900 * MS))
    assert [p.frame.segment for p in segmenter.steps] == [0, 0]


def test_a_long_interruption_may_begin_anew() -> None:
    rates = TwoRates(StubSegmenter(), RatesConfig(on_gap="reset"))
    rates(pair(0))
    done = rates(pair(1, segment=1, start=20 * S))
    assert done is not None
    assert [event.kind for event in done[0].events] == ["born"]


def test_identities_live_through_a_short_interruption() -> None:
    """With a real model: the same ids before and after, and none is made to return by its looks."""
    shown = scene(8)
    rates = TwoRates(OnlineSegmenter(small_model(), open_config()))

    def at(n: int, segment: int, start: int) -> set[int]:
        one = VideoFrame(image=shown.frames[n], pts_ns=start + n * S, frame_id=n, segment=segment)
        done = rates(AVPair(frame=one, audio=shown.audio[n]))
        assert done is not None
        assert not any(event.kind in ("gap", "dormant") for event in done[0].events)
        return set(done[0].track_id.tolist())

    before = [at(n, 0, 0) for n in range(4)][-1]
    after = at(4, 1, 5 * S)
    assert before
    assert before <= after


def test_the_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="on_gap"):
        RatesConfig(on_gap="forget")


# --- helpers ----------------------------------------------------------------------------------------------------------


def test_the_picture_a_tenth_of_a_second_before() -> None:
    earlier = EarlierPictures()
    frames = [earlier.attach(frame(n)) for n in range(20)]
    assert [f.previous is None for f in frames[:4]] == [True, True, False, False]  # 80 ms is near enough
    for n in range(4, 20):
        previous = frames[n].previous
        assert previous is not None
        assert n - int(previous[0, 0, 0]) in (2, 3)


def test_no_picture_from_before_a_cut_or_a_change_of_size() -> None:
    earlier = EarlierPictures()
    for n in range(10):
        earlier.attach(frame(n))
    assert earlier.attach(frame(10, segment=1)).previous is None
    for n in range(11, 20):
        earlier.attach(frame(n, segment=1))
    assert earlier.attach(frame(20, segment=1, width=8)).previous is None
    assert earlier.attach(frame(40, segment=1, width=8)).previous is None, "0.8 s before is another matter"


def test_how_long_a_frame_is_shown() -> None:
    period = FramePeriod()
    found = [period.of(frame(n if n < 50 else n + 7)) for n in range(100)]
    assert set(found) == {40 * MS}
    slow = FramePeriod()
    assert [slow.of(frame(n, period=S)) for n in range(3)] == [40 * MS, S, S]
