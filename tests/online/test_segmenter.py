"""Frames and seconds of sound in, identities out: equality with offline, streams, waiting, refreshing."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from small_model import Scene, open_config, play, scene, small_model
from torch import Tensor

from avis_stream.errors import ConfigError, StateConsumedError
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.online.identity_table import TENTATIVE
from avis_stream.online.looking import Eye
from avis_stream.online.seeing import draw
from avis_stream.types import NANOSECONDS, AVPair, OnlineResult, VideoFrame

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
RING = 18


def alike(a: Tensor, b: Tensor) -> bool:
    """Masks that differ by rounding at most."""
    return a.shape == b.shape and (a != b).float().mean() < 1e-3


def same(a: OnlineResult, b: OnlineResult) -> bool:
    return (
        a.frame_id == b.frame_id
        and a.track_id.tolist() == b.track_id.tolist()
        and a.class_id.tolist() == b.class_id.tolist()
        and a.sounding.tolist() == b.sounding.tolist()
        and torch.allclose(a.score, b.score, atol=1e-4)
        and alike(a.mask, b.mask)
        and a.events == b.events
    )


def localized(online: OnlineSegmenter, film: Scene, frames: int) -> tuple[Any, Tensor]:
    """Tokens of the first frames, and their sound features."""
    model = online.model
    size = network_size(*film.frames.shape[-2:], model.config.input)

    def prepared(pictures: Tensor) -> Tensor:
        return normalise_and_pad(resize_images(pictures, size), model.config.input)

    with torch.no_grad():
        features = model.hear(film.audio[:frames])
        return model.localize(prepared(film.frames[:frames]), features, prepared(film.previous[:frames])), features


@pytest.mark.parametrize("head", [True, False], ids=["sounding_head", "as_published"])
def test_tracker_equals_offline_on_every_prefix(head: bool) -> None:
    """P1 through the door: what `step_features` says, and its masks and presence, against `track` on the prefix."""
    online = OnlineSegmenter(small_model(head=head))
    film, state = scene(), online.init_state()
    tokens, features = localized(online, film, RING)
    for t in range(RING):
        sounding = None if tokens.sounding is None else tokens.sounding[t]
        own = None if tokens.mask_embed is None else tokens.mask_embed[t]
        out, state = online.step_features(
            tokens.frame_queries[t], tokens.clip_mask_features[t], features[t], state, sounding, own
        )
        chances = None if tokens.sounding is None else tokens.sounding[: t + 1]
        embeds = None if tokens.mask_embed is None else tokens.mask_embed[: t + 1]
        expected = online.model.track(tokens.frame_queries[: t + 1], features[: t + 1], chances, embeds)
        torch.testing.assert_close(out.pred_logits, expected.logits, **TOLERANCE)
        wanted = expected.mask_embed if embeds is None else expected.mask_embed[:, t]
        torch.testing.assert_close(out.pred_mask_embed, wanted, **TOLERANCE)
        if head:
            assert expected.there is not None
            assert torch.equal(out.there, expected.there[:, t])
        masks = torch.einsum("mc,chw->mhw", wanted, tokens.clip_mask_features[t])
        torch.testing.assert_close(out.pred_masks, masks, atol=2e-4, rtol=2e-4)
        if head:
            assert expected.presence is not None
            torch.testing.assert_close(out.presence, expected.presence[:, t], **TOLERANCE)


@pytest.mark.parametrize("head", [True, False], ids=["sounding_head", "as_published"])
def test_shown_masks_are_those_that_offline_draws_on_the_newest_frame(head: bool) -> None:
    """With the gates of parity, each identity's mask is that of its query in the clip result of the prefix."""
    model = small_model(head=head)
    online = OnlineSegmenter(
        model, replace(OnlineConfig.parity(), candidate_score=0.0, birth_score=0.0, show_score=0.0)
    )
    film, state, compared = scene(), online.init_state(), 0
    for t in range(8):
        (result,), state = play(online, film, state, range(t, t + 1))
        clip = model.segment(film.frames[: t + 1], film.audio[: t + 1].flatten(), previous=film.previous[: t + 1])
        masks, queries = clip.masks(t), clip.query_id.tolist()
        table = state.body.table
        for row, track_id in enumerate(result.track_id.tolist()):
            if result.sounding[row]:
                query = int(table.slot[table.row_of(track_id)])
                assert alike(result.mask[row], masks[queries.index(query)])
                compared += 1
    assert compared >= 8


