"""Training on sound alone: its truth is that of the story, the tags learn from it and nothing else does."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avis_stream.commands.train import run_training
from avis_stream.config import AVISEG_CLASSES, LossConfig, SoundStageConfig, StreamConfig, TrainConfig
from avis_stream.errors import AvisStreamError, CheckpointError, ConfigError
from avis_stream.models.avism import AVISM
from avis_stream.presets import preset
from avis_stream.synth.library import Rng, Sound
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.story import Actor, Offscreen, Story
from avis_stream.train.batches import Sample
from avis_stream.train.loop import train
from avis_stream.train.optimiser import all_but
from avis_stream.train.sounds import (
    STORY_SECONDS,
    DrawnSeconds,
    HeardSounds,
    SoundLosses,
    SynthSounds,
    encoder_of,
    heard_seconds,
    learns,
    load_sounds,
    save_sounds,
)
from avis_stream.train.source import harder, tags_of
from avis_stream.weights.load import unfolded_model
from tests.models.test_sounding import SMALL

COUNT = 23
CONFIG = TrainConfig(
    steps=4, clips=8, learning_rate=1e-3, gradient_clip=5.0, losses=LossConfig(tag_weight=3.0),
    sounds=SoundStageConfig(count=COUNT),
)  # fmt: skip
RATE = 16_000


def fresh_model() -> AVISM:
    torch.manual_seed(0)
    return unfolded_model(preset("avism_mini").with_overrides([*SMALL, "audio.adapter_rank=2"]), None, "")


def made(seed: int = 5) -> SynthSounds:
    return SynthSounds(ProceduralLibrary(), harder(Protocol.load()), seed=seed)


@pytest.fixture(scope="module")
def sounds() -> HeardSounds:
    seconds = list(heard_seconds(fresh_model(), made(), COUNT))
    assert [s.name for s in seconds] == [f"second {n}" for n in range(COUNT)]
    return HeardSounds(torch.stack([s.patch for s in seconds]), torch.stack([s.tags for s in seconds]))


def frozen(model: AVISM) -> TrainConfig:
    return replace(CONFIG, frozen=all_but(model, *learns(model)))


def learnt(
    folder: Path, sounds: HeardSounds, config: TrainConfig, *, resume: bool = False
) -> tuple[AVISM, list[dict[str, float]]]:
    """A fresh model after a run, and the losses of its steps."""
    model, seen = fresh_model(), []
    train(
        model, DrawnSeconds(sounds, config), replace(config, frozen=all_but(model, *learns(model))), folder,
        losses=SoundLosses(model, config), ahead=False, resume=resume, log=lambda _, values: seen.append(values),
    )  # fmt: skip
    return model, seen


# --- what is made -----------------------------------------------------------------------------------------------------


class Tones(ProceduralLibrary):
    """Each class is half a minute of one tone, what belongs to no class another."""

    def sound(self, class_name: str | None, rng: Rng) -> Sound:
        return tone(class_name)


@functools.cache
def tone(class_name: str | None) -> Sound:
    wave = np.sqrt(2) * np.sin(2 * np.pi * tone_hz(class_name) * np.arange(30 * RATE) / RATE)
    return Sound(wave.astype(np.float32), np.arange(0, 30 * RATE, RATE // 8), f"{class_name} tone")


def tone_hz(class_name: str | None) -> int:
    return 7000 if class_name is None else 300 + 200 * AVISEG_CLASSES.index(class_name)


def test_a_story_is_the_same_whenever_asked_for() -> None:
    one, again, other = made().clip(4), made().clip(4), made(seed=6).clip(4)
    assert torch.equal(one.seconds, again.seconds)
    assert torch.equal(one.tags, again.tags)
    assert not torch.equal(one.seconds, made().clip(5).seconds)
    assert not torch.equal(one.seconds, other.seconds)
    assert one.seconds.shape == (STORY_SECONDS, RATE)
    assert one.tags.shape == (STORY_SECONDS, len(AVISEG_CLASSES))
    assert one.name == "story 4"


def test_tags_are_what_is_to_be_heard() -> None:
    """By its tone, every class that is tagged fills half of its second or more, every other half of it or less.

    Seconds end anywhere, so a class may be in the half of a second that its truth does not speak of.
    """
    quiet, level = (-90.0, -90.0), 0.01
    protocol = replace(harder(Protocol.load()), room_tone_dbfs=quiet, object_dbfs=(-40.0, -40.0), pair_share=0.0)
    source = SynthSounds(Tones(), protocol, seed=3)
    clips = [source.clip(number) for number in range(12)]
    seconds, tags = torch.cat([c.seconds for c in clips]), torch.cat([c.tags for c in clips]) > 0
    energy = 2 * (torch.fft.rfft(seconds.double()).abs() / RATE / level) ** 2  # 1: a tone that fills its second
    bands = [slice(tone_hz(name) - 80, tone_hz(name) + 80) for name in AVISEG_CLASSES]
    heard = torch.stack([energy[:, band].sum(dim=1) for band in bands], dim=1)
    assert (tags.sum(dim=1) > 1).any()
    assert heard[tags].min() > 0.4
    assert heard[~tags].max() < 0.6


def test_tags_are_of_all_who_sound_outside_the_picture_too() -> None:
    def actor(name: str, *sounding: bool) -> Actor:
        return Actor(name, np.ones(3, bool), np.array(sounding), np.zeros(3, bool), holder=False)

    story = Story(
        3,
        (actor("dog", True, False, False), actor("cat", False, False, True), actor("dog", False, False, True)),
        (Offscreen(1, "tuba"), Offscreen(2, None)),
        "",
    )
    names = [{AVISEG_CLASSES[k] for k in row.nonzero()[:, 0]} for row in tags_of(story, [2, 1, 0], AVISEG_CLASSES)]
    assert names == [{"cat", "dog"}, {"tuba"}, {"dog"}]


def test_a_second_that_is_kept_is_what_the_encoder_gets(sounds: HeardSounds) -> None:
    model = fresh_model()
    story = made().clip(1)
    kept = slice(STORY_SECONDS, 2 * STORY_SECONDS)
    heard = model.hear(story.seconds)
    torch.testing.assert_close(encoder_of(model).embed(sounds.patches[kept].float()), heard, rtol=1e-2, atol=1e-2)
    assert torch.equal(sounds.tags[kept], story.tags > 0)
    assert sounds.patches.shape == (COUNT, 96, 64)
    assert sounds.patches.dtype == torch.float16


def test_what_is_kept_comes_back_or_says_why_not(tmp_path: Path) -> None:
    path, seconds = tmp_path / "sounds.pt", list(heard_seconds(fresh_model(), made(), 2))
    save_sounds(path, seconds, "two seconds")
    back = load_sounds(path, "two seconds")
    assert torch.equal(back.patches[1], seconds[1].patch)
    assert torch.equal(back.tags[1], seconds[1].tags)
    with pytest.raises(CheckpointError, match="holds two seconds; the run is to learn from three seconds"):
        load_sounds(path, "three seconds")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="holds no sounds that can be read"):
        load_sounds(path, "two seconds")


def test_samples_move_as_a_whole(sounds: HeardSounds) -> None:
    samples: list[Sample] = [made().clip(0), DrawnSeconds(sounds, CONFIG).clip(0)]
    for sample in samples:
        moved = sample.to(torch.device("meta"))
        assert {v.device.type for v in vars_of(moved) if isinstance(v, Tensor)} == {"meta"}


def vars_of(sample: Sample) -> list[object]:
    return [getattr(sample, name) for name in sample.__dataclass_fields__]


def test_draws_are_the_same_each_time_and_reach_everything(sounds: HeardSounds) -> None:
    def drawn(seed: int) -> list[str]:
        return [DrawnSeconds(sounds, replace(CONFIG, seed=seed)).clip(number).name for number in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {name.partition(" with")[0] for name in drawn(1)} == {f"second {n}" for n in range(COUNT)}
    assert 40 < sum(" with " in name for name in drawn(1)) < 80
    first, again = (DrawnSeconds(sounds, CONFIG).clip(5) for _ in range(2))
    assert torch.equal(first.patch, again.patch)


def test_two_at_once_hold_the_power_and_the_tags_of_both(sounds: HeardSounds) -> None:
    source = DrawnSeconds(sounds, replace(CONFIG, sounds=replace(CONFIG.sounds, mixed=1.0, tilt=0.0)))
    for number in range(20):
        drawn = source.clip(number)
        first, second = (int(word) for word in drawn.name.removeprefix("second ").split(" with "))
        assert torch.equal(drawn.tags, sounds.tags[first] | sounds.tags[second])
        own, rest = sounds.patches[first].float(), drawn.patch.float()
        assert (rest > own - 0.01).all()
        louder = (rest.exp() - own.exp()).clamp(min=1e-9).log() - sounds.patches[second].float()
        clear = rest > own + 1  # where the second is more than half of what is heard, so that its level can be read
        assert clear.any()
        assert louder[clear].std() < 0.05
        assert louder[clear].mean().abs() <= 1.52


def test_alone_and_untilted_a_draw_is_what_was_kept(sounds: HeardSounds) -> None:
    plain = DrawnSeconds(sounds, replace(CONFIG, sounds=replace(CONFIG.sounds, mixed=0.0, tilt=0.0))).clip(3)
    tilted = DrawnSeconds(sounds, replace(CONFIG, sounds=replace(CONFIG.sounds, mixed=0.0, tilt=0.5))).clip(3)
    which = int(plain.name.removeprefix("second "))
    assert torch.equal(plain.patch, sounds.patches[which])
    tilt = tilted.patch.float() - plain.patch.float()
    assert tilt.std(dim=0).max() < 0.01  # the same at all times, another in each band
    assert tilt.mean(dim=0).std() > 0.05


# --- what learns ------------------------------------------------------------------------------------------------------


def test_all_but_some_parts_is_said_in_few_names() -> None:
    model = fresh_model()
    named = all_but(model, *learns(model))
    learning = {name for name, _ in model.named_parameters() if not name.startswith(named)}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(learns(model))}
    assert any(name.endswith(".up.weight") for name in learning)
    assert {"backbone.", "tracker.", "localizer.sounding.tag_scale"} <= set(named)
    assert len(named) < 60
    assert set(all_but(model, "tracker.")) == {
        "backbone.", "pixel_decoder.", "localizer.", "clip_mask_features.", "audio_encoder.",
    }  # fmt: skip


def test_only_the_tags_and_the_adapters_learn_and_their_loss_falls(tmp_path: Path, sounds: HeardSounds) -> None:
    before = fresh_model().state_dict()
    model, seen = learnt(tmp_path, sounds, replace(CONFIG, steps=30))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(learns(model))}
    assert any(name.endswith(".down.weight") for name in moved)
    totals = [values["total"] for values in seen]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])
    assert seen[0]["total"] == pytest.approx(3 * seen[0]["frame_tags"])


def test_sounds_are_learnt_from_in_bfloat16(tmp_path: Path, sounds: HeardSounds) -> None:
    _, seen = learnt(tmp_path, sounds, replace(CONFIG, steps=10, bfloat16=True))
    assert seen[-1]["total"] < seen[0]["total"]


def test_a_resumed_run_goes_on_exactly(tmp_path: Path, sounds: HeardSounds) -> None:
    whole, _ = learnt(tmp_path / "whole", sounds, CONFIG)
    learnt(tmp_path / "parts", sounds, replace(CONFIG, steps=2))
    torch.manual_seed(99)
    again, seen = learnt(tmp_path / "parts", sounds, CONFIG, resume=True)
    assert len(seen) == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# --- the command ------------------------------------------------------------------------------------------------------

SETTINGS = [*SMALL, "train.steps=1", "train.clips=4", "train.sounds.count=6"]


def test_the_command_keeps_its_sounds_for_a_resumed_run(tmp_path: Path) -> None:
    weights = run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=SETTINGS)
    made_at = (tmp_path / "sounds.pt").stat().st_mtime_ns
    more = ["train.steps=2"]
    assert run_training("synth", "avism_mini", tmp_path, init=None, resume=tmp_path, settings=more) == weights
    assert (tmp_path / "sounds.pt").stat().st_mtime_ns == made_at
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    with pytest.raises(AvisStreamError, match=r"holds a run already \("):
        run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=SETTINGS)


def test_what_the_user_freezes_stays_frozen(tmp_path: Path) -> None:
    settings = [*SETTINGS, "audio.adapter_rank=2", "train.frozen=audio_encoder."]
    run_training("synth", "avism_mini", tmp_path, init=None, resume=None, settings=settings)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert TrainConfig.from_json(state["train"]).frozen == ("audio_encoder.",)
    learning = [name for name, _ in fresh_model().named_parameters() if name.startswith("localizer.sounding.norm.")]
    learning += [name for name, _ in fresh_model().named_parameters() if name.startswith("localizer.sounding.tag.")]
    assert len(state["optimiser"]["state"]) == len(learning), "no adapter"


@pytest.mark.parametrize(
    ("data", "setting", "words"),
    [
        ("synth", "localizer.sounding_head=false", "and avism_mini has none: take avism_mini, or set localizer"),
        ("synth", "audio.encoder=deaf", "takes an encoder that listens, and avism_mini has audio"),
        ("made", "train.seed=1", r"--data must be synth or synth:ASSETS, got made; with train\.sounds\.count=0"),
        ("synth", "train.streams.count=3", r"sounds\.count must be 0 where streams\.count is 3: .*, got 6"),
    ],
    ids=["no_head", "deaf", "not_made", "streams_too"],
)
def test_what_cannot_be_is_refused_before_anything_is_lost(tmp_path: Path, data: str, setting: str, words: str) -> None:
    (tmp_path / "last.pt").write_text("a run of before")
    settings = [*SETTINGS, "localizer.motion_cue=false", "localizer.fusion_hears=true", setting]
    with pytest.raises(ConfigError, match=words):
        run_training(data, "avism_mini", tmp_path, init=None, resume=None, settings=settings, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_losses_refuse_a_model_whose_encoder_does_not_listen() -> None:
    brought = unfolded_model(preset("avism_mini").with_overrides([*SMALL, "audio.encoder=none"]), None, "")
    with pytest.raises(ConfigError, match="takes an encoder that listens, and avism_mini has audio"):
        SoundLosses(brought, CONFIG)


def test_losses_refuse_a_model_that_does_not_tell_who_sounds() -> None:
    settings = [*SMALL, "localizer.motion_cue=false", "localizer.fusion_hears=true", "localizer.sounding_head=false"]
    deaf = unfolded_model(preset("avism_mini").with_overrides(settings), None, "")
    with pytest.raises(ConfigError, match="sounds alone teach a sounding head"):
        SoundLosses(deaf, CONFIG)


def test_configurations_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"SoundStageConfig\.count must be >= 0 seconds, got -1"):
        SoundStageConfig(count=-1)
    with pytest.raises(ConfigError, match=r"SoundStageConfig\.mixed must be in \[0, 1\], got 1.5"):
        SoundStageConfig(mixed=1.5)
    with pytest.raises(ConfigError, match=r"SoundStageConfig\.tilt must be >= 0 nats, got -1"):
        SoundStageConfig(tilt=-1)
    with pytest.raises(ConfigError, match="one run teaches the memory, another the sound"):
        TrainConfig(sounds=SoundStageConfig(count=1), streams=StreamConfig(count=2))
    assert TrainConfig.from_json(CONFIG.to_json()) == CONFIG
