"""Gathering of recordings, without packages: what its table may say, which files it takes, what it writes of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from tool_files import TOOLS, load_tool

from avis_stream.config import AVISEG_CLASSES
from avis_stream.synth.assets import read_sound

TABLE = tomllib.loads((TOOLS / "debian_sounds.toml").read_text())

tool = load_tool("gather_sounds")


def tone(path: Path, seconds: float, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * 440 * np.arange(int(8000 * seconds)) / 8000)
    wavfile.write(path, 8000, (wave * 32_000).astype(np.int16))
    return path


def test_the_table_names_classes_and_fonts_that_there_are() -> None:
    kinds = set(TABLE) - {"fonts", "instruments", "effects"}
    assert kinds | set(TABLE["instruments"]) <= {*AVISEG_CLASSES, "other"}
    assert set(TABLE["effects"]) <= set(TABLE["fonts"])
    assert set(TABLE["instruments"]) - {"other"} <= set(tool._RANGES)


def test_files_are_chosen_by_pattern_and_links_left_alone(tmp_path: Path) -> None:
    for name in ("a/dog1.wav", "a/dog2.wav", "a/cat.wav", "a/dog.txt"):
        tone(tmp_path / name, 0.2)
    (tmp_path / "a" / "dog3.wav").symlink_to(tmp_path / "a" / "cat.wav")
    assert [p.name for p in tool.chosen(tmp_path, ["/dog*"], "seed")] == ["dog1.wav", "dog2.wav"]
    with pytest.raises(SystemExit, match="no file of the package matches /horse"):
        tool.chosen(tmp_path, ["/dog*", "/horse*"], "seed")


def test_of_many_files_a_few_are_drawn_and_always_the_same(tmp_path: Path) -> None:
    for number in range(tool._MOST + 20):
        tone(tmp_path / f"{number}.wav", 0.01)
    drawn = tool.chosen(tmp_path, [".wav"], "seed")
    assert len(drawn) == tool._MOST
    assert drawn == tool.chosen(tmp_path, [".wav"], "seed")
    assert drawn != tool.chosen(tmp_path, [".wav"], "another")


def test_what_is_written_is_heard_by_training(tmp_path: Path) -> None:
    """Files whose names differ by case or ending alone do not overwrite each other; silence is left out and told."""
    root = tmp_path / "package"
    for name in ("Bark.wav", "bark.wav"):
        tone(root / name, 1.0)
    tone(root / "quiet.wav", 1.0, level=0.0)
    (root / "broken.wav").write_bytes(b"RIFFnothing")
    assert tool.copied(tmp_path / "out", "game", "dog", [".wav"], root) == 2
    files = sorted((tmp_path / "out" / "sounds" / "dog").iterdir())
    assert len(files) == 2
    assert all(path.name.startswith("game_") for path in files)
    sound = read_sound(files[0])
    assert sound is not None
    assert len(sound.samples) == pytest.approx(16_000, abs=200)
    peak = np.abs(np.fft.rfft(sound.samples)).argmax() * 16_000 / len(sound.samples)
    assert peak == pytest.approx(440, abs=2)