def test_chunks_of_features_give_what_single_ones_give() -> None:
    online = OnlineSegmenter(small_model())
    film = scene()
    tokens, features = localized(online, film, len(film))
    one, many = online.init_state(), online.init_state()
    for first, stop in ((0, 7), (7, 20), (20, 40)):
        for t in range(first, stop):
            expected, one = online.step_features(
                tokens.frame_queries[t], tokens.clip_mask_features[t], features[t], one, tokens.sounding[t]
            )
        last = stop - 1
        out, many = online.push_features(
            tokens.frame_queries[first:stop],
            tokens.clip_mask_features[last],
            features[first:stop],
            many,
            tokens.sounding[last],
        )
        torch.testing.assert_close(out.pred_logits, expected.pred_logits, **TOLERANCE)
        torch.testing.assert_close(out.presence, expected.presence, **TOLERANCE)
    assert one.steps == many.steps == 40
    assert one.pts_ns == many.pts_ns


def test_gates_do_not_touch_the_tracker() -> None:
    closed = OnlineSegmenter(small_model(), OnlineConfig(presence_threshold=1.0, silence_dbfs=0.0, birth_score=1.0))
    opened = OnlineSegmenter(small_model(), open_config())
    film = scene()
    _, a = play(closed, film, closed.init_state(), range(30))
    _, b = play(opened, film, opened.init_state(), range(30))
    assert torch.equal(a.body.memory.tokens, b.body.memory.tokens)


def test_steps_are_deterministic() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    one, _ = play(online, film, online.init_state(), range(25))
    two, _ = play(online, film, online.init_state(), range(25))
    assert all(a.events == b.events and torch.equal(a.mask, b.mask) for a, b in zip(one, two, strict=True))
    assert any(len(result) and result.sounding.any() for result in one)


def test_streams_share_a_model_without_meeting() -> None:
    """Three streams of other pictures, sizes and ages: interleaved, and stepped together, as each alone."""
    online = OnlineSegmenter(small_model(), open_config())
    films = [scene(40), scene(40, 60, 50, seed=1), scene(40, seed=2)]
    starts = [0, 5, 19]
    alone = [
        play(online, film, online.init_state(), range(start + 15))[0] for film, start in zip(films, starts, strict=True)
    ]
    states = [
        play(online, film, online.init_state(), range(start))[1] for film, start in zip(films, starts, strict=True)
    ]
    for n in range(15):
        at = [start + n for start in starts]
        results, states = online.step_many(
            [f.frames[t] for f, t in zip(films, at, strict=True)],
            [f.audio[t] for f, t in zip(films, at, strict=True)],
            states,
            previous=[f.previous[t] for f, t in zip(films, at, strict=True)],
        )
        for result, expected, t in zip(results, alone, at, strict=True):
            assert same(result, expected[t])


@pytest.mark.parametrize("objects", ["video", "frame"])
def test_catching_up_is_as_single_steps(objects: str) -> None:
    """P6 through the door: frames at once, a gap and silence among them; the result is the last frame's."""
    online, film = OnlineSegmenter(small_model(objects=objects), open_config()), scene()
    film = replace(film, audio=film.audio * (torch.arange(len(film)) % 7 > 0)[:, None])
    segment = [int(t >= 5) for t in range(len(film))]
    one, two, kinds = online.init_state(), online.init_state(), set()
    for first, stop in ((0, 2), (2, 9), (9, 30)):
        results = []
        for t in range(first, stop):
            (result,), one = play(online, film, one, range(t, t + 1), segment=segment[t])
            results.append(result)
        now = slice(first, stop)
        result, two = online.catch_up(
            film.frames[now], film.audio[now], two, previous=film.previous[now], segment=segment[now]
        )
        assert result.frame_id == stop - 1
        assert same(result, replace(results[-1], events=tuple(event for own in results for event in own.events)))
        kinds |= {event.kind for event in result.events}
        for name in ("status", "public_id", "hits", "born_ns", "seen_ns", "sounded_ns"):
            assert torch.equal(getattr(one.body.table, name), getattr(two.body.table, name)), name
        torch.testing.assert_close(one.body.memory.tokens, two.body.memory.tokens, **TOLERANCE)
        torch.testing.assert_close(one.body.memory.sink_value, two.body.memory.sink_value, **TOLERANCE)
    assert kinds >= {"gap", "born", "silent", "dormant"}
    (a,), _ = play(online, film, one, range(30, 31))
    (b,), _ = play(online, film, two, range(30, 31))
    assert same(a, b)
    assert a.pts_ns == b.pts_ns


