"""What a segmenter and its states refuse: each in words that help, and nothing is consumed or lost."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import open_config, play, scene, small_model

from avis_stream.errors import AvisStreamError, CheckpointError, ClockError, ConfigError, ShapeError, StateConsumedError
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.online.door import fingerprint
from avis_stream.types import NANOSECONDS, OnlineResult


def refused(
    kind: type[AvisStreamError], words: str, online: OnlineSegmenter, state: OnlineState, **change: Any
) -> None:
    film = scene()
    arguments = {"frame": film.frames[5], "audio": film.audio[5]} | change
    size = state.steps
    with pytest.raises(kind, match=words):
        online.step(arguments.pop("frame"), arguments.pop("audio"), state, **arguments)
    assert state.steps == size  # as it was, and not consumed


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        (ShapeError, "frame must be", {"frame": torch.zeros(3, 48, 80)}),
        (ShapeError, "frame must be", {"frame": torch.zeros(48, 80, 3, dtype=torch.uint8)}),
        (ShapeError, "audio must be", {"audio": torch.zeros(2, 16_000)}),
        (ShapeError, "at most 16000", {"audio": torch.zeros(16_001)}),
        (ShapeError, "finite", {"audio": torch.full((16_000,), torch.nan)}),
        (ShapeError, "finite", {"audio": torch.full((16_000,), torch.inf)}),
        (ShapeError, "previous must be", {"previous": torch.zeros(3, 24, 80, dtype=torch.uint8)}),
        (ClockError, "later", {"pts_ns": 4 * NANOSECONDS}),
        (ClockError, "later", {"pts_ns": 0}),
        (ConfigError, "pts_ns must be a whole number of 64 bits", {"pts_ns": 1 << 63}),
        (ConfigError, "pts_ns must be a whole number", {"pts_ns": 5.5e9}),
        (ConfigError, "segment must be a whole number", {"segment": "0"}),
    ],
)
def test_what_is_refused_leaves_the_state(kind: type[AvisStreamError], words: str, change: dict[str, Any]) -> None:
    online = OnlineSegmenter(small_model(), open_config())
    _, state = play(online, scene(), online.init_state(), range(5))
    refused(kind, words, online, state, **change)
    play(online, scene(), state, range(5, 6))


def test_numbers_may_come_from_numpy_and_from_results(tmp_path: Path) -> None:
    """A state holds Python's own: it is saved, and its events are written as JSON."""
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    results, state = play(online, film, online.init_state(), range(3))
    state = state.forget(results[-1].track_id[0])  # type: ignore[arg-type]
    time, part = np.int64(3 * NANOSECONDS), np.int64(0)
    result, state = online.step(film.frames[3], film.audio[3], state, pts_ns=time, frame_id=np.int64(3), segment=part)
    assert {type(event.track_id) for event in result.events if event.track_id is not None} == {int}
    state.save(tmp_path / "state.safetensors")


def test_states_of_others_are_refused() -> None:
    online = OnlineSegmenter(small_model(), open_config())
    state = OnlineSegmenter(small_model(seed=1), open_config()).init_state()
    refused(CheckpointError, "another", online, state)
    state = OnlineSegmenter(small_model(), open_config(ring_seconds=30)).init_state()
    refused(CheckpointError, "pages", online, state)
    for name, value in (("hop_seconds", 0.9), ("half_life_s", 60.0), ("sink_write_gate", 0.3)):
        state = OnlineSegmenter(small_model(), open_config(ring_seconds=18, **{name: value})).init_state()
        refused(CheckpointError, name, OnlineSegmenter(small_model(), open_config(ring_seconds=18)), state)
    OnlineSegmenter(small_model(), open_config(birth_score=0.9)).refresh(scene().frames[0], online.init_state())


def test_a_state_of_an_earlier_version_is_refused() -> None:
    """It bears a fingerprint of less than the whole model; that is said, instead of "another model"."""
    online = OnlineSegmenter(small_model(), open_config())
    state = online.init_state()
    state.body.model = "0123456789abcdef"
    refused(CheckpointError, "version", online, state)


@pytest.mark.parametrize("part", ["audio_encoder.", "tracker.", "backbone."])
def test_models_are_told_apart_by_all_their_weights(part: str) -> None:
    """A model that hears or sees otherwise is another, though its small tensors are the same."""
    model = copy.deepcopy(small_model())
    assert fingerprint(model) == fingerprint(small_model())
    largest = max((x for name, x in model.state_dict().items() if name.startswith(part)), key=torch.Tensor.numel)
    largest.mul_(1.01)
    assert fingerprint(model) != fingerprint(small_model())


def test_a_consumed_state_is_refused() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    state = online.init_state()
    online.step(film.frames[0], film.audio[0], state)
    for use in (
        lambda: online.step(film.frames[1], film.audio[1], state),
        lambda: state.clone(),
        lambda: state.nbytes,
        lambda: online.refresh(film.frames[1], state),
    ):
        with pytest.raises(StateConsumedError, match="clone"):
            use()
    assert repr(state) == "OnlineState(consumed)"


