"""Between two steps: who sounds is asked of the last step's frame queries, with the newest second of sound."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small_model import Scene, open_config, play, scene, small_model, with_postprocess

from avis_stream.errors import ClockError, ShapeError
from avis_stream.models.avism import AVISM
from avis_stream.models.sounding_chain import carried
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.online.between import odds_between, sounding_between
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.seeing import Gates
from avis_stream.types import NANOSECONDS, AVPair, VideoFrame

STAY, SECOND = 0.8, NANOSECONDS
HEARD = {"presence_threshold": 0.5, "show_score": 0.0}


def linked_model() -> AVISM:
    return with_postprocess(small_model(objects="frame"), sounding_stay=STAY)


def after_a_step(online: OnlineSegmenter, film: Scene, steps: int = 3) -> OnlineState:
    return play(online, film, online.init_state(), range(steps))[1]


def table_of(expected: list[float], heard: list[float]) -> IdentityTable:
    """Identities seen at second 5, each by the frame query of its row's number."""
    table = IdentityTable.empty(OnlineConfig(max_identities=len(heard)), 2, 4, 4)
    table.expected[:], table.heard[:] = torch.tensor(expected), torch.tensor(heard)
    table.odds[:] = table.expected + table.heard
    table.seen_ns[:], table.token_slot[:], table.score[:] = 5 * SECOND, torch.arange(len(heard)), 0.5
    return table


def test_right_after_a_step_the_same_second_says_the_same() -> None:
    table = table_of([-1.0, 2.0, 0.5], [3.0, -4.0, 0.25])
    odds = odds_between(table, table.heard.sigmoid(), STAY, 5 * SECOND, 5 * SECOND)
    torch.testing.assert_close(odds, table.odds)


def test_where_the_next_step_is_due_its_own_second_meets_the_same_odds() -> None:
    table = table_of([-1.0, 2.0, 0.5], [3.0, -4.0, 0.25])
    evidence = torch.tensor([1.0, -2.0, 0.0])
    odds = odds_between(table, evidence.sigmoid(), STAY, 5 * SECOND, 6 * SECOND)
    torch.testing.assert_close(odds, carried(table.odds, STAY, 1.0) + evidence)


def test_each_identity_is_asked_by_its_own_query_and_who_was_not_seen_is_not() -> None:
    table = table_of([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    table.token_slot[:] = torch.tensor([2, 0, 1])
    table.seen_ns[1] = 4 * SECOND
    chance = torch.tensor([0.9, 0.1, 0.8])
    odds = odds_between(table, chance, STAY, 5 * SECOND, 5 * SECOND + SECOND // 2)
    torch.testing.assert_close(odds[[0, 2]].sigmoid(), torch.tensor([0.8, 0.1]))
    assert odds[1] == -math.inf
    loud = Gates(0.5, silent=False, born_unheard=True)
    assert sounding_between(table, odds, loud, 0.2).tolist() == [True, False, False]
    assert not sounding_between(table, odds, loud, 0.6).any(), "no certain identity"
    assert not sounding_between(table, odds, replace(loud, silent=True), 0.2).any()


def test_at_the_time_of_a_step_a_refresh_shows_what_the_step_showed() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    state, kinds = online.init_state(), set()
    for t in range(len(film)):
        (result,), state = play(online, film, state, range(t, t + 1))
        again = online.refresh(film.frames[t], state, result.pts_ns, film.audio[t], film.previous[t])
        assert torch.equal(again.sounding, result.sounding)
        assert torch.equal(again.mask, result.mask)
        kinds |= set(result.sounding.tolist())
    assert kinds == {True, False}, "some sounded and some did not, or nothing was shown by this"


def test_what_is_heard_since_changes_who_is_shown_and_nothing_else() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    state = after_a_step(online, film)
    before, changed = state.clone(), 0
    at = state.pts_ns + SECOND * 6 // 10
    stays = online.refresh(film.frames[3], state, at)
    for sound in film.audio[3:]:
        result = online.refresh(film.frames[3], state, at, sound, film.previous[3])
        assert torch.equal(result.track_id, stays.track_id)
        assert torch.equal(result.score, stays.score)
        assert result.events == ()
        changed += int((result.sounding != stays.sounding).sum())
    assert changed
    quiet = online.refresh(film.frames[3], state, at, torch.zeros(16_000), film.previous[3])
    assert stays.sounding.any()
    assert not quiet.sounding.any(), "a silent second shows nothing"
    (a,), _ = play(online, film, state, range(4, 5))
    (b,), _ = play(online, film, before, range(4, 5))
    assert torch.equal(a.sounding, b.sounding)
    assert torch.equal(a.mask, b.mask)


def test_a_state_that_was_loaded_is_asked_alike(tmp_path) -> None:  # type: ignore[no-untyped-def]
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    state = after_a_step(online, film)
    state.save(tmp_path / "state")
    loaded, at = OnlineState.load(tmp_path / "state"), state.pts_ns + SECOND // 4
    a, b = (online.refresh(film.frames[3], s, at, film.audio[3], film.previous[3]) for s in (state, loaded))
    assert torch.equal(a.sounding, b.sounding)
    assert torch.equal(a.mask, b.mask)


@pytest.mark.parametrize("model", [small_model(), small_model(head=False)], ids=["video_queries", "no_head"])
def test_who_cannot_be_asked_again_stays_as_the_last_step_said(model: AVISM, monkeypatch: pytest.MonkeyPatch) -> None:
    online, film = OnlineSegmenter(model, open_config()), scene(12)
    state = after_a_step(online, film)
    monkeypatch.setattr(model, "hear", lambda *_: pytest.fail("sound costs time and changes nothing here"))
    at = state.pts_ns + SECOND // 2
    stays = online.refresh(film.frames[3], state, at)
    result = online.refresh(film.frames[3], state, at, film.audio[5], film.previous[3])
    assert torch.equal(result.sounding, stays.sounding)
    assert torch.equal(result.mask, stays.mask)


def test_a_pair_brings_its_sound_its_earlier_picture_and_its_number() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    state = after_a_step(online, film)
    at = state.pts_ns + SECOND // 2
    wanted = online.refresh(film.frames[3], state, at, film.audio[7], film.previous[3])
    frame = VideoFrame(image=film.frames[3], pts_ns=at, frame_id=77, previous=film.previous[3])
    result = online.refresh_pair(AVPair(frame=frame, audio=film.audio[7]), state)
    assert result.frame_id == 77
    assert result.pts_ns == at
    assert torch.equal(result.sounding, wanted.sounding)
    assert torch.equal(result.mask, wanted.mask)


def test_what_cannot_be_heard_or_compared_is_refused() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config()), scene(12)
    state = after_a_step(online, film)
    frame, at = film.frames[3], state.pts_ns + SECOND // 2
    with pytest.raises(ClockError, match="not be earlier than that of the last step"):
        online.refresh(frame, state, state.pts_ns - 1, film.audio[3])
    with pytest.raises(ShapeError, match="finite"):
        online.refresh(frame, state, at, film.audio[3] * math.nan)
    with pytest.raises(ShapeError, match="previous"):
        online.refresh(frame, state, at, film.audio[3], film.previous[3][:, :-1])
