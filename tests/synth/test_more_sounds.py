"""More recordings for training: half of what is heard of a class that has them, no source more often than another."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from avis_stream.commands.train import _library, run_training
from avis_stream.config import AVISEG_CLASSES
from avis_stream.errors import DataError
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.library import Library
from avis_stream.synth.more_sounds import MoreSounds
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol

RATE = 16_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of one source of dogs, one of another, one of no class; a silent file that nobody may be given."""
    names = [f"sounds/dog/many_{n}" for n in range(4)] + ["sounds/dog/lone_0", "sounds_other/rain/wet_0"]
    for name in names:
        write_tone(tmp_path / f"{name}.wav", 0.5)
    write_tone(tmp_path / "sounds/dog/lone_1.wav", 0.0)
    (tmp_path / "sounds/dog/read_me.txt").write_text("not a recording")
    return tmp_path


def write_tone(path: Path, level: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(np.arange(RATE) * 0.3)
    wavfile.write(path, RATE, (wave * 32_000).astype(np.int16))


def names_of(library: Library, class_name: str | None, count: int = 600) -> Counter[str]:
    rng = np.random.default_rng(3)
    return Counter(library.sound(class_name, rng).name for _ in range(count))


def test_half_is_more_and_sources_are_heard_alike(folder: Path) -> None:
    heard = names_of(MoreSounds(ProceduralLibrary(), folder), "dog")
    many, lone = sum(count for name, count in heard.items() if name.startswith("many_")), heard["lone_0"]
    assert many + lone == pytest.approx(300, abs=60)
    assert many == pytest.approx(lone, abs=60)
    assert set(heard) > {"many_0", "many_1", "many_2", "many_3", "lone_0"}
    assert "lone_1" not in heard


def test_sounds_of_no_class_too(folder: Path) -> None:
    assert names_of(MoreSounds(ProceduralLibrary(), folder), None)["wet_0"] == pytest.approx(300, abs=60)


def test_classes_without_more_and_pictures_are_the_librarys(folder: Path) -> None:
    library = ProceduralLibrary()
    more = MoreSounds(library, folder)
    assert not names_of(more, "cat", 50).keys() & {"many_0", "lone_0", "wet_0"}
    assert more.classes == library.classes
    one, same = (x.sprite("dog", np.random.default_rng(1)) for x in (more, library))
    assert np.array_equal(one.rgba, same.rgba)


def test_the_same_state_gives_the_same(folder: Path) -> None:
    more = MoreSounds(ProceduralLibrary(), folder)
    assert [more.sound("dog", np.random.default_rng(n)).name for n in range(20)] == [
        more.sound("dog", np.random.default_rng(n)).name for n in range(20)
    ]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings"):
        MoreSounds(ProceduralLibrary(), tmp_path)


def test_a_broken_recording_is_named(folder: Path) -> None:
    (folder / "sounds/cat").mkdir()
    (folder / "sounds/cat/torn_0.ogg").write_bytes(b"OggS is not enough")
    with pytest.raises(DataError, match=r"torn_0\.ogg cannot be read as a recording"):
        names_of(MoreSounds(ProceduralLibrary(), folder), "cat")


def test_training_asks_for_it_by_the_second_folder(tmp_path: Path) -> None:
    data = os.pathsep.join(["synth:", str(tmp_path / "none")])
    with pytest.raises(DataError, match="no recordings"):
        run_training(data, "avism_mini", tmp_path / "out", init=None, resume=None, settings=[])


def test_training_hears_them_beside_a_folder_of_assets(assets: Path, folder: Path) -> None:
    """Half of what is heard of a class is of the assets' training split, and all that is seen."""
    protocol = Protocol.load()
    library = _library(os.pathsep.join([f"synth:{assets}", str(folder)]), protocol, AVISEG_CLASSES)
    alone = AssetLibrary(assets, protocol, "train")
    heard, own = names_of(library, "dog"), names_of(alone, "dog")
    assert set(heard) > {"many_0", "many_1", "many_2", "many_3", "lone_0"}
    assert set(heard) & set(own)
    assert set(heard) <= set(own) | {"many_0", "many_1", "many_2", "many_3", "lone_0"}
    assert {"wet_0"} < set(names_of(library, None, 100))
    assert library.classes == alone.classes
    one, same = (x.sprite("dog", np.random.default_rng(1)) for x in (library, alone))
    assert one.name == same.name
    assert isinstance(_library(f"synth:{assets}", protocol, AVISEG_CLASSES), AssetLibrary)