def test_one_state_is_not_two_streams() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    state = online.init_state()
    with pytest.raises(StateConsumedError, match="own"):
        online.step_many([film.frames[0]] * 2, [film.audio[0]] * 2, [state, state])
    assert state.steps == 0


def test_a_refused_stream_consumes_no_other() -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    states = [online.init_state(), online.init_state()]
    with pytest.raises(ShapeError, match="finite"):
        online.step_many(list(film.frames[:2]), [film.audio[0], film.audio[1] * torch.nan], states)
    assert [state.steps for state in states] == [0, 0]
    with pytest.raises(ShapeError, match="as many"):
        online.step_many(list(film.frames[:2]), list(film.audio[:1]), states)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"audio": slice(0, 2)}, "audio must be"),
        ({"audio": slice(0, 4)}, "audio must be"),
        ({"previous": slice(0, 2)}, "previous must be"),
        ({"pts_ns": slice(0, 2)}, "pts_ns must hold 3"),
        ({"segment": slice(0, 2)}, "segment must hold 3"),
    ],
    ids=str,
)
def test_catching_up_takes_as_much_of_everything(change: dict[str, slice], words: str) -> None:
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    state = online.init_state()
    given = {"audio": film.audio[:3], "pts_ns": [0, NANOSECONDS, 2 * NANOSECONDS], "previous": film.previous[:3]}
    given["segment"] = [0, 0, 1]
    whole = {"audio": film.audio, "pts_ns": given["pts_ns"], "previous": film.previous, "segment": given["segment"]}
    given |= {name: whole[name][part] for name, part in change.items()}
    with pytest.raises(ShapeError, match=words):
        online.catch_up(film.frames[:3], state=state, **given)
    assert state.steps == 0
    assert online.catch_up(film.frames[:3], film.audio[:3], state, whole["pts_ns"], film.previous[:3])[1].steps == 3


FEATURES = ("frame_queries", "clip_mask_features", "audio_feature", "sounding", "mask_embed", "logits")


def features(online: OnlineSegmenter) -> dict[str, torch.Tensor]:
    """What a localizer might say of a frame."""
    config, slots = online.model.config, online.tracking.geometry.slots
    sizes = (
        (slots, config.channels),
        (config.drawn_channels, 16, 24),
        (config.audio.feature_dim,),
        (slots,),
        (slots, config.drawn_channels),
        (slots, len(config.classes) + 1),
    )
    return {name: torch.rand(size) for name, size in zip(FEATURES, sizes, strict=True)}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_not_finite_are_refused(name: str, value: float) -> None:
    """One would stay in tokens and sinks for as long as the stream lasts."""
    online = OnlineSegmenter(small_model(), open_config())
    state, given = online.init_state(), features(online)
    given[name].view(-1)[3] = value
    with pytest.raises(ShapeError, match=rf"{name}s? must be finite, got 1 .*; leave the frame out"):
        online.step_features(state=state, **given)
    assert state.steps == 0


BROKEN = {
    "sound features": "audio_encoder.layers.1.bias",
    "frame queries": "localizer.layers.1.ffn.norm.bias",
    "logits": "localizer.class_embed.bias",
    "mask embed": "localizer.mask_embed.layers.2.bias",
    "sounding": "localizer.sounding.match.2.bias",
    "clip mask features": "pixel_decoder.mask_features.bias",
}
"""What of a model is not finite if one of its weights is not."""


@contextlib.contextmanager
def broken(model: AVISM, weight: str, value: float = torch.nan) -> Iterator[None]:
    values = model.get_parameter(weight)
    before = values.detach().clone()
    try:
        with torch.no_grad():
            values.view(-1)[0] = value
        yield
    finally:
        with torch.no_grad():
            values.copy_(before)


@pytest.mark.parametrize("what", BROKEN)
def test_a_model_that_yields_nan_ends_in_an_error_and_costs_no_stream(what: str) -> None:
    online, film = OnlineSegmenter(copy.deepcopy(small_model(objects="frame")), open_config()), scene()
    _, state = play(online, film, online.init_state(), range(5))
    twin = state.clone()
    with broken(online.model, BROKEN[what]):
        refused(ShapeError, rf"the model's {what} must be finite, got .*weights are broken", online, state)
        with pytest.raises(ShapeError, match=what):
            online.catch_up(film.frames[5:7], film.audio[5:7], state)
        if what in ("clip mask features", "sounding"):  # those of them that a refresh asks for
            with pytest.raises(ShapeError, match=what):
                online.refresh(film.frames[5], state, state.pts_ns, film.audio[5], film.previous[5])
    assert_same_result(
        online.step(film.frames[5], film.audio[5], state), online.step(film.frames[5], film.audio[5], twin)
    )


