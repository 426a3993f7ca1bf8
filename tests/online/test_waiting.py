"""Frames that are kept back: what the seconds since say about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import open_config, play, scene, small_model, with_postprocess

from avis_stream.errors import CheckpointError
from avis_stream.models.sounding_chain import MOST, carried, smoothed
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.online.state import DelayLine
from avis_stream.online.waiting import delay_line, odds_since
from avis_stream.types import NANOSECONDS, OnlineResult

IDENTITIES, STAY = 3, 0.8


def line_of(evidence: torch.Tensor, seen: torch.Tensor, delay: int) -> DelayLine:
    """A delay line after T frames of evidence [I, T], one second apart, of identities 1, 2, 3 where they were seen."""
    line = delay_line(delay, torch.zeros(1, 2, 2), torch.zeros(4), IDENTITIES)
    odds, since = torch.zeros(IDENTITIES), torch.zeros(IDENTITIES)
    for t in range(evidence.shape[1]):
        place = t % (delay + 1)
        since += 1
        odds = torch.where(seen[:, t], carried(odds, STAY, since) + evidence[:, t], odds)
        since = torch.where(seen[:, t], 0.0, since)
        line.pts_ns[place] = t * NANOSECONDS
        line.seen_as[place] = torch.where(seen[:, t], torch.arange(1, IDENTITIES + 1), 0)
        line.odds[place], line.heard[place] = odds, evidence[:, t]
        line.filled += 1
    return line


def test_seconds_since_say_what_they_say_in_a_clip() -> None:
    """With the last D seconds waited for, a frame's chance is that of the clip which ends there."""
    torch.manual_seed(0)
    evidence, rows = torch.randn(IDENTITIES, 9), torch.arange(IDENTITIES)
    seen = torch.rand(IDENTITIES, 9) > 0.2
    assert not seen.all()
    wanted = smoothed(evidence * seen, STAY)
    for delay in (0, 1, 4):
        line, frame = line_of(evidence, seen, delay), 8 - delay
        here = seen[:, frame]
        found = odds_since(line, frame, rows, rows + 1, STAY).sigmoid()
        assert here.any()
        torch.testing.assert_close(found[here], wanted[here, frame], atol=1e-5, rtol=0)


def test_across_a_gap_seconds_say_nothing() -> None:
    evidence, rows = torch.full((IDENTITIES, 6), 2.0), torch.arange(IDENTITIES)
    line = line_of(evidence, torch.ones(IDENTITIES, 6, dtype=torch.bool), 3)
    for t in (4, 5):
        line.segment[t % 4] = 1
    alone = odds_since(line, 3, rows, rows + 1, STAY)
    assert torch.equal(alone, line.odds[3])
    assert (odds_since(line, 2, rows, rows + 1, STAY) > line.odds[2]).all()  # one second since, before the gap


def test_the_first_segment_that_is_announced_is_no_gap() -> None:
    """As for events: nothing was interrupted before the source said where it is."""
    line, rows = (
        line_of(torch.full((IDENTITIES, 6), 2.0), torch.ones(IDENTITIES, 6, dtype=torch.bool), 3),
        torch.arange(3),
    )
    line.segment[:] = 7
    line.segment[3] = torch.iinfo(torch.int64).min
    assert (odds_since(line, 3, rows, rows + 1, STAY) > line.odds[3]).all()


def test_whoever_took_the_row_since_says_nothing() -> None:
    evidence, rows = torch.full((IDENTITIES, 4), MOST), torch.arange(IDENTITIES)
    line = line_of(evidence, torch.ones(IDENTITIES, 4, dtype=torch.bool), 1)
    line.seen_as[1] = torch.tensor([1, 2, 9])
    before, after = line.odds[0], odds_since(line, 2, rows, rows + 1, STAY)
    assert (after[:2] > before[:2]).all()
    assert after[2] == before[2]


def test_the_state_has_room_for_every_identity() -> None:
    """What is kept of a frame follows `max_identities`, not the number of queries."""
    online = OnlineSegmenter(small_model(), OnlineConfig(refine_delay=2, max_identities=7))
    delay = online.init_state((48, 80)).body.delay
    assert delay is not None
    assert delay.odds.shape == delay.heard.shape == delay.seen_as.shape == (3, 7)
    assert delay.class_id is delay.score is None, "those of video queries cannot be drawn once they have left"


