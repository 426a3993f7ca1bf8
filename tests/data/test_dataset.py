"""Data sets in AVISeg's layout: reading them, what is wrong with them, what is in them."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import HEIGHT, LENGTH, SQUARE, SQUARE_RLE, WIDTH, truth, write_set, write_wav
from PIL import Image
from scipy.io import wavfile

from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, read_annotations
from avis_stream.data.dataset import DataSplit, masks_of, open_split, splits
from avis_stream.data.scenarios import SCENARIOS, scenario_of_class, scenario_of_video
from avis_stream.data.statistics import split_statistics
from avis_stream.data.validate import data_set_problems
from avis_stream.errors import DataError
from avis_stream.sources.folder import read_picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def test_everything_in_a_split(root: Path) -> None:
    assert splits(root) == ["test"]
    split = open_split(root, "test", classes=AVISEG_CLASSES)
    assert len(split) == 2
    yard, hall = split.annotations.videos
    assert (yard.name, yard.length, yard.height, yard.width) == ("yard", LENGTH, HEIGHT, WIDTH)
    assert split.image(hall, 2).shape == (3, HEIGHT, WIDTH)
    assert split.image(hall, 2).float().mean(dim=(1, 2)).tolist() == pytest.approx([80, 100, 0], abs=2)
    assert split.previous(yard, 2) is None
    previous = split.previous(hall, 2)
    assert previous is not None
    assert previous[2].float().mean() > 190
    assert split.files(yard).wav == root / "test" / "WAVAudios" / "yard.wav"
    features = split.features(yard)
    assert features is not None
    assert features.shape == (LENGTH, 128)
    assert split.features(hall) is None


def test_pictures_are_read_as_a_folder_of_them_is(tmp_path: Path) -> None:
    """Upright by the note of a phone, 16 bits scaled and not clipped, in training as in `run`."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.full((7, 9, 3), 117, np.uint8)).save(tmp_path / "1.jpg", exif=turned, quality=95)
    Image.fromarray(np.full((9, 7), 30_000, np.uint16)).save(tmp_path / "2.png")
    video = Video(id=1, name="v", length=2, height=9, width=7, file_names=("1.jpg", "2.png"))
    root = tmp_path / "set"
    shutil.copytree(tmp_path, root / "test" / "JPEGImages", ignore=shutil.ignore_patterns("set"))
    split = DataSplit(root, "test", Annotations(root / "test.json", (video,), {}, {}))
    for t in range(2):
        assert split.image(video, t).float().mean() == pytest.approx(117, abs=2)
        assert torch.equal(split.image(video, t), read_picture(tmp_path / video.file_names[t]))


@pytest.mark.parametrize(
    ("dtype", "silence", "loud"),
    [(np.uint8, 128, 192), (np.int16, 0, 2**14), (np.int32, 0, 2**30), (np.float32, 0, 0.5)],
)
def test_sound_of_any_depth(root: Path, dtype: Any, silence: float, loud: float) -> None:
    split = open_split(root, "test")
    yard = split.annotations.videos[0]
    samples = np.full(16_000 * LENGTH, silence, dtype)
    samples[16_000:32_000] = loud
    wavfile.write(root / "test" / "WAVAudios" / "yard.wav", 16_000, samples)
    quiet, half = split.seconds(yard, [0, 1])
    assert not quiet.any()
    assert torch.allclose(half, torch.tensor(0.5))


def test_how_much_of_a_second_there_was(root: Path) -> None:
    split = open_split(root, "test")
    hall = split.annotations.videos[1]
    write_wav(root / "test" / "WAVAudios" / "hall.wav", 2.5)
    assert split.sound(hall, [1, 2, 3])[1].tolist() == [16_000, 8_000, 0]
    (root / "test" / "WAVAudios" / "hall.wav").unlink()
    assert split.sound(hall, [1])[1].tolist() == [0]


def test_sound_of_24_bits(root: Path) -> None:
    split = open_split(root, "test")
    yard = split.annotations.videos[0]
    with wave.open(str(root / "test" / "WAVAudios" / "yard.wav"), "wb") as file:
        file.setparams((1, 3, 16_000, 0, "NONE", ""))
        file.writeframes((2**22).to_bytes(3, "little") * 16_000 * LENGTH)
    assert torch.allclose(split.seconds(yard, [1]), torch.tensor(0.5))


def test_a_set_that_was_written_on_windows(root: Path) -> None:
    document = json.loads((root / "test.json").read_text())
    document["videos"][0]["file_names"] = [name.replace("/", "\\") for name in document["videos"][0]["file_names"]]
    before = open_split(root, "test")
    wanted = before.image(before.annotations.videos[0], 1)
    (root / "test.json").write_text(json.dumps(document))
    split = open_split(root, "test")
    yard = split.annotations.videos[0]
    assert yard.name == "yard"
    assert torch.equal(split.image(yard, 1), wanted)
    assert split.files(yard).wav is not None


