"""Configurations round-trip, vary by name, and say what is wrong with a setting."""

from __future__ import annotations

import pytest

from avis_stream.config import AVISMConfig, ResNetConfig
from avis_stream.config_text import settings_of, with_overrides
from avis_stream.errors import ConfigError
from avis_stream.memory import parse_bytes
from avis_stream.presets import PRESETS, preset, training


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    config = preset(name)
    assert AVISMConfig.from_json(config.to_json()) == config
    assert type(AVISMConfig.from_json(config.to_json()).backbone) is type(config.backbone)


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_is_listed_as_it_is_set(name: str) -> None:
    config, schedule = preset(name), training(name)
    assert config.with_overrides([*settings_of(config)]) == config
    assert with_overrides(schedule, [*settings_of(schedule)]) == schedule


def test_overrides() -> None:
    config = AVISMConfig().with_overrides(
        [
            "tracker.token_window=3",
            "localizer.audio_fusion=false",
            "classes=dog,cat",
            "backbone.blocks=1,2,3,4",
            "audio.encoder=none",
            "classes_trained=none",
        ]
    )
    assert config.tracker.token_window == 3
    assert not config.localizer.audio_fusion
    assert config.classes == ("dog", "cat")
    assert config.backbone == ResNetConfig(blocks=(1, 2, 3, 4))
    assert config.audio.encoder == "none"
    assert config.classes_trained is None
    assert AVISMConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tracker.token_windows=3", "no field 'token_windows' here; there are"),
        ("tracker.token_window=many", "invalid literal for int"),
        ("tracker.token_window=-1", "must be >= 0 frames, got -1"),
        ("tracker.token_window", "of the form field.path=value"),
        ("tracker=3", "names a group of fields"),
        ("channels.wide=3", "is a value, not a group"),
        ("audio.encoder=loud", "must be one of"),
        ("localizer.heads=7", "a divisor of the 256 channels"),
        ("classes=dog,cat,dog", r"AVISMConfig\.classes must be names that differ: .*, got \['dog', 'dog'\]"),
    ],
)
def test_bad_overrides(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AVISMConfig().with_overrides([setting])


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("score=3", "postprocess.score_threshold"),
        ("score_threshold=3", "postprocess.score_threshold"),
        ("postprocess.score_treshold=3", "postprocess.score_threshold"),
        ("postproces.score_threshold=3", "postprocess.score_threshold"),
        ("token_window=3", "tracker.token_window"),
        ("tracker.token_windows=3", "tracker.token_window"),
        ("clases=dog", "classes"),
    ],
)
def test_a_field_that_was_meant_is_named(setting: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=r"; did you mean .*\?$") as caught:
        AVISMConfig().with_overrides([setting])
    assert meant in str(caught.value).partition("did you mean ")[2].removesuffix("?").split(" or ")


def test_a_field_of_training_is_named_as_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"^--set train\.point:.*; did you mean train\.losses\.points\b"):
        with_overrides(training("avism_mini"), ["point=3"], before="train.")


def test_a_field_that_is_like_none_is_not_guessed() -> None:
    with pytest.raises(ConfigError) as caught:
        AVISMConfig().with_overrides(["xyzzy=3"])
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "must be JSON"),
        ("[]", "config must be an object"),
        ('{"colour": 1}', "unknown fields"),
        ('{"backbone": {"kind": "vgg"}}', "backbone.kind must be one of"),
        ('{"channels": [256]}', "a value of another type than AVISMConfig's"),
        ('{"classes": 26}', "a value of another type than AVISMConfig's"),
    ],
)
def test_bad_json(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AVISMConfig.from_json(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2000000", 2_000_000), ("4 kb", 4096), ("1t", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_bad_size() -> None:
    with pytest.raises(ConfigError, match=r"must look like 512M or 1\.5G, got 'plenty'"):
        parse_bytes("plenty")