def test_infinite_answers_are_refused_for_all_streams_of_a_step() -> None:
    online, film = OnlineSegmenter(copy.deepcopy(small_model()), open_config()), scene()
    states = [play(online, film, online.init_state(), range(steps))[1] for steps in (1, 2)]
    with broken(online.model, BROKEN["logits"], torch.inf), pytest.raises(ShapeError, match="logits"):
        online.step_many([*film.frames[5:7]], [*film.audio[5:7]], states)
    assert [state.steps for state in states] == [1, 2]
    assert len(online.step_many([*film.frames[5:7]], [*film.audio[5:7]], states)[0]) == 2


def test_a_frame_kept_back_is_still_there_after_a_failed_look() -> None:
    online, film = OnlineSegmenter(copy.deepcopy(small_model()), open_config(alignment="official")), scene()
    _, state = play(online, film, online.init_state((48, 80)), range(3))
    last = state.clone()
    with broken(online.model, BROKEN["logits"]):
        refused(ShapeError, "logits", online, state)
        with pytest.raises(ShapeError, match="logits"):
            online.finish(last, film.audio[3])
    result, _ = online.step(film.frames[3], film.audio[3], state)
    assert result.frame_id == 2
    assert [own.frame_id for own in online.finish(last, film.audio[3])] == [2]


def test_a_frame_kept_back_that_always_fails_can_be_dropped() -> None:
    online, film = OnlineSegmenter(copy.deepcopy(small_model()), open_config(alignment="official")), scene()
    _, state = play(online, film, online.init_state((48, 80)), range(3))
    with broken(online.model, BROKEN["logits"]):
        for _ in range(2):
            refused(ShapeError, "logits", online, state)
        used, state = state, state.drop_held_frame()
        with pytest.raises(StateConsumedError):
            used.drop_held_frame()
        nobody, state = online.step(film.frames[3], film.audio[3], state)  # nothing is looked at: it is kept back
    assert nobody.frame_id == -1
    result, state = online.step(film.frames[4], film.audio[4], state)
    assert (result.frame_id, state.steps) == (3, 5)


def assert_same_result(one: tuple[OnlineResult, OnlineState], other: tuple[OnlineResult, OnlineState]) -> None:
    for name in ("track_id", "class_id", "score", "sounding", "mask"):
        assert torch.equal(getattr(one[0], name), getattr(other[0], name))
    assert one[0].events == other[0].events
    assert one[1].steps == other[1].steps


class StepOnce(torch.nn.Module):
    """The first step of a stream on features."""

    def __init__(self, online: OnlineSegmenter) -> None:
        super().__init__()
        self.online, self.model = online, online.model

    def forward(self, frame_queries: torch.Tensor, features: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        answer, _ = self.online.step_features(frame_queries, features, audio, self.online.init_state())
        return answer.pred_logits


def test_a_step_on_features_can_be_exported() -> None:
    """What looks at values stays out of graphs: an exported step takes the same features and says the same."""
    online = OnlineSegmenter(small_model(), open_config())
    given = tuple(features(online)[name] for name in FEATURES[:3])
    step = StepOnce(online)
    graph = torch.export.export(step, given, strict=False).module()
    torch.testing.assert_close(graph(*given), step(*given))


@pytest.mark.parametrize("settings", [{"alignment": "official"}, {"refine_delay": 2}], ids=str)
def test_what_keeps_frames_back_needs_their_size(settings: dict[str, Any]) -> None:
    online = OnlineSegmenter(small_model(), open_config(**settings))
    with pytest.raises(ConfigError, match="frame_size"):
        online.init_state()
    state = online.init_state((48, 80))
    refused(ShapeError, "another|init_state", online, state, frame=torch.zeros(3, 50, 80, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="catch_up"):
        online.catch_up(scene().frames[:2], scene().audio[:2], state)


@pytest.mark.parametrize("weight", [np.inf, np.nan, 0, -1.0, "3"])
def test_weights_of_pinned_identities_are_numbers(weight: Any) -> None:
    """An infinite one would make every later step NaN."""
    online, film = OnlineSegmenter(small_model(), open_config()), scene()
    results, state = play(online, film, online.init_state(), range(3))
    with pytest.raises(ConfigError, match="weight must be a finite number of tokens > 0, got"):
        state.pin(int(results[-1].track_id[0]), weight)
    state = state.pin(int(results[-1].track_id[0]), np.float32(2.5))
    play(online, film, state, range(3, 5))


@pytest.mark.parametrize("broken", [b"", b"not a state", None], ids=["empty", "text", "missing"])
def test_files_that_are_no_state_are_refused(broken: bytes | None, tmp_path: Any) -> None:
    path = tmp_path / "state.safetensors"
    if broken is not None:
        path.write_bytes(broken)
    with pytest.raises(CheckpointError, match="state"):
        OnlineState.load(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "other"},
        {"sinks": "all"},
        {"birth_hits": 0},
        {"hop_seconds": 0},
        {"hop_seconds": float("inf")},
        {"ring_seconds": float("inf")},
        {"slot_bonus": float("inf")},
        {"class_bonus": -float("inf")},
        {"forget_s": float("nan")},
        {"show_score": float("nan")},
        {"silence_dbfs": float("nan")},
        {"refine_delay": 18},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        OnlineSegmenter(small_model(), OnlineConfig(**settings))