def test_a_mask_of_another_size_is_refused_by_name(root: Path) -> None:
    split = open_split(root, "test")
    yard = split.annotations.videos[0]
    row = rle.encode(np.ones((1, WIDTH), bool))  # which would be spread over the whole picture
    track = Track(yard.id, 1, (row,) * yard.length)
    with pytest.raises(DataError, match=rf"video 'yard', frame 2: a mask of {WIDTH}x1 in a video of"):
        masks_of(track, yard, [2])


def test_masks_in_every_form(root: Path) -> None:
    split = open_split(root, "test")
    video = split.annotations.videos[0]
    (dog,) = split.annotations.tracks[video.id]
    masks = masks_of(dog, video, range(LENGTH))
    assert masks.sum(dim=(1, 2)).tolist() == [100, 100, 0, 0]
    assert torch.equal(masks[0], masks[1])  # the polygon and the run lengths
    assert masks_of(dog, video, [2, 3], visible=True).sum(dim=(1, 2)).tolist() == [100, 0]


def test_a_set_without_file_names_takes_the_images_in_order(tmp_path: Path) -> None:
    document = truth()
    for video in document["videos"]:
        del video["file_names"]
    root = write_set(tmp_path, document=document)
    (root / "test" / "JPEGImages" / "yard").rename(root / "test" / "JPEGImages" / "1")
    split = open_split(root, "test")
    assert [path.name for path in split.files(split.annotations.videos[0]).images] == [f"{t}.jpg" for t in range(4)]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "test.json").unlink(), "no such split"),
        (lambda root: shutil.rmtree(root), "no such folder"),
        (lambda root: (root / "test.json").write_text('{"videos": ['), r"test.json is no whole JSON.*line 1.*again"),
        (lambda root: (root / "test.json").write_bytes(b"\xff\xd8\xff"), "no text in UTF-8"),
        (lambda root: (root / "test.json").write_text("[]"), "must be an object with videos"),
        (lambda root: (root / "test.json").write_text('{"images": []}'), "videos must be a list, got nothing"),
    ],
)
def test_broken_files_are_refused(root: Path, harm: Callable[[Path], Any], words: str) -> None:
    harm(root)
    with pytest.raises(DataError, match=words) as caught:
        open_split(root, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["videos"], [], "videos is empty: there is nothing in this split"),
        (["videos", 1, "id"], 1, "videos id 1 occurs 2 times"),
        (["videos", 0, "height"], "24", r"videos\[0\] height must be int"),
        (["videos", 0, "length"], 5, r"videos\[0\].file_names has 4 entries, length says 5"),
        (["categories", 0, "name"], None, r"categories\[0\] name must be str, got nothing"),
        (["categories", 0, "id"], 0, r"categories\[0\].id must be at least 1, got 0"),
        (["annotations", 1, "video_id"], 7, r"annotations\[1\].video_id 7 is no video"),
        (["annotations", 1, "category_id"], 2, r"annotations\[1\].category_id 2 is no category.*which has 1, 6, 14"),
        (["annotations", 1, "segmentations"], [None], r"annotations\[1\].segmentations has 1 entries, its video 4"),
        (["annotations", 0, "segmentations", 2], "x", r"annotations\[0\].segmentations\[2\] must be null, run lengths"),
        (["annotations", 0, "areas"], 3, r"annotations\[0\].areas must be a list"),
        (["silent_annotations"], None, "silent_annotations must be a list or left out, got nothing"),
        (
            ["silent_annotations"],
            [{}],
            r"silent_annotations\[0\] video_id must be int.*visible_segmentations must be list",
        ),
        (
            ["silent_annotations"],
            [{"video_id": 1, "category_id": 1, "visible_segmentations": [None]}],
            r"silent_annotations\[0\].visible_segmentations has 1 entries, its video 4",
        ),
        (["annotations", 2], 3, r"annotations\[2\] must be an object"),
    ],
)
def test_contradictions_are_refused_with_their_field(tmp_path: Path, path: list[Any], value: Any, words: str) -> None:
    document: Any = truth()
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "test.json"
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=words) as caught:
        read_annotations(file)
    assert str(file) in str(caught.value)


