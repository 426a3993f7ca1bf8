"""Made data: deterministic, true to its protocol, in AVISeg's layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from avis_stream.cli import main
from avis_stream.data import rle
from avis_stream.errors import DataError
from avis_stream.synth.assets import AssetLibrary, picture_key, sound_key
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import STREAMS, Protocol
from avis_stream.synth.scene import Scene, make_scene
from avis_stream.synth.soundscape import RATE, runs
from avis_stream.synth.story import tell_story
from avis_stream.synth.write import write_set

SMALL = replace(Protocol.load(), size=(96, 64), seconds={"train": (4, 6), "val": (4, 6), "test": (4, 6)})


def scene(index: int, seed: int = 0, protocol: Protocol = SMALL) -> Scene:
    return make_scene(
        ProceduralLibrary(), protocol, seed=seed, index=index, seconds=(4, 6), size=protocol.size, photograph_share=0.0
    )


def test_the_protocol_is_frozen() -> None:
    """Results name this hash: a change of the protocol is a new file, not an edit of this one."""
    assert Protocol.load().digest == "4bee64e73e4d4c4e08bf2481a26a9c6e77e054398c0435fcb7f535da6de204b2"


def test_the_protocol_of_streams_is_frozen() -> None:
    assert Protocol.load(STREAMS).digest == "c49c77f63531170d8e7941b3e5f74296a26076caf294641a488e3e942490f551"


def test_streams_are_full_of_absences_and_returns_look_different() -> None:
    protocol = replace(Protocol.load(STREAMS), size=(96, 64), visit_seconds=(2, 5), leaves_seconds=(2, 20))
    library = ProceduralLibrary()
    stories = [tell_story(protocol, library.classes, 120, np.random.default_rng(i)) for i in range(20)]
    stays, gaps = [], []
    for actor in (a for story in stories for a in story.actors):
        visits = runs(actor.present)
        stays += [end - begin for begin, end in visits[1:-1]]
        gaps += [later[0] - earlier[1] for earlier, later in pairwise(visits)]
    assert 2 <= min(stays) <= max(stays) <= 5
    assert 2 <= min(gaps) <= max(gaps) <= 20
    assert np.median(gaps) < 9, "short absences are as likely as long ones, on a scale of ratios"

    made = make_scene(library, protocol, seed=0, index=1, seconds=(60, 60), size=(96, 64), photograph_share=0.0)
    visits = runs(made.story.actors[0].present)
    places = []
    for begin, _ in visits:
        seen = made.stage.shot(begin + 0.5).visible[0]
        if seen is not None:
            places.append((*np.argwhere(seen).mean(0).round(), int(seen.sum())))
    assert len(set(places)) == len(places) > 2


def test_the_same_seed_makes_the_same_video_and_another_does_not() -> None:
    first, again, other = scene(3), scene(3), scene(3, seed=1)
    assert np.array_equal(first.wave, again.wave)
    for seconds in (0.0, 1.9, 2.0):
        assert np.array_equal(first.stage.shot(seconds).rgb, again.stage.shot(seconds).rgb)
    assert first.wave.shape != other.wave.shape or not np.array_equal(first.wave, other.wave)


def test_an_instant_does_not_depend_on_what_was_drawn_before() -> None:
    one, other = scene(1), scene(1)
    other.stage.shot(0.3)
    assert np.array_equal(one.stage.shot(2.5).rgb, other.stage.shot(2.5).rgb)


def test_stories_keep_to_the_protocol() -> None:
    classes = ProceduralLibrary().classes
    protocol = replace(SMALL, leaves_share=1.0)
    stories = [tell_story(protocol, classes, 30, np.random.default_rng(i)) for i in range(300)]
    pairs = [s for s in stories if s.pair]
    assert 0.2 < len(pairs) / len(stories) < 0.4
    assert 0.35 < sum(s.pair == "cued" for s in pairs) / len(pairs) < 0.65
    for story in stories:
        for actor in story.actors:
            assert not (actor.sounding & ~actor.present).any()
            assert not (actor.holder and actor.sounding.any())
            assert 3 <= 30 - actor.present.sum() <= 8
    cued = [s for s in pairs if s.pair == "cued" and not any(a.holder for a in s.actors)]
    assert all(np.array_equal(a.moving, a.sounding) for s in cued for a in s.actors[:2])
    silent = np.mean([any(not a.sounding[t] for a in s.actors if a.present[t]) for s in stories for t in range(30)])
    assert silent >= 0.6, "at least one visible object is silent in 60 % of the frames"


def test_every_labelled_second_holds_its_sound_and_every_second_room_tone() -> None:
    for index in range(8):
        made = scene(index, protocol=replace(SMALL, offscreen_share=0.0, room_tone_dbfs=(-60, -59)))
        level = np.sqrt((made.wave.reshape(-1, RATE) ** 2).mean(axis=1))
        sounding = np.any([a.sounding for a in made.story.actors], axis=0)
        assert (level > 10 ** (-62 / 20)).all()
        assert (level[~sounding] < 10 ** (-57 / 20)).all()
        assert (level[sounding] > 10 ** (-45 / 20)).all()


def test_runs() -> None:
    assert runs(np.array([1, 1, 0, 0, 1], bool)) == [(0, 2), (4, 5)]
    assert runs(np.zeros(3, bool)) == []


def test_written_sets_read_like_aviseg(tmp_path: Path) -> None:
    path = write_set(tmp_path, "val", [scene(i) for i in range(3)], SMALL, seed=0)
    document = json.loads(path.read_text())
    assert document["info"]["protocol"] == SMALL.digest
    assert [c["id"] for c in document["categories"]] == list(range(1, 27))
    for video in document["videos"]:
        name = video["file_names"][0].split("/")[0]
        rate, wave = wavfile.read(tmp_path / "val" / "WAVAudios" / f"{name}.wav")
        assert rate == RATE
        assert wave.shape == (RATE * video["length"], 2)
        for file_name in video["file_names"]:
            assert Image.open(tmp_path / "val" / "JPEGImages" / file_name).size == SMALL.size
            assert Image.open(tmp_path / "val" / "PrevImages" / file_name).size == SMALL.size
    assert document["annotations"]
    lengths = {video["id"]: video["length"] for video in document["videos"]}
    for annotation in document["annotations"]:
        heard, visible = annotation["segmentations"], annotation["visible_segmentations"]
        assert len(heard) == len(visible) == lengths[annotation["video_id"]]
        assert any(heard)
        assert all(code is None or code == visible[t] for t, code in enumerate(heard))
        assert all((area is None) == (code is None) for area, code in zip(annotation["areas"], heard, strict=True))
    masks = [rle.decode(code) for a in document["annotations"] for code in a["segmentations"] if code]
    assert all(mask.shape == (64, 96) for mask in masks)
    assert all(a.keys() & {"segmentations"} == set() for a in document["silent_annotations"])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = tmp_path / "small.json"
    source = json.loads((Path(__file__).parents[2] / "avis_stream" / "data" / "protocol_v1.json").read_text())
    protocol.write_text(
        json.dumps({**source, "size": [64, 48], "seconds": {split: [2, 2] for split in ("train", "val", "test")}})
    )
    command = ["synth", str(tmp_path / "set"), "--videos", "1", "--protocol", str(protocol), "--films"]
    assert main(command) == 0
    assert (tmp_path / "set" / "train" / "films" / "train_00000.mp4").stat().st_size > 1000
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main([*command, "--force", "--photographs"]) == 1
    assert "--photographs needs --assets" in capsys.readouterr().err


def test_broken_protocols_say_so(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read as a protocol"):
        Protocol.load(path)
    path = tmp_path / "q.json"
    path.write_text('{"version": 1, "colour": 2}')
    with pytest.raises(DataError, match=r"fields missing .*unknown \['colour'\]"):
        Protocol.load(path)


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("coco_000000000036_0", "000000000036"),
        ("pet_newfoundland_113", "newfoundland_113"),
        ("bsds_113016_4", "bsds_113016"),
        ("web_0190", "web_0190"),
    ],
)
def test_picture_keys(stem: str, key: str) -> None:
    assert picture_key(stem) == key


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        ("catmeows_B_ANI01_MC_FN_SIM01_101", "catmeows_ANI01"),
        ("fsdd_0_george_15", "fsdd_george"),
        ("gs_b7_57", "gs_b7"),
        ("fluid_09", "fluid"),
        ("esc10_1-100032-A", "esc10_1-100032"),
        ("phil_guitar_As4", "phil_guitar_As4"),
    ],
)
def test_sound_keys(stem: str, key: str) -> None:
    assert sound_key(stem) == key


def test_splits_share_nothing(assets: Path) -> None:
    names: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        library = AssetLibrary(assets, SMALL, split)
        assert library.classes == ("cat", "dog", "tuba")
        rng = np.random.default_rng(0)
        sprites = {library.sprite("dog", rng).name for _ in range(80)}
        sounds = {library.sound("dog", rng).name for _ in range(80)}
        photographs = {library.photograph(rng).name for _ in range(80)}
        names[split] = {f"sprite {n.removeprefix('pet_')}" for n in sprites} | {f"sound {n}" for n in sounds}
        names[split] |= {f"sprite {n}" for n in photographs}
        assert "sprite web_empty" not in names[split]
    assert not names["train"] & names["val"]
    assert not names["train"] & names["test"]
    assert not names["val"] & names["test"]


def test_photographs_make_scenes(assets: Path) -> None:
    library = AssetLibrary(assets, SMALL, "train")
    made = make_scene(library, SMALL, seed=0, index=0, seconds=(4, 4), size=(96, 64), photograph_share=1.0)
    assert made.kind == "photograph"
    assert [a.class_name for a in made.story.actors] == ["dog"]
    mask = made.stage.shot(1.0).visible[0]
    assert mask is not None
    assert 0.2 < mask.mean() < 0.6


def test_photographs_show_classes_to_use_alone(assets: Path, tmp_path: Path) -> None:
    """A model of few classes has no number for the others."""
    shutil.copytree(assets, tmp_path / "assets")
    for label in (tmp_path / "assets" / "pet_labels").glob("*.txt"):
        label.write_text("17 0 0 0.9 0 0.9 0.9 0 0.9\n\n18 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n")
    shown = {}
    for only in (None, ("cat", "dog"), ("dog", "tuba"), ("tuba",)):
        library = AssetLibrary(tmp_path / "assets", SMALL, "train", only=only)
        if library.has_photographs:
            shown[only] = [name for name, _ in library.photograph(np.random.default_rng(0)).objects]
    assert shown == {None: ["cat", "dog"], ("cat", "dog"): ["cat", "dog"], ("dog", "tuba"): ["dog"]}


def test_folders_without_assets_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class has both"):
        AssetLibrary(tmp_path, SMALL, "train")
