"""Training on streams: the tracker is judged on what it would really remember, and nothing else learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avis_stream.commands.train import run_training
from avis_stream.config import LossConfig, StreamConfig, TrainConfig
from avis_stream.errors import CheckpointError, ConfigError
from avis_stream.models.avism import AVISM
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.tracking import Arrival, StreamTracker
from avis_stream.presets import preset
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.train.checkpoint import stored_configuration
from avis_stream.train.loop import train
from avis_stream.train.points import random_points
from avis_stream.train.source import SynthClips
from avis_stream.train.streams import (
    ALL_BUT_THE_TRACKER,
    LocalizedStream,
    StreamLosses,
    Stretch,
    Stretches,
    answers_with_sinks,
    localized_streams,
)
from avis_stream.weights.load import unfolded_model
from tests.models.test_sounding import SMALL

WINDOW, FRAMES = 2, 19
TINY = [*SMALL, f"tracker.token_window={WINDOW}", "tracker.shift_in_training=true"]
CONFIG = TrainConfig(
    steps=3,
    frames=FRAMES,
    clips=2,
    query_layers=1,
    learning_rate=1e-3,
    gradient_clip=1.0,
    frozen=ALL_BUT_THE_TRACKER,
    losses=LossConfig(points=64, presence_weight=1.0),
    streams=StreamConfig(count=2, mask_frames=5),
)


@pytest.fixture(scope="module")
def model() -> AVISM:
    torch.manual_seed(0)
    return unfolded_model(preset("avism_mini").with_overrides(TINY), None, "").eval()


@pytest.fixture(scope="module")
def streams(model: AVISM) -> list[LocalizedStream]:
    source = SynthClips(ProceduralLibrary(), Protocol.load(), frames=FRAMES, size=(96, 64), seed=5)
    return list(localized_streams(model, source, CONFIG))


def stretch(stream: LocalizedStream, length: int, *, remembers: bool = True) -> Stretch:
    return Stretch(stream, 1, 1 + length, remembers, (1, length))


def test_a_stream_is_what_the_localizer_saw(model: AVISM, streams: list[LocalizedStream]) -> None:
    for stream in streams:
        assert stream.queries.shape[:2] == (FRAMES, model.config.localizer.queries)
        assert stream.mask_features.shape[-2:] == stream.masks.shape[-2:]
        assert len(stream.found) == FRAMES
        for t, there in enumerate(stream.found):
            visible = stream.masks[:, t].flatten(1).any(dim=1)
            assert set(visible.nonzero()[:, 0].tolist()) <= set(there.ids.tolist())


def test_without_sinks_the_answers_are_the_decoders(model: AVISM, streams: list[LocalizedStream]) -> None:
    tokens = model.tracker.encode(streams[0].queries[None, :7].float())
    for ours, own in zip(answers_with_sinks(model.tracker, tokens, None), model.tracker.decode(tokens), strict=True):
        torch.testing.assert_close(ours.logits, own.logits)
        torch.testing.assert_close(ours.mask_embed, own.mask_embed)


@pytest.mark.parametrize("length", [1, 5, 12, 13, 15, 18])
def test_answers_are_those_of_the_online_tracker(model: AVISM, streams: list[LocalizedStream], length: int) -> None:
    """The ring holds 12 frames: in the longer stretches some have left it."""
    online = StreamTracker(model.tracker, OnlineConfig(max_anchors=0))
    memory = TrackerMemory.empty(model.config, online.geometry, True, model.tracker.query_feat.weight)
    stream = streams[0]
    for t in range(1, 1 + length):
        arrival = Arrival(stream.queries[t : t + 1].float(), stream.audio[t : t + 1])
        answer = online.answer([memory], online.push([memory], [arrival]))
    wanted = answer.logits

    seen: list[Tensor] = []
    losses = StreamLosses(model, CONFIG).eval()
    predict = model.tracker.predict
    model.tracker.predict = lambda state: seen.append(state) or predict(state)  # type: ignore[method-assign]
    try:
        losses([stretch(stream, length)], random_points(model.device))
    finally:
        model.tracker.predict = predict  # type: ignore[method-assign]
    torch.testing.assert_close(predict(seen[-1]).logits, wanted, rtol=0, atol=2e-5)


def test_what_left_the_ring_is_remembered_or_not(model: AVISM, streams: list[LocalizedStream]) -> None:
    losses, draw = StreamLosses(model, CONFIG).eval(), random_points(model.device)

    def total(length: int, *, remembers: bool) -> float:
        torch.manual_seed(3)
        return losses([stretch(streams[1], length, remembers=remembers)], draw)["total"].item()

    assert total(12, remembers=True) == total(12, remembers=False)
    assert total(18, remembers=True) != total(18, remembers=False)


def test_stretches_of_a_step_are_equally_long_and_the_same_each_time(streams: list[LocalizedStream]) -> None:
    source, again = Stretches(streams, CONFIG), Stretches(streams, CONFIG)
    lengths = set()
    for first in range(0, 40, CONFIG.clips):
        step = [source.clip(first + i) for i in range(CONFIG.clips)]
        assert len({(s.end - s.begin, s.remembers) for s in step}) == 1
        assert [(s.begin, s.end, s.mask_frames) for s in step] == [
            (s.begin, s.end, s.mask_frames) for s in (again.clip(first + i) for i in range(CONFIG.clips))
        ]
        lengths.add(step[0].end - step[0].begin)
    assert len(lengths) > 8


def test_only_the_tracker_learns(tmp_path: Path, streams: list[LocalizedStream]) -> None:
    torch.manual_seed(1)
    fresh = unfolded_model(preset("avism_mini").with_overrides(TINY), None, "")
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    seen: list[dict[str, float]] = []
    train(
        fresh, Stretches(streams, CONFIG), CONFIG, tmp_path,
        losses=StreamLosses(fresh, CONFIG), ahead=False, log=lambda _, values: seen.append(values),
    )  # fmt: skip
    moved = {name.split(".")[0] for name, value in fresh.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"tracker"}
    assert "clip_presence" in seen[0]


def test_streams_are_learnt_from_in_bfloat16(tmp_path: Path, streams: list[LocalizedStream]) -> None:
    torch.manual_seed(1)
    fresh = unfolded_model(preset("avism_mini").with_overrides(TINY), None, "")
    lower = replace(CONFIG, bfloat16=True)
    assert train(
        fresh, Stretches(streams, lower), lower, tmp_path, losses=StreamLosses(fresh, lower), ahead=False
    ).step == lower.steps  # fmt: skip


def test_the_command_keeps_its_streams_for_a_resumed_run(tmp_path: Path) -> None:
    settings = [*TINY, "train.steps=1", "train.frames=3", "train.streams.count=1", "train.losses.points=32"]
    run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=settings)
    made = (tmp_path / "streams.pt").stat().st_mtime_ns
    settings[settings.index("train.steps=1")] = "train.steps=2"
    run_training("synth", "avism_mini", tmp_path, init=None, resume=tmp_path, settings=settings)
    assert (tmp_path / "streams.pt").stat().st_mtime_ns == made
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_what_the_user_freezes_stays_frozen_and_the_stage_leaves_no_trace(tmp_path: Path) -> None:
    """In the schedule that is kept, which a run of another stage would take up."""
    settings = [*TINY, "train.steps=1", "train.frames=3", "train.streams.count=1", "train.losses.points=32"]
    settings.append("train.frozen=backbone.,tracker.encoder.,tracker.decoder.")
    run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=settings)
    _, schedule = stored_configuration(tmp_path / "last.pt")
    assert schedule.frozen == ("backbone.", "tracker.encoder.", "tracker.decoder.")
    torch.manual_seed(0)
    before = unfolded_model(preset("avism_mini").with_overrides(TINY), None, "").state_dict()
    after = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    moved = {".".join(name.split(".")[:2]) for name, value in after.items() if not torch.equal(value, before[name])}
    assert "tracker.class_embed" in moved
    assert all(name.startswith("tracker.") for name in moved)
    assert not moved & {"tracker.encoder", "tracker.decoder"}
    with pytest.raises(CheckpointError, match=r"are to learn; leave train\.frozen"):
        run_training("synth", "avism_mini", tmp_path, init=None, resume=tmp_path, settings=["train.streams.count=0"])


@pytest.mark.parametrize("setting", ["train.query_layers=0", "train.frozen=tracker."])
def test_a_stage_in_which_nothing_learns_is_refused_before_anything_is_lost(tmp_path: Path, setting: str) -> None:
    (tmp_path / "last.pt").write_text("a run of before")
    settings = [*TINY, "train.steps=1", "train.frames=3", "train.streams.count=1", setting]
    with pytest.raises(ConfigError, match=rf"nothing is left to learn with .*{setting}.*train\.streams\.count=1"):
        run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=settings, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_kept_stream_moves_as_a_whole(streams: list[LocalizedStream]) -> None:
    moved = replace(stretch(streams[0], 3)).to(torch.device("meta"))
    assert moved.stream.queries.device.type == moved.stream.found[0].ids.device.type == "meta"