def test_refreshed_masks_follow_the_picture() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    results, state = play(online, film, online.init_state(), range(3))
    again = online.refresh(film.frames[2], state)
    assert same(replace(results[-1], events=()), again)
    moved = online.refresh(film.frames[2].flip(-1), state, pts_ns=2_040_000_000)
    assert moved.track_id.tolist() == again.track_id.tolist()
    assert moved.pts_ns == 2_040_000_000
    assert not torch.equal(moved.mask, again.mask)
    larger = online.refresh(film.frames[2].repeat(1, 2, 2), state)
    assert larger.mask.shape[-2:] == (96, 160)
    play(online, film, state, range(3, 4))  # it was not consumed


def test_official_alignment_waits_for_the_second_that_follows() -> None:
    """Frame k is seen with the sound that came with frame k + 1, a step later."""
    film = scene(12)
    shifted = Scene(film.frames[:-1], film.audio[1:], film.previous[:-1])
    live = OnlineSegmenter(small_model(), open_config())
    official = OnlineSegmenter(small_model(), open_config(alignment="official"))
    expected, _ = play(live, shifted, live.init_state(), range(11))
    results, state = play(official, film, official.init_state((48, 80)), range(12))
    assert results[0].frame_id == -1
    assert len(results[0]) == 0
    assert all(same(a, b) for a, b in zip(results[1:], expected, strict=True))
    (last,) = official.finish(state, film.audio[0])
    assert last.frame_id == 11
    with pytest.raises(StateConsumedError):
        official.finish(state)


def test_refined_masks_are_drawn_by_later_queries() -> None:
    """With a delay of two steps, frame t - 2 comes with the masks of step t's queries."""
    film, delay = scene(30), 2
    settings = {"presence_threshold": -1.0}
    model = small_model(masks="video")
    live = OnlineSegmenter(model, open_config(**settings))
    late = OnlineSegmenter(model, open_config(refine_delay=delay, **settings))
    live_state, late_state, compared = live.init_state(), late.init_state((48, 80)), 0
    for t in range(30):
        _, live_state = play(live, film, live_state, range(t, t + 1))
        (result,), late_state = play(late, film, late_state, range(t, t + 1))
        assert result.frame_id == max(-1, t - delay)
        if t >= delay:
            redrawn = live.refresh(film.frames[t - delay], live_state)
            for track_id, mask in zip(redrawn.track_id.tolist(), redrawn.mask, strict=True):
                if mask.any():
                    row = result.track_id.tolist().index(track_id)
                    assert alike(result.mask[row], mask)
                    compared += 1
            assert result.pts_ns == (t - delay) * NANOSECONDS
    assert compared >= 20
    assert [result.frame_id for result in late.finish(late_state)] == [28, 29]


def test_refined_masks_of_frame_queries_are_those_of_their_own_frame() -> None:
    """Where frame queries draw, later tokens decide which of them; the mask stays one that its frame has."""
    film, delay = scene(12), 2
    online = OnlineSegmenter(small_model(), open_config(refine_delay=delay, presence_threshold=-1.0))
    tokens, _ = localized(online, film, len(film))
    sizes = Eye(online.model, None).sizes((48, 80))
    state, compared = online.init_state((48, 80)), 0
    for t in range(len(film)):
        (result,), state = play(online, film, state, range(t, t + 1))
        if result.frame_id >= 0:
            k = result.frame_id
            own, _ = draw(tokens.mask_embed[k], tokens.clip_mask_features[k], sizes, one_piece=True)
            for mask in result.mask[result.sounding]:
                assert any(alike(mask, one) for one in own)
                compared += 1
    assert compared >= 8


@pytest.mark.parametrize("settings", [{}, {"alignment": "official"}, {"refine_delay": 3}, {"sinks": "first"}], ids=str)
def test_state_never_grows(settings: dict[str, Any]) -> None:
    """P4, short: the same bytes from `init_state` on, while identities come and the ring fills and folds."""
    online, film = OnlineSegmenter(small_model(), open_config(**settings)), scene()
    state = online.init_state((48, 80))
    size = state.nbytes
    for t in range(40):
        _, state = play(online, film, state, range(t, t + 1))
        assert state.nbytes == size


