"""The tracker on a stream equals the offline tracker on the stream so far; P1 to P11 and P15 of ADR 0201."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from online_models import Runner, Stream, offline, random_tracker, tracker_config
from torch import Tensor

from avis_stream.errors import ConfigError
from avis_stream.models.literal import LiteralTracker
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.tracking import StreamTracker, merge_partials
from avis_stream.ops import range_attn

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
SHAPES = [(6, 6), (3, 6), (12, 6), (5, 6), (5, 3), (6, 3), (1, 2), (2, 5), (7, 1), (4, 4)]
"""Windows and encoder layers: even and odd, the published ones first."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("window", "layers"), SHAPES)
def test_equals_offline_until_the_ring_is_full(window: int, layers: int) -> None:
    """P1: logits, mask embeddings and similarity at every step, each on the prefix up to it."""
    config = tracker_config(window, layers)
    tracker = random_tracker(config)
    runner = Runner(tracker, config)
    stream = Stream.random(runner.tracking.geometry.ring, config)
    for t in range(len(stream)):
        answer, (expected, _) = runner.push(stream), offline(tracker, stream, t + 1)
        torch.testing.assert_close(answer.logits, expected.logits, **TOLERANCE)
        torch.testing.assert_close(answer.mask_embed, expected.mask_embed, **TOLERANCE)
        torch.testing.assert_close(answer.similarity, expected.similarity, **TOLERANCE)


@pytest.mark.parametrize(("window", "layers"), SHAPES)
def test_held_tokens_equal_offline_for_ever(window: int, layers: int) -> None:
    """P2: every token in the ring, over five rings; two for the less usual windows."""
    config = tracker_config(window, layers)
    tracker = random_tracker(config)
    runner = Runner(tracker, config)
    ring = runner.tracking.geometry.ring
    stream = Stream.random((5 if window in (5, 6) else 2) * ring, config)
    for t in range(len(stream)):
        runner.push(stream)
        if t % 7 == 0 or t + 1 == len(stream):  # 7 meets every phase, but of the window of 7
            first, held = runner.held()
            _, tokens = offline(tracker, stream, t + 1)
            assert len(held) == min(t + 1, ring - window + 1 + t % window)
            torch.testing.assert_close(held, tokens[first:], **TOLERANCE)


def test_without_fusion_tokens_equal_offline_too() -> None:
    config = tracker_config(audio_fusion=False)
    tracker = random_tracker(config)
    runner, stream = Runner(tracker, config), Stream.random(50, config)
    for _ in range(len(stream)):
        runner.push(stream)
    first, held = runner.held()
    torch.testing.assert_close(held, offline(tracker, stream, len(stream))[1][first:], **TOLERANCE)


