"""Between two steps: who sounds is asked of the last step's frame queries, with the newest second of sound."""

from __future__ import annotations

import math

import pytest
import torch
from small_model import Scene, open_config, play, scene, small_model, with_postprocess

from avis_stream.errors import ShapeError
from avis_stream.models.avism import AVISM
from avis_stream.models.sounding_chain import carried
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.online.between import odds_between
from avis_stream.online.identity_table import IdentityTable
from avis_stream.stream.two_rates import TwoRates
from avis_stream.types import NANOSECONDS, AVPair, VideoFrame

STAY, SECOND = 0.8, NANOSECONDS
HEARD = {"presence_threshold": 0.5, "show_score": 0.0}


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Masks that differ by rounding at most: frames went through the localizer in other company."""
    return a.shape == b.shape and bool((a != b).float().mean() < 1e-3)


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
    odds = odds_between(table, table.heard.sigmoid(), STAY, 1.0, 5 * SECOND, 5 * SECOND)
    torch.testing.assert_close(odds, table.odds)


@pytest.mark.parametrize("hop", [0.5, 1.0, 2.0])
def test_where_the_next_step_is_due_its_own_second_meets_the_same_odds(hop: float) -> None:
    table = table_of([-1.0, 2.0, 0.5], [3.0, -4.0, 0.25])
    evidence = torch.tensor([1.0, -2.0, 0.0])
    odds = odds_between(table, evidence.sigmoid(), STAY, hop, 5 * SECOND, 5 * SECOND + round(hop * SECOND))
    torch.testing.assert_close(odds, carried(table.odds, STAY, hop) + evidence)


def test_each_identity_is_asked_by_its_own_query_and_who_was_not_seen_is_not() -> None:
    table = table_of([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    table.token_slot[:] = torch.tensor([2, 0, 1])
    table.seen_ns[1] = 4 * SECOND
    chance = torch.tensor([0.9, 0.1, 0.8])
    odds = odds_between(table, chance, STAY, 1.0, 5 * SECOND, 5 * SECOND + SECOND // 2)
    torch.testing.assert_close(odds[[0, 2]].sigmoid(), torch.tensor([0.8, 0.1]))
    assert odds[1] == -math.inf


@pytest.mark.parametrize("settings", [HEARD, {"presence_threshold": 0.0, "show_score": 0.0}], ids=["gate", "no_gate"])
@pytest.mark.parametrize("moves", [True, False])
def test_at_the_time_of_a_step_a_refresh_shows_what_the_step_showed(settings: dict[str, float], moves: bool) -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**settings)), scene(12)
    state, kinds = online.init_state(), set()
    for t in range(len(film)):
        frame, sound, before = film.frames[t], film.audio[t], film.previous[t] if moves else None
        result, state = online.step(frame, sound, state, previous=before, segment=t // 5)
        again = online.refresh(frame, state, result.pts_ns, sound, before)
        assert torch.equal(again.track_id, result.track_id)
        assert torch.equal(again.sounding, result.sounding)
        assert torch.equal(again.mask, result.mask)
        kinds |= set(result.sounding.tolist())
    assert kinds >= ({True, False} if settings is HEARD else {True}), "or nothing was shown by this"


def test_a_neighbour_with_an_earlier_picture_changes_nothing() -> None:
    """Streams that step together: without an earlier picture there is no cue, whatever the others have."""
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    alone, _ = online.step(film.frames[0], film.audio[0], online.init_state())
    states = [online.init_state() for _ in range(2)]
    (result, _), _ = online.step_many(
        film.frames[:2].unbind(), film.audio[:2].unbind(), states, None, [None, film.previous[1]]
    )
    assert torch.equal(result.sounding, alone.sounding)
    torch.testing.assert_close(result.score, alone.score)


def test_after_frames_that_were_caught_up_with_the_last_ones_queries_are_asked() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    result, state = online.catch_up(film.frames[:4], film.audio[:4], online.init_state(), previous=film.previous[:4])
    again = online.refresh(film.frames[3], state, result.pts_ns, film.audio[3], film.previous[3])
    assert torch.equal(again.sounding, result.sounding)
    assert alike(again.mask, result.mask)


def test_frames_of_another_size_and_identities_that_are_gone() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    state = after_a_step(online, film)
    at = state.pts_ns + SECOND // 2
    larger = film.frames[3].repeat(1, 2, 2)
    result = online.refresh(larger, state, at, film.audio[3], larger)
    assert result.mask.shape[-2:] == larger.shape[-2:]
    gone = int(result.track_id[0])
    left = online.refresh(film.frames[3], state.forget(gone), at, film.audio[3], film.previous[3])
    assert left.track_id.tolist() == [i for i in result.track_id.tolist() if i != gone]


def test_a_live_stream_shows_a_sound_before_its_next_step() -> None:
    """Through `TwoRates`: at a step and between, with the sound of each frame."""
    online, film = OnlineSegmenter(linked_model(), open_config(**HEARD)), scene(12)
    rates, shown = TwoRates(online), []
    for n in range(4):
        frame = VideoFrame(
            image=film.frames[0], pts_ns=n * SECOND // 4, frame_id=n, segment=0, previous=film.previous[0]
        )
        answer = rates(AVPair(frame=frame, audio=film.audio[2 * n]))
        assert answer is not None
        assert answer[0].frame_id == n
        assert answer[1] is (n > 0)
        shown.append(answer[0].sounding.tolist())
    assert any(sounding != shown[0] for sounding in shown[1:])


def test_what_is_heard_since_changes_who_is_shown_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert stays.sounding.any()
    with monkeypatch.context() as patch:
        patch.setattr(type(online.model), "hear", lambda *_: pytest.fail("nobody need be asked"))
        quiet = online.refresh(film.frames[3], state, at, torch.zeros(16_000), film.previous[3])
    assert torch.equal(quiet.track_id, stays.track_id)
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


@pytest.mark.parametrize("why", ["video_queries", "no_head", "older", "tokens_since"])
def test_who_cannot_be_asked_again_stays_as_the_last_step_said(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of frames older than the step too, and after steps of the tracker alone, which know no identities."""
    model = small_model(head=why != "no_head", objects="video" if why in ("video_queries", "no_head") else "frame")
    online, film = OnlineSegmenter(model, open_config()), scene(12)
    state = after_a_step(online, film)
    at = state.pts_ns - 1 if why == "older" else state.pts_ns + 2 * SECOND
    if why == "tokens_since":
        config, sizes = model.config, online._eye.feature_size((48, 80))
        tokens = torch.randn(config.localizer.queries, config.channels)
        features = torch.randn(config.drawn_channels, *sizes)
        _, state = online.step_features(tokens, features, torch.randn(config.audio.feature_dim), state)
    monkeypatch.setattr(type(model), "hear", lambda *_: pytest.fail("sound costs time and changes nothing here"))
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
    with pytest.raises(ShapeError, match="finite"):
        online.refresh(frame, state, at, film.audio[3] * math.nan)
    with pytest.raises(ShapeError, match="previous"):
        online.refresh(frame, state, at, film.audio[3], film.previous[3][:, :-1])