@pytest.mark.parametrize("settings", [{}, {"alignment": "official"}, {"refine_delay": 3}, {"kv_cache": False}], ids=str)
def test_a_saved_state_goes_on_identically(settings: dict[str, Any], tmp_path: Any) -> None:
    """P12, to the bit; and so does a clone."""
    online, film = OnlineSegmenter(small_model(), open_config(**settings)), scene()
    _, state = play(online, film, online.init_state((48, 80)), range(25))
    state.save(tmp_path / "state.safetensors")
    loaded, copy = OnlineState.load(tmp_path / "state.safetensors"), state.clone()
    assert loaded.nbytes == state.nbytes
    runs = [play(online, film, s, range(25, 40))[0] for s in (state, loaded, copy)]
    for one, two, three in zip(*runs, strict=True):
        assert one.events == two.events == three.events
        assert torch.equal(one.mask, two.mask)
        assert torch.equal(one.mask, three.mask)
        assert torch.equal(one.score, two.score)
        assert one.track_id.tolist() == two.track_id.tolist() == three.track_id.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_state_moves_between_devices() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    _, state = play(online, film, online.init_state(), range(5))
    elsewhere = state.to("meta")
    assert elsewhere.device.type == "meta"
    assert elsewhere.body.table.status.device.type == "cpu"
    memory = elsewhere.body.memory
    moved = [value for f in fields(memory) if isinstance(value := getattr(memory, f.name), Tensor)]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert elsewhere.nbytes == state.nbytes
    back = state.to("cpu")
    assert same(play(online, film, state, range(5, 6))[0][0], play(online, film, back, range(5, 6))[0][0])


def test_silence_shows_nothing() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    results, state = play(online, film, online.init_state(), range(3))
    assert results[-1].sounding.any()
    result, state = online.step(film.frames[3], 1e-4 * film.audio[3], state, previous=film.previous[3])
    assert not result.sounding.any()
    assert not result.mask.any()
    assert "silent" in {event.kind for event in result.events}
    result, state = online.step(film.frames[4], film.audio[4], state, previous=film.previous[4])
    assert result.sounding.any()
    parity = OnlineSegmenter(small_model(), replace(open_config(), silence_dbfs=None))
    (result, *_), _ = play(parity, Scene(film.frames, 0 * film.audio, film.previous), parity.init_state(), range(2))
    assert result.sounding.any()


@pytest.mark.parametrize("config", [OnlineConfig(), OnlineConfig.parity()], ids=["live", "parity"])
def test_frames_in_which_nothing_passes(config: OnlineConfig) -> None:
    """No query counts at all, then one identity goes silent because none does any more."""
    online, film = OnlineSegmenter(small_model(), replace(config, candidate_score=1.1)), scene()
    results, state = play(online, film, online.init_state(), range(3))
    assert all(len(result) == 0 and result.mask.shape == (0, 48, 80) for result in results)
    opened = OnlineSegmenter(small_model(), open_config())
    results, state = play(opened, film, opened.init_state(), range(3))
    assert results[-1].sounding.any()
    (result,), _ = play(online, film, state, range(3, 4))
    assert len(result) > 0
    assert not result.sounding.any()


@pytest.mark.parametrize("head", [True, False], ids=["sounding_head", "as_published"])
def test_presence_gate_shows_what_sounds(head: bool) -> None:
    film = scene()
    seen: dict[float, int] = {}
    for threshold in (-1.0, 0.1, 1.0):
        online = OnlineSegmenter(small_model(head=head), open_config(presence_gate=True, presence_threshold=threshold))
        results, _ = play(online, film, online.init_state(), range(6))
        seen[threshold] = sum(int(result.sounding.sum()) for result in results)
        # Only a model that also finds silent objects follows what it does not show.
        assert bool(len(results[-1])) == (head or seen[threshold] > 0)
    assert seen[-1.0] > 0
    assert seen[1.0] == 0


def test_a_frame_of_another_size_is_taken() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    _, state = play(online, film, online.init_state(), range(3))
    result, state = online.step(film.frames[3].repeat(1, 2, 1), film.audio[3], state)
    assert result.mask.shape[-2:] == (96, 80)
    assert [event.detail for event in result.events if event.kind == "resized"] == ["80x96"]