def test_a_stream_that_waits_shows_what_a_clip_that_ends_later_shows() -> None:
    """Frame queries as objects, through the segmenter: who sounds is smoothed over the seconds that were waited for."""
    film, delay = scene(14), 2
    model = with_postprocess(small_model(objects="frame"), sounding_stay=STAY)
    settings = {"presence_threshold": 0.5, "show_score": 0.0}
    at_once = OnlineSegmenter(model, open_config(**settings))
    late = OnlineSegmenter(model, open_config(refine_delay=delay, **settings))
    now_state, late_state = at_once.init_state(), late.init_state((48, 80))
    heard: dict[int, list[float]] = {}
    changed = compared = 0
    for t in range(len(film)):
        (now,), now_state = play(at_once, film, now_state, range(t, t + 1))
        (then,), late_state = play(late, film, late_state, range(t, t + 1))
        table = now_state.body.table
        for row in table.live.tolist():
            seen = int(table.seen_ns[row]) == now.pts_ns
            series = heard.setdefault(int(table.public_id[row]), [0.0] * t)
            series.append(float(table.heard[row]) if seen else 0.0)
        for series in heard.values():
            series += [0.0] * (t + 1 - len(series))
        k = then.frame_id
        if k < 0:
            continue
        for track_id, sounds in zip(then.track_id.tolist(), then.sounding.tolist(), strict=True):
            if track_id in heard and heard[track_id][k] != 0:
                chance = smoothed(torch.tensor(heard[track_id])[None], STAY)[0, k]
                if abs(float(chance) - 0.5) > 1e-3:
                    compared += 1
                    changed += bool(chance > 0.5) != (heard[track_id][k] > 0)
                    assert sounds == bool(chance > 0.5)

    assert compared >= 10
    assert changed  # by seconds around them


def test_whoever_leaves_a_full_table_stays_in_the_frames_still_due(tmp_path: Path) -> None:
    """A gap makes all dormant and newcomers take their places: the frames before it were seen all the same."""
    film, delay = scene(14), 3
    model = small_model(objects="frame")
    at_once = OnlineSegmenter(model, open_config(max_identities=6))
    late = OnlineSegmenter(model, open_config(max_identities=6, refine_delay=delay))
    now_state, late_state = at_once.init_state(), late.init_state((48, 80))
    seen, pushed_out = dict[int, OnlineResult](), set[int]()
    for t in range(12):
        frame, sound, segment = film.frames[t], film.audio[t], int(t >= 7)
        seen[t], now_state = at_once.step(frame, sound, now_state, segment=segment)
        pushed_out |= {int(e.track_id or 0) for e in seen[t].events if e.detail == "table full"}
        then, late_state = late.step(frame, sound, late_state, segment=segment)
        if then.frame_id >= 0:
            was = seen[then.frame_id]
            assert sorted(then.track_id[then.sounding].tolist()) == sorted(was.track_id[was.sounding].tolist())
        if t == 7:  # with those who have left
            late_state.save(tmp_path / "state.safetensors")
            late_state = OnlineState.load(tmp_path / "state.safetensors")
            size = late_state.nbytes
    assert pushed_out & set(seen[6].track_id[seen[6].sounding].tolist())
    assert late_state.nbytes == size


@pytest.mark.parametrize("objects", ["video", "frame"])
def test_a_state_saved_before_frames_kept_who_leaves(objects: str, tmp_path: Path) -> None:
    """It goes on where nothing of that is kept now either, else it is refused."""
    film, online = scene(2), OnlineSegmenter(small_model(objects=objects), open_config(refine_delay=1))
    body = online.init_state((48, 80)).body
    assert body.delay is not None
    settings = json.loads(body.layout)
    settings.pop("keeps_leavers", None)
    old = replace(body, layout=json.dumps(settings), delay=replace(body.delay, class_id=None, score=None))
    OnlineState(old).save(tmp_path / "state.safetensors")
    state = OnlineState.load(tmp_path / "state.safetensors")
    if objects == "video":
        play(online, film, state, range(2))
    else:
        with pytest.raises(CheckpointError, match="keeps_leavers"):
            play(online, film, state, range(2))


def test_seconds_say_as_much_about_each_other_at_any_rate() -> None:
    """Frames half a second apart stay as they are as often as two of them in a second would."""
    evidence = torch.tensor([[2.0, 0.0, 0.0, 0.0, -1.0]])
    assert torch.allclose(smoothed(evidence[:, ::2], STAY), smoothed(evidence, STAY, 0.5)[:, ::2], atol=1e-6)