@pytest.mark.parametrize(("window", "layers"), [(6, 6), (5, 3), (2, 5), (7, 1), (1, 2)])
def test_tokens_stop_changing_when_the_note_says(window: int, layers: int) -> None:
    """P3: a token of window w is final from t = W (w + ceil(L / 2) + 1) - 1 on, which is before it leaves the ring."""
    config = tracker_config(window, layers)
    runner = Runner(random_tracker(config), config)
    ring = runner.tracking.geometry.ring
    stream = Stream.random(2 * ring + window, config)
    final: dict[int, Tensor] = {}
    changed_before = 0
    last: dict[int, Tensor] = {}
    for t in range(len(stream)):
        runner.push(stream)
        first, held = runner.held()
        for s, token in enumerate(held, first):
            if s in final:
                assert torch.equal(token, final[s]), (s, t)
            elif t >= window * (s // window + -(-layers // 2) + 1) - 1:
                final[s] = token.clone()
            changed_before += s in last and not torch.equal(token, last[s])
            last[s] = token.clone()
    left = set(range(runner.held()[0]))
    assert left <= final.keys()  # only final tokens leave
    assert changed_before or window == 1


@pytest.mark.parametrize("online", [OnlineConfig(), OnlineConfig(encoder="frozen")], ids=["exact", "frozen"])
def test_later_frames_change_nothing(online: OnlineConfig) -> None:
    """P5: the answers up to t are the same to the bit, whatever comes after t."""
    config = tracker_config()
    tracker = random_tracker(config)
    stream, other = Stream.random(60, config), Stream.random(60, config, seed=2)
    spliced = Stream(
        torch.cat([stream.frame_queries[:40], other.frame_queries[40:]]),
        torch.cat([stream.audio[:40], other.audio[40:]]),
    )
    one, two = Runner(tracker, config, online), Runner(tracker, config, online)
    for t in range(60):
        a, b = one.push(stream), two.push(spliced)
        assert torch.equal(a.logits, b.logits) == (t < 40)


@pytest.mark.parametrize("online", [OnlineConfig(), OnlineConfig(encoder="frozen")], ids=["exact", "frozen"])
@pytest.mark.parametrize(("window", "layers"), [(6, 6), (5, 3), (2, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_chunks_give_what_single_frames_give(window: int, layers: int, seed: int, online: OnlineConfig) -> None:
    """P6: any chunks, folds included: the same answer, tokens and sinks."""
    config = tracker_config(window, layers)
    tracker = random_tracker(config)
    single, chunked = Runner(tracker, config, online), Runner(tracker, config, online)
    stream = Stream.random(4 * single.tracking.geometry.ring, config)
    generator = torch.Generator().manual_seed(seed)
    while chunked.memory.seen < len(stream) - 20:
        count = int(torch.randint(1, 20, (1,), generator=generator))
        chunk = chunked.push(stream, count)
        for _ in range(count):
            one = single.push(stream)
        torch.testing.assert_close(chunk.logits, one.logits, **TOLERANCE)
        torch.testing.assert_close(chunk.mask_embed, one.mask_embed, **TOLERANCE)
    torch.testing.assert_close(chunked.held()[1], single.held()[1], **TOLERANCE)
    torch.testing.assert_close(chunked.memory.sink_lse, single.memory.sink_lse, **TOLERANCE)
    torch.testing.assert_close(chunked.memory.sink_value, single.memory.sink_value, **TOLERANCE)


def test_first_layer_sees_all_of_history() -> None:
    """P7: with sinks, the attention of decoder layer 0 over a long stream is that over the full history (float64)."""
    config = tracker_config(6, 4)
    tracker = random_tracker(config).double()
    runner, stream = Runner(tracker, config), Stream.random(400, config).to(torch.float64)
    for _ in range(len(stream)):
        runner.push(stream)
    online = first_look(runner)
    expected = first_look_offline(runner, stream)
    torch.testing.assert_close(online, expected, atol=1e-10, rtol=1e-10)
    assert torch.isfinite(runner.memory.sink_lse).all()
    without = Runner(tracker, config, OnlineConfig(sinks="none"))
    for _ in range(len(stream)):
        without.push(stream)
    assert not torch.allclose(first_look(without), expected, atol=1e-3)


def test_half_life_weighs_old_pages_less() -> None:
    """A page folded n windows ago counts 2^(-n W / half_life), exactly, in decoder layer 0."""
    config = tracker_config(3, 2)
    tracker = random_tracker(config).double()
    runner = Runner(tracker, config, OnlineConfig(half_life_s=9.0))
    stream = Stream.random(61, config).to(torch.float64)
    for _ in range(len(stream)):
        runner.push(stream)
    # The page of window w is folded at the end of window w + P - 1, and decays at each later fold.
    geometry, last = runner.tracking.geometry, (len(stream) - 1) // 3
    folded = last - geometry.pages + (1 if len(stream) % 3 == 0 else 0)
    bias = torch.zeros(len(stream), dtype=torch.float64)
    for window in range(folded + 1):
        bias[window * 3 : window * 3 + 3] = -math.log(2) * (folded - window) * 3 / 9.0
    expected = first_look_offline(runner, stream, bias.repeat_interleave(3))
    torch.testing.assert_close(first_look(runner), expected, atol=1e-10, rtol=1e-10)


def first_look(runner: Runner) -> Tensor:
    """What decoder layer 0 of a runner reads from its memory now, [1, M, A, d]; nothing is folded."""
    assert runner.plan is not None
    tracker, plan = runner.tracking.tracker, replace(runner.plan, fold=False)
    # At the end of a window the page that is about to leave is in the sinks already, and still in the ring.
    assert not runner.plan.fold
    attn = tracker.decoder[0].cross_attn.attn
    (query,) = attn.project((tracker.query_feat.weight + tracker.query_embed.weight)[None], "q")
    return runner.tracking._look(0, query, runner.memory, plan)


def first_look_offline(runner: Runner, stream: Stream, bias: Tensor | None = None) -> Tensor:
    """The same over the full history, with a bias [T N] on its keys."""
    tracker = runner.tracking.tracker
    _, tokens = offline(tracker, stream, len(stream))
    attn = tracker.decoder[0].cross_attn.attn
    (query,) = attn.project((tracker.query_feat.weight + tracker.query_embed.weight)[None], "q")
    (key,) = attn.project((tokens + tracker.fq_pos.weight).flatten(0, 1)[None], "k")
    (value,) = attn.project(tokens.flatten(0, 1)[None], "v")
    count = query.shape[1]
    key_bias = None if bias is None else bias[None]
    return range_attn(query, key, value, [0, count], [0, key.shape[1]], key_bias)


def test_sink_is_one_more_token() -> None:
    """P8: merging with (lse, value) equals a key whose score is that lse and whose value is that value."""
    scores, values = torch.randn(7, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)

    def attention(chosen: slice) -> tuple[Tensor, Tensor]:
        value = scores[chosen].softmax(0) @ values[chosen]
        return value.view(1, 1, 1, 4), scores[chosen].logsumexp(0).view(1, 1, 1)

    whole, parts = attention(slice(None)), (attention(slice(0, 3)), attention(slice(3, 7)))
    value, lse = merge_partials(*parts)
    torch.testing.assert_close((value, lse), whole)
    as_token = torch.cat([parts[0][1].view(1), scores[3:]])
    token_values = torch.cat([parts[0][0].view(1, 4), values[3:]])
    torch.testing.assert_close(value.view(4), as_token.softmax(0) @ token_values)
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.float64), torch.full((1, 1, 1), -torch.inf, dtype=torch.float64)
    torch.testing.assert_close(merge_partials(nothing, whole), whole)
    empty_value, empty_lse = merge_partials(nothing, nothing)
    assert torch.equal(empty_value, nothing[0])
    assert torch.equal(empty_lse, nothing[1])


@pytest.mark.parametrize("kv_cache", [True, False])
def test_anchor_stands_for_as_many_tokens_as_it_says(kv_cache: bool) -> None:
    """P9: an anchor with log n equals n copies of its token, in every layer; without the log it does not."""
    config, copies = tracker_config(3, 2), 8
    tracker = random_tracker(config).double()
    runner = Runner(tracker, config, OnlineConfig(max_anchors=copies, kv_cache=kv_cache))
    stream, token = Stream.random(5, config).to(torch.float64), torch.randn(config.channels, dtype=torch.float64)
    for _ in range(len(stream)):
        runner.push(stream)

    def answer(places: int, log_count: float) -> Tensor:
        for place in range(copies):
            runner.memory.anchor(place, token, 1, log_count if place < places else -math.inf)
        return runner.tracking.answer([runner.memory], [runner.plan]).logits

    assert runner.plan is not None
    one, many = answer(1, math.log(copies)), answer(copies, 0.0)
    torch.testing.assert_close(one, many, atol=1e-12, rtol=1e-10)
    assert not torch.allclose(answer(1, 0.0), many, atol=1e-4)


def test_resetting_a_query_touches_no_other() -> None:
    """P10: of decoder layer 0, the other queries' attention stays the same to the bit."""
    config = tracker_config(3, 2)
    runner = Runner(random_tracker(config), config)
    stream = Stream.random(100, config)
    for _ in range(len(stream)):
        runner.push(stream)
    before = first_look(runner)
    runner.memory.reset_sinks(2)
    after = first_look(runner)
    others = [0, 1, 3, 4]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-4)
    assert torch.isfinite(after).all()


@torch.no_grad()
def test_one_audio_query_a_frame_is_enough() -> None:
    """P11: the official fusion runs one audio query for each object token; their results never differ."""
    config = tracker_config()
    tracker, literal = random_tracker(config), LiteralTracker(config).eval()
    literal.load_state_dict(tracker.state_dict())
    stream = Stream.random(20, config)
    objects = tracker.encode(stream.frame_queries[None])
    expected = literal.fuse(objects, stream.audio)
    torch.testing.assert_close(tracker.fuse(objects, stream.audio), expected, **TOLERANCE)
    runner = Runner(tracker, config)
    runner.push(stream, len(stream))
    torch.testing.assert_close(runner.held()[1], expected[0], **TOLERANCE)


@pytest.mark.parametrize("window", [5, 6])
@torch.no_grad()
def test_released_padding_changes_nothing(window: int) -> None:
    """P15: the official code pads the last window; ours has its true length."""
    config = tracker_config(window)
    tracker, literal = random_tracker(config), LiteralTracker(config).eval()
    literal.load_state_dict(tracker.state_dict())
    runner, stream = Runner(tracker, config), Stream.random(4 * window, config)
    for t in range(len(stream)):
        answer = runner.push(stream)
        predictions, _ = literal(stream.frame_queries[None, : t + 1], stream.audio[: t + 1])
        torch.testing.assert_close(answer.logits, predictions[-1].logits, **TOLERANCE)


def test_sinks_come_nearer_to_full_history_than_the_ring_alone() -> None:
    """After ten rings; the error of later decoder layers does not grow with the stream."""
    config = tracker_config()
    tracker = random_tracker(config)
    stream = Stream.random(360, config)
    expected = offline(tracker, stream, len(stream))[0].mask_embed
    errors = {}
    for sinks in ("per_query", "first", "none"):
        runner = Runner(tracker, config, OnlineConfig(sinks=sinks))
        for _ in range(len(stream)):
            answer = runner.push(stream)
        errors[sinks] = float((answer.mask_embed - expected).norm() / expected.norm())
    assert errors["per_query"] < 0.2 * errors["none"], errors
    assert errors["first"] != errors["none"]


def test_first_frames_stay_visible() -> None:
    """`sinks="first"`: layer 0 sees the ring and the first frames, as final as they were when they left."""
    config = tracker_config(3, 2)
    tracker = random_tracker(config).double()
    runner = Runner(tracker, config, OnlineConfig(sinks="first", first_frames=2))
    stream = Stream.random(100, config).to(torch.float64)
    for _ in range(len(stream)):
        runner.push(stream)
    held = runner.held()[0]
    bias = torch.full((len(stream),), -torch.inf, dtype=torch.float64)
    bias[:2] = bias[held:] = 0
    expected = first_look_offline(runner, stream, bias.repeat_interleave(3))
    torch.testing.assert_close(first_look(runner), expected, atol=1e-10, rtol=1e-10)


def test_keys_without_a_cache_are_the_same() -> None:
    config = tracker_config(3, 4)
    tracker = random_tracker(config)
    cached, plain = Runner(tracker, config), Runner(tracker, config, OnlineConfig(kv_cache=False))
    stream = Stream.random(60, config)
    for _ in range(len(stream)):
        torch.testing.assert_close(cached.push(stream).logits, plain.push(stream).logits, **TOLERANCE)


def test_pages_without_evidence_are_not_folded() -> None:
    config = tracker_config(3, 2)
    tracker = random_tracker(config)
    runner = Runner(tracker, config, OnlineConfig(sink_write_gate=0.3))
    stream = Stream.random(60, config)
    for t in range(len(stream)):
        arrival = replace(stream.arrival(t), evidence=torch.tensor([0.1 if t < 30 else 0.9]))
        (plan,) = runner.tracking.push([runner.memory], [arrival])
        runner.tracking.answer([runner.memory], [plan])
        folded = bool(torch.isfinite(runner.memory.sink_lse).any())
        assert folded == (t >= 32 + runner.tracking.geometry.ring - 3), t


def test_streams_at_different_times_go_together() -> None:
    """Batched pushes of streams in other phases give what each gives alone."""
    config = tracker_config(5, 3)
    tracker = random_tracker(config)
    tracking = StreamTracker(tracker, OnlineConfig())
    like = tracker.query_feat.weight
    starts = [0, 1, 7, 38, 90]
    streams = [Stream.random(160, config, seed=seed) for seed in range(len(starts))]
    alone = [Runner(tracker, config) for _ in starts]
    memories = [TrackerMemory.empty(config, tracking.geometry, True, like) for _ in starts]
    for memory, stream, start, runner in zip(memories, streams, starts, alone, strict=True):
        for t in range(start):
            tracking.answer([memory], tracking.push([memory], [stream.arrival(t)]))
            runner.push(stream)
    for _ in range(50):
        arrivals = [s.arrival(m.seen) for s, m in zip(streams, memories, strict=True)]
        answer = tracking.answer(memories, tracking.push(memories, arrivals))
        for n, (runner, stream) in enumerate(zip(alone, streams, strict=True)):
            torch.testing.assert_close(answer.logits[n], runner.push(stream).logits[0], **TOLERANCE)


def test_frozen_encoder_sees_only_what_was_there() -> None:
    """`encoder="frozen"`: tokens never change once written, and the first frame's is the offline one."""
    config = tracker_config()
    tracker = random_tracker(config)
    runner, stream = Runner(tracker, config, OnlineConfig(encoder="frozen")), Stream.random(80, config)
    written: list[Tensor] = []
    for t in range(len(stream)):
        runner.push(stream)
        first, held = runner.held()
        written.append(held[-1].clone())
        torch.testing.assert_close(held, torch.stack(written[first:]), atol=0, rtol=0)
        if t == 0:
            torch.testing.assert_close(held, offline(tracker, stream, 1)[1], **TOLERANCE)
    assert not torch.allclose(held, offline(tracker, stream, len(stream))[1][first:], atol=1e-2)


@pytest.mark.parametrize(
    ("window", "layers", "online", "words"),
    [
        (0, 6, OnlineConfig(), "token_window"),
        (6, 6, OnlineConfig(ring_seconds=12), "ring_seconds"),
    ],
)
def test_models_that_cannot_stream_are_refused(window: int, layers: int, online: OnlineConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StreamTracker(random_tracker(tracker_config(window, layers)), online)


@pytest.mark.parametrize(("hop", "frames"), [(1.0, 36), (0.5, 72), (0.4, 90), (1 / 3, 108), (2.0, 24)])
def test_ring_is_as_long_at_any_hop(hop: float, frames: int) -> None:
    """36 s by default; at a hop of 2 s a little more, since the encoder needs four windows."""
    tracker = random_tracker(tracker_config())
    assert StreamTracker(tracker, OnlineConfig(hop_seconds=hop)).geometry.ring == frames


def test_ring_is_measured_in_seconds() -> None:
    tracker = random_tracker(tracker_config())
    assert StreamTracker(tracker, OnlineConfig(ring_seconds=60)).geometry.ring == 60
    assert StreamTracker(tracker, OnlineConfig(ring_seconds=61, hop_seconds=0.5)).geometry.ring == 126