def test_a_gap_announced_by_the_source_silences_everyone_first() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    results, state = play(online, film, online.init_state(), range(3), segment=4)
    assert all("gap" not in {event.kind for event in result.events} for result in results)
    before = {(kind, i) for kind, i in zip(results[-1].sounding.tolist(), results[-1].track_id.tolist(), strict=True)}
    (result,), _ = play(online, film, state, range(3, 4), segment=5)
    kinds = [event.kind for event in result.events]
    assert kinds[0] == "gap"
    assert sum(kind == "silent" for kind in kinds) == sum(sounded for sounded, _ in before) > 0
    old = {i for _, i in before}
    returned = {event.track_id for event in result.events if event.kind == "returned"}
    assert {i for i in result.track_id.tolist() if i in old} <= returned


def test_times_and_numbers() -> None:
    online, film = OnlineSegmenter(small_model(), open_config(hop_seconds=0.5)), scene()
    state = online.init_state()
    assert state.pts_ns is None
    for pts_ns, expected in ((None, 0), (None, 500_000_000), (700_000_000, 700_000_000), (None, 1_200_000_000)):
        result, state = online.step(film.frames[0], film.audio[0], state, pts_ns)
        assert result.pts_ns == expected
    assert result.frame_id == 3
    pair = AVPair(frame=VideoFrame(image=film.frames[1], pts_ns=9 * NANOSECONDS, frame_id=77), audio=film.audio[1])
    result, state = online.step_pair(pair, state)
    assert (result.frame_id, result.pts_ns) == (77, 9 * NANOSECONDS)


def test_a_short_second_is_heard_as_offline() -> None:
    """The end of a recording: its missing samples are missing, not silence of the same length."""
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    short = film.audio[0][:9000]
    result, state = online.step(film.frames[0], short, online.init_state(), previous=film.previous[0])
    clip = online.model.segment(film.frames[:1], short, previous=film.previous[:1])
    row = int(state.body.table.slot[state.body.table.row_of(int(result.track_id[0]))])
    assert alike(result.mask[0], clip.masks(0)[clip.query_id.tolist().index(row)])


def test_pinned_and_forgotten() -> None:
    online, film = OnlineSegmenter(small_model(), open_config(max_anchors=1)), scene()
    results, state = play(online, film, online.init_state(), range(3))
    assert len(results[-1]) >= 2, "the rest means something with two identities only"
    first, second = results[-1].track_id.tolist()[:2]
    pinned = state.pin(first)
    with pytest.raises(StateConsumedError):
        state.pin(first)
    assert torch.isfinite(pinned.body.memory.key_bias).all()
    with pytest.raises(ConfigError, match="max_anchors"):
        pinned.pin(second)
    (a,), _ = play(online, film, pinned.clone(), range(3, 4))
    forgotten = pinned.forget(first)
    assert torch.isinf(forgotten.body.memory.key_bias).any()
    (b,), forgotten = play(online, film, forgotten, range(3, 4))
    assert first in a.track_id.tolist()
    assert first not in b.track_id.tolist()
    assert ("dead", first) in [(event.kind, event.track_id) for event in b.events]
    with pytest.raises(ConfigError, match="track_id"):
        forgotten.forget(first)


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (4, {"refine_delay": 2}),
        (4, {"alignment": "official"}),
        (4, {"alignment": "official", "refine_delay": 2}),
        (2, {"alignment": "official", "refine_delay": 2}),  # the step that tells of it has no result of its own
    ],
    ids=str,
)
def test_who_is_forgotten_at_the_end_is_told_dead(steps: int, settings: dict[str, object]) -> None:
    online, film = OnlineSegmenter(small_model(), open_config(**settings)), scene()
    _, state = play(online, film, online.init_state((48, 80)), range(steps))
    public_ids = state.body.table.public_id
    gone = int(public_ids[public_ids > 0][0])
    results = online.finish(state.forget(gone))
    told = [(n, e.track_id, e.detail) for n, result in enumerate(results) for e in result.events if e.kind == "dead"]
    assert told == [(0, gone, "forgotten")]
    assert [result.frame_id for result in results] == sorted(result.frame_id for result in results)


def test_what_has_no_id_yet_is_neither_pinned_nor_forgotten() -> None:
    """Tentative identities bear the number 0, which is nobody's."""
    online = OnlineSegmenter(small_model(), open_config(birth_hits=2))
    results, state = play(online, scene(), online.init_state(), range(1))
    assert (state.body.table.status == TENTATIVE).any()
    assert not len(results[-1])
    for change in (state.pin, state.forget):
        with pytest.raises(ConfigError, match="track_id"):
            change(0)
    assert (state.body.table.status == TENTATIVE).any()