def test_classes_a_model_does_not_know(root: Path) -> None:
    with pytest.raises(DataError, match=r"classes piano, dog are not among those of the model \(person, cat, \.\.\.\)"):
        open_split(root, "test", classes=["person", "cat"])


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_broken_images_and_features(root: Path, content: bytes) -> None:
    split = open_split(root, "test")
    yard = split.annotations.videos[0]
    (root / "test" / "JPEGImages" / "yard" / "1.jpg").write_bytes(content)
    (root / "test" / "FEATAudios" / "yard.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"yard/1.jpg cannot be read as an image"):
        split.image(yard, 1)
    with pytest.raises(DataError, match=r"yard.npy is no .npy file"):
        split.features(yard)
    (root / "test" / "JPEGImages" / "yard" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"yard/1.jpg: no such image"):
        split.image(yard, 1)


def test_a_sound_set_has_no_problems(root: Path) -> None:
    assert list(data_set_problems(root)) == []


def test_every_problem_is_listed_with_its_file_and_field(root: Path) -> None:
    document = truth()
    dog, piano, person = document["annotations"]
    dog["areas"][0] = 50
    dog["bboxes"][1] = [2, 2, 20, 10]
    dog["segmentations"][1] = SQUARE_RLE | {"size": [WIDTH, HEIGHT]}
    piano["segmentations"][0] = [[2, 2, 60, 2, 60, 12]]
    piano["segmentations"][1] = [[2, 2, 3]]
    piano["segmentations"][2] = [[2, 2, float("nan"), 2, 30, 12]]
    person["segmentations"][1] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    person["segmentations"][2] = {"size": [HEIGHT, WIDTH], "counts": "nonsense"}
    (root / "test.json").write_text(json.dumps(document))
    (root / "val.json").write_text("{")
    images, wavs = root / "test" / "JPEGImages", root / "test" / "WAVAudios"
    (images / "yard" / "0.jpg").unlink()
    (images / "yard" / "1.jpg").write_bytes((images / "yard" / "1.jpg").read_bytes()[:300])
    Image.new("RGB", (8, 8)).save(images / "yard" / "2.jpg")
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / "hall" / "9.jpg")
    write_wav(wavs / "yard.wav", 2)
    (wavs / "hall.wav").unlink()
    np.save(root / "test" / "FEATAudios" / "yard.npy", np.ones((2, 128), np.float32))
    problems = [str(problem).removeprefix(f"{root}/") for problem in data_set_problems(root)]
    expected = [
        "test.json: annotations[0].areas[0] is 50, the mask has 100 pixels",
        "test.json: annotations[0].segmentations[1] size is [32, 24], the video's [24, 32]",
        "test/JPEGImages/yard/0.jpg: is missing; videos[0].file_names lists it",
        "test/JPEGImages/yard/1.jpg: cannot be read as an image",
        "test/JPEGImages/yard/2.jpg: is 8x8, videos[0] says 32x24",
        "test/WAVAudios/yard.wav: lasts 2.0 s, its video has 4 frames, one a second",
        "test/FEATAudios/yard.npy: must be floats [4 or more, A], got float32 [2, 128]",
        "test.json: annotations[1].segmentations[0] a polygon leaves the picture of 32x24",
        "test.json: annotations[1].segmentations[1] a polygon needs at least three points",
        "test.json: annotations[1].segmentations[2] cannot be read (a polygon's points must be finite",
        "test.json: annotations[2].segmentations[1] is a mask without a pixel; silence is null",
        "test.json: annotations[2].segmentations[2] cannot be read",
        "test/JPEGImages/hall: has 1 images that videos[1].file_names does not list",
        "test/WAVAudios/hall.wav: is missing, and FEATAudios has no features either",
        "val.json: is no whole JSON",
    ]
    assert len(problems) == len(expected), problems
    for found, words in zip(problems, expected, strict=True):
        assert found.startswith(words), found


@pytest.mark.parametrize(("seconds", "good"), [(3.0, True), (5.0, True), (5.5, False), (2.5, False)])
def test_sound_is_as_long_as_its_pictures(root: Path, seconds: float, *, good: bool) -> None:
    write_wav(root / "test" / "WAVAudios" / "hall.wav", seconds)
    problems = [str(problem) for problem in data_set_problems(root)]
    assert [f"hall.wav: lasts {seconds} s, its video has 4 frames" in problem for problem in problems] == [True] * (
        not good
    )


def test_official_classes_under_other_numbers(root: Path) -> None:
    document = truth()
    document["categories"] = [{"id": n, "name": name} for n, name in enumerate(reversed(AVISEG_CLASSES), 1)]
    (root / "test.json").write_text(json.dumps(document))
    assert "categories[0].id horse is 1, in AVISeg 26" in str(next(data_set_problems(root)))


def test_statistics(root: Path) -> None:
    found = split_statistics(read_annotations(root / "test.json")).as_json()
    assert (found["videos"], found["frames"], found["objects"], found["masks"]) == (2, 8, 3, 8)
    assert found["shares"] == {"silent": 0.25, "single": 0.5, "multi": 0.25}
    assert found["sounding_at_once"] == {"0": 2, "1": 4, "2": 2}
    assert found["scenarios"] == {"Animal": 1, "Music": 1}
    assert found["classes"]["person"] == {"videos": 1, "objects": 1, "masks": 2, "together": {"piano": 2}}
    assert found["classes"]["dog"]["together"] == {}


def test_every_class_has_a_scenario() -> None:
    assert {scenario_of_class(name) for name in AVISEG_CLASSES} == set(SCENARIOS)
    assert scenario_of_class("kettle") is None


@pytest.mark.parametrize(
    ("seconds", "scenario"),
    [
        ({"person": 20, "piano": 20}, "Music"),
        ({"person": 30, "dog": 3}, "Speaking"),
        ({"dog": 5, "cat": 5, "car": 9}, "Animal"),
        ({"kettle": 5}, None),
        ({}, None),
    ],
)
def test_scenario_of_a_video(seconds: dict[str, int], scenario: str | None) -> None:
    assert scenario_of_video(seconds) == scenario


def test_square_in_both_forms_is_one_mask() -> None:
    from avis_stream.data import rle

    assert rle.as_rle(SQUARE, HEIGHT, WIDTH) == rle.as_rle(SQUARE_RLE)
