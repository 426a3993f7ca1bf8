"""Labels of COCO, YTVIS, ISAT and CVAT become data sets; what goes out to be corrected comes back the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from avis_stream.cli import main
from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, read_annotations
from avis_stream.data.dataset import open_split
from avis_stream.data.labels.outlines import outlines
from avis_stream.data.validate import data_set_problems
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import make_scene
from avis_stream.synth.write import write_set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of two made scenes."""
    folder = tmp_path_factory.mktemp("made")
    protocol = Protocol.load()
    scenes = (
        make_scene(ProceduralLibrary(), protocol, seed=1, index=n, seconds=(3, 3), size=(96, 64), photograph_share=0)
        for n in (3, 4)
    )
    write_set(folder, "val", scenes, protocol, seed=1)
    return folder


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def tracks_of(annotations: Annotations) -> dict[str, list[tuple[str, list[Tensor]]]]:
    """By video name: class and masks [T] of every object, in order."""
    found = {}
    for video in annotations.videos:
        masks = [
            (
                annotations.categories[t.category_id],
                [
                    torch.zeros(video.height, video.width, dtype=torch.bool)
                    if m is None
                    else rle.decode(m, video.height, video.width)
                    for m in t.segmentations
                ],
            )
            for t in annotations.tracks[video.id]
        ]
        found[video.name] = masks
    return found


def overlap(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    a, b = torch.stack(list(one)), torch.stack(list(other))
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@pytest.mark.parametrize("kind", ["ytvis", "isat", "cvat"])
def test_what_goes_out_comes_back(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    ask(capsys, "labels", tmp_path / "out", "--to", kind, "--data", made, "--split", "val")
    source = tmp_path / "out" / "val.json" if kind == "ytvis" else tmp_path / "out"
    images = ["--images", made / "val" / "JPEGImages"] if kind == "ytvis" else []
    audio = ["--audio", made / "val" / "WAVAudios"]
    printed = ask(capsys, "import", source, tmp_path / "back", "--from", kind, "--split", "val", *images, *audio)
    assert printed.startswith("2 videos, ")
    before, after = open_split(made, "val"), open_split(tmp_path / "back", "val")
    assert not list(data_set_problems(tmp_path / "back"))
    wanted, found = tracks_of(before.annotations), tracks_of(after.annotations)
    assert wanted.keys() == found.keys()
    for name, objects in wanted.items():
        assert sorted(label for label, _ in objects) == sorted(label for label, _ in found[name])
        for label, masks in objects:
            best = max(overlap(masks, other) for own, other in found[name] if own == label)
            assert best == 1.0 if kind != "isat" else best > 0.97, (name, label)
    one, two = before.annotations.videos[0], after.annotations.videos[0]
    assert torch.equal(before.image(one, 2), after.image(two, 2))
    earlier, copied = before.previous(one, 2), after.previous(two, 2)
    if kind == "ytvis":  # imported from where they lie, with the pictures 100 ms before
        assert earlier is not None
        assert copied is not None
        assert torch.equal(earlier, copied)
    else:
        assert copied is None, "other tools do not get them"
    assert torch.allclose(before.seconds(one, [1]), after.seconds(two, [1]), atol=1e-4)


def test_a_set_that_is_replaced_leaves_no_earlier_pictures(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(made, source)
    command = ["import", source / "val.json", tmp_path / "set", "--from", "ytvis", "--split", "val"]
    ask(capsys, *command)
    name = read_annotations(made / "val.json").videos[0].name
    assert (tmp_path / "set" / "val" / "PrevImages" / name / "2.jpg").is_file()
    (source / "val" / "PrevImages" / name / "2.jpg").unlink()
    ask(capsys, *command, "--force")
    kept = sorted(path.name for path in (tmp_path / "set" / "val" / "PrevImages" / name).iterdir())
    assert kept == ["0.jpg", "1.jpg"]


def test_an_earlier_picture_that_is_of_no_use_is_left_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning: a frame does without, and the labelled ones are all good."""
    source = tmp_path / "source"
    shutil.copytree(made, source)
    command = ["import", source / "val.json", tmp_path / "set", "--from", "ytvis", "--split", "val"]
    ask(capsys, *command)
    before = (tmp_path / "set" / "val.json").read_bytes()
    name = read_annotations(made / "val.json").videos[0].name
    earlier = source / "val" / "PrevImages" / name
    (earlier / "0.jpg").write_bytes((earlier / "0.jpg").read_bytes()[:300])
    picture(earlier / "1.jpg", (40, 30))
    ask(capsys, *command, "--force")
    assert f"{earlier / '0.jpg'} cannot be read as an image" in caplog.text
    assert f"{earlier / '1.jpg'} is 40x30, the frame 100 ms after it 96x64" in caplog.text
    assert [path.name for path in (tmp_path / "set" / "val" / "PrevImages" / name).iterdir()] == ["2.jpg"]
    assert (tmp_path / "set" / "val.json").read_bytes() == before
    ask(capsys, *[*command[:2], tmp_path / "another", *command[3:]])
    assert not [p for p in data_set_problems(tmp_path / "another") if "WAVAudios" not in str(p)]


def test_what_is_seen_and_not_heard_comes_back_in_ytvis_and_is_missed_elsewhere(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads((made / "val.json").read_text())
    some = square_rle(96, 64)
    first, last = document["annotations"][0], document["annotations"][-1]
    last["iscrowd"] = 1
    first |= {"segmentations": [some, None, None], "visible_segmentations": [some, None, some]}
    first |= {"areas": [100, None, None], "bboxes": [[4, 4, 10, 10], None, None]}
    never = {"video_id": 1, "category_id": 3, "iscrowd": 0, "visible_segmentations": [None, some, some]}
    document["silent_annotations"] = [never]
    shutil.copytree(made, tmp_path / "set")
    (tmp_path / "set" / "val.json").write_text(json.dumps(document))
    for kind in ("ytvis", "isat", "cvat"):
        caplog.clear()
        ask(capsys, "labels", tmp_path / kind, "--to", kind, "--data", tmp_path / "set", "--split", "val")
        assert ("1 that never sound" in caplog.text) == (kind != "ytvis")
        source = tmp_path / kind / "val.json" if kind == "ytvis" else tmp_path / kind
        images = ["--images", made / "val" / "JPEGImages"] if kind == "ytvis" else []
        ask(capsys, "import", source, tmp_path / f"{kind}_back", "--from", kind, "--split", "val", *images)
        back = read_annotations(tmp_path / f"{kind}_back" / "val.json")
        crowds = [back.categories[t.category_id] for own in back.tracks.values() for t in own if t.crowd]
        assert crowds == [back.categories[last["category_id"]]], kind
        if kind == "ytvis":
            track = back.tracks[1][0]
            assert track.visible is not None
            assert [mask is not None for mask in track.segmentations] == [True, False, False]
            assert [mask is not None for mask in track.visible] == [True, False, True]
            (silent,) = back.silent[1]
            assert (silent.category_id, silent.visible) == (3, (None, some, some))


def test_splits_of_one_set_agree_on_their_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Path
) -> None:
    """Whatever comes first in each, and with classes of which there is nothing yet."""
    picture(tmp_path / "labels" / "v" / "1.png")
    images = [{"id": 1, "file_name": "v/1.png", "width": 40, "height": 30}]
    categories = [{"id": n, "name": name} for n, name in ((3, "horn"), (7, "drum"), (9, "siren"))]
    for split, order, listed in (
        ("train", (7, 3), categories),
        ("val", (9, 3), categories),
        ("test", (5, 9), [{"id": 5, "name": "whistle"}, *reversed(categories)]),
    ):
        annotations = [{"id": c, "image_id": 1, "category_id": c, "segmentation": [square(c, c)]} for c in order]
        document = {"images": images, "annotations": annotations, "categories": listed}
        (tmp_path / "labels" / f"{split}.json").write_text(json.dumps(document))
        source = tmp_path / "labels" / f"{split}.json"
        printed = ask(capsys, "import", source, tmp_path / "set", "--from", "coco", "--split", split)
        assert "2 objects of 2 classes" in printed
        found = read_annotations(tmp_path / "set" / f"{split}.json")
        assert list(found.categories.items())[:3] == [(1, "horn"), (2, "drum"), (3, "siren")]
        assert list(found.categories.items())[3:] == ([(4, "whistle")] if split == "test" else [])
    assert not [p for p in data_set_problems(tmp_path / "set") if "WAVAudios" not in str(p)]
    document = json.loads((tmp_path / "set" / "val.json").read_text())
    document["categories"][0]["id"], document["categories"][1]["id"] = 2, 1
    (tmp_path / "set" / "val.json").write_text(json.dumps(document))
    problems = [str(p) for p in data_set_problems(tmp_path / "set") if "WAVAudios" not in str(p)]
    assert [p.partition("val.json: ")[2] for p in problems] == [
        "categories[0].id horn is 2, in other splits 1",
        "categories[1].id drum is 1, in other splits 2",
    ]
    again = ["import", tmp_path / "labels" / "test.json", tmp_path / "set", "--from", "coco", "--split", "more"]
    assert "horn is 2, in other splits 1; import these splits anew" in refused(capsys, *again)


def test_answers_go_out_too(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[10:30, 20:50] = True
    answers = [{"video_id": 1, "score": 0.9, "category_id": 14, "segmentations": [None, rle.encode(mask), None]}]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    arguments = ["--to", "isat", "--data", made, "--split", "val", "--predictions", tmp_path / "answers.json"]
    ask(capsys, "labels", tmp_path / "out", *arguments)
    name = read_annotations(made / "val.json").videos[0].name
    documents = [json.loads((tmp_path / "out" / name / f"{t}.json").read_text()) for t in range(3)]
    assert [len(d["objects"]) for d in documents] == [0, 1, 0]
    (entry,) = documents[1]["objects"]
    assert entry["category"] == "dog"
    assert entry["bbox"] == [20, 10, 50, 30]
    assert documents[1]["info"]["name"] == "1.jpg"
    assert "holds files already" in refused(capsys, "labels", tmp_path / "out", *arguments)


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)


def square(x: int, y: int, side: int = 10) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def square_rle(width: int, height: int) -> dict[str, Any]:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[4:14, 4:14] = True
    return dict(rle.encode(mask))


def test_frames_that_coco_leaves_out_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or the pictures after them would come with the sound of earlier seconds."""
    for frames, good in (((0, 30, 59, 89), True), ((1, 3, 4), False)):
        images = [
            {"id": n, "file_name": f"v/{n}.png", "width": 40, "height": 30, "video_id": 1, "frame_id": n}
            for n in frames
        ]
        for image in images:
            picture(tmp_path / str(image["file_name"]))
        labels = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "kettle"}]}
        (tmp_path / "coco.json").write_text(json.dumps(labels))
        command = ["import", tmp_path / "coco.json", tmp_path / f"set{good}", "--from", "coco"]
        if good:
            ask(capsys, *command)
        else:
            assert "1 has frame 3 after 1, others follow by 1; list every frame" in refused(capsys, *command)


def test_coco_images_become_videos_by_folder_and_objects_by_track(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video in ("a", "b"):
        for t in (10, 2):  # files are in order of their number, not of their listing
            picture(tmp_path / "labels" / video / f"f{t}.png")
            number = len(images) + 1
            images.append({"id": number, "file_name": f"{video}/f{t}.png", "width": 40, "height": 30})
            annotations.append({"id": number, "image_id": number, "category_id": 7, "segmentation": [square(t, 5)]})
            if video == "a":
                annotations[-1]["track_id"] = 1
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "kettle"}]}
    (tmp_path / "labels" / "coco.json").write_text(json.dumps(document))
    printed = ask(capsys, "import", tmp_path / "labels" / "coco.json", tmp_path / "set", "--from", "coco")
    assert printed.startswith("2 videos, 2 of them without sound, 3 objects of 1 classes")
    annotations_back = read_annotations(tmp_path / "set" / "train.json")
    assert list(annotations_back.categories.values()) == ["kettle"]
    found = tracks_of(annotations_back)
    (one,) = found["a"]
    assert [int(mask.nonzero()[0, 1]) for mask in one[1]] == [2, 10]
    assert len(found["b"]) == 2
    with Image.open(tmp_path / "set" / "train" / "JPEGImages" / "a" / "1.jpg") as jpeg:
        assert jpeg.format == "JPEG"


def test_names_with_folders_in_them_stay_inside_and_keep_their_sound(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TAO names its videos; and the same last folder twice is two videos."""
    labels = tmp_path / "labels"
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "kettle"}]}
    document["videos"] = [{"id": 1, "name": "train/YT/one"}, {"id": 2, "name": "../../escaped"}]
    for number, (file, video) in enumerate(
        [("p/1.png", 1), ("q/1.png", 2), ("A/rgb/1.png", None), ("B/rgb/1.png", None)]
    ):
        picture(labels / file)
        document["images"].append({"id": number, "file_name": file, "width": 40, "height": 30})
        if video is not None:
            document["images"][-1]["video_id"] = video
    (labels / "coco.json").write_text(json.dumps(document))
    (tmp_path / "audio").mkdir()
    sound = next((made / "val" / "WAVAudios").iterdir())
    (tmp_path / "audio" / "one.wav").write_bytes(sound.read_bytes())
    audio = ["--audio", tmp_path / "audio"]
    ask(capsys, "import", labels / "coco.json", tmp_path / "a" / "set", "--from", "coco", *audio)
    split = open_split(tmp_path / "a" / "set", "train")
    assert [video.name for video in split.annotations.videos] == ["one", "escaped", "A_rgb", "B_rgb"]
    assert split.seconds(split.annotations.videos[0], [0]).any()
    assert {path.name for path in tmp_path.iterdir()} == {"labels", "audio", "a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"set"}


def test_pictures_come_in_as_they_will_be_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Turned for good where a phone only noted it, and 16 bits scaled."""
    (tmp_path / "v").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 40), (90, 120, 30)).save(tmp_path / "v" / "1.jpg", exif=turned)
    Image.fromarray(np.full((30, 40), 30_000, np.uint16)).save(tmp_path / "v" / "2.png")
    images = [
        {"id": n, "file_name": f"v/{name}", "width": 40, "height": 30} for n, name in enumerate(("1.jpg", "2.png"))
    ]
    labels = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "kettle"}]}
    (tmp_path / "coco.json").write_text(json.dumps(labels))
    ask(capsys, "import", tmp_path / "coco.json", tmp_path / "set", "--from", "coco")
    split = open_split(tmp_path / "set", "train")
    (video,) = split.annotations.videos
    assert split.image(video, 0).shape == (3, 30, 40)
    assert split.image(video, 1).float().mean() == pytest.approx(117, abs=1)


def test_sound_of_a_set_that_is_replaced_goes_and_capitals_are_heard(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = read_annotations(made / "val.json").videos[0]
    (tmp_path / "audio").mkdir()
    sound = made / "val" / "WAVAudios" / f"{video.name}.wav"
    shutil.copy(sound, tmp_path / "audio" / f"{video.name}.WAV")
    command = ["import", made / "val.json", tmp_path / "set", "--from", "ytvis", "--split", "val"]
    command += ["--images", made / "val" / "JPEGImages"]
    ask(capsys, *command, "--audio", tmp_path / "audio")
    kept = tmp_path / "set" / "val" / "WAVAudios" / f"{video.name}.wav"
    assert kept.is_file()
    assert "2 of them without sound" in ask(capsys, *command, "--force")
    assert not kept.exists()


def test_what_cannot_replace_a_set_leaves_it(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made, tmp_path / "set")
    again = ["import", made / "val.json", tmp_path / "set", "--from", "ytvis", "--split", "val", "--force"]
    refused(capsys, *again, "--images", tmp_path / "nowhere")
    assert (tmp_path / "set" / "val.json").read_bytes() == (made / "val.json").read_bytes()


@pytest.mark.parametrize("broken", ["picture", "sound", "classes"])
def test_what_breaks_off_leaves_the_set_that_was_to_be_replaced(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "set"
    shutil.copytree(made, source)
    shutil.copytree(made, target)
    last = read_annotations(made / "val.json").videos[-1].name  # all before it is made by then
    if broken == "picture":
        (source / "val" / "JPEGImages" / last / "2.jpg").write_bytes(b"none")
    elif broken == "sound":
        (source / "val" / "WAVAudios" / f"{last}.wav").write_bytes(b"none")
    else:
        for name, own in (("one", 1), ("two", 2)):
            shutil.copy(made / "val.json", target / f"{name}.json")
            document = json.loads((target / f"{name}.json").read_text())
            document["categories"][0]["id"] = document["categories"][1]["id"] = own
            (target / f"{name}.json").write_text(json.dumps(document))
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    again = ["import", source / "val.json", target, "--from", "ytvis", "--split", "val", "--force"]
    refused(capsys, *again, "--audio", source / "val" / "WAVAudios")
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_masks_without_pixels_are_silence(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `run` writes silent frames, and `labels` hands them on."""
    document = json.loads((made / "val.json").read_text())
    size = (document["videos"][0]["height"], document["videos"][0]["width"])
    some, none = np.zeros(size, bool), np.zeros(size, bool)
    some[:9] = True
    document["annotations"] = [
        {
            "video_id": document["videos"][0]["id"],
            "category_id": 1,
            "segmentations": [rle.encode(m) for m in (none, some, none)],
        }
    ]
    (tmp_path / "val.json").write_text(json.dumps(document))
    images = ["--images", made / "val" / "JPEGImages"]
    ask(capsys, "import", tmp_path / "val.json", tmp_path / "set", "--from", "ytvis", "--split", "val", *images)
    (track,) = next(iter(read_annotations(tmp_path / "set" / "val.json").tracks.values()))
    assert [mask is not None for mask in track.segmentations] == [False, True, False]


def test_masks_without_pixels_are_silence_in_coco_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And have no box."""
    counts = ([100, 20, 1080], [1200, 0])
    images = [{"id": t, "file_name": f"v/{t}.png", "width": 40, "height": 30} for t in range(2)]
    for image in images:
        picture(tmp_path / str(image["file_name"]))
    annotations = [
        {"id": t, "image_id": t, "category_id": 1, "track_id": 1, "segmentation": {"size": [30, 40], "counts": own}}
        for t, own in enumerate(counts)
    ]
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "kettle"}]}
    (tmp_path / "coco.json").write_text(json.dumps(labels))
    ask(capsys, "import", tmp_path / "coco.json", tmp_path / "set", "--from", "coco")
    (entry,) = json.loads((tmp_path / "set" / "train.json").read_text())["annotations"]
    assert entry["segmentations"][0] is not None
    assert [entry[name][1] for name in ("segmentations", "bboxes", "areas")] == [None] * 3


def test_isat_layers_groups_and_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def entry(label: str, group: int, points: list[float], layer: float) -> dict[str, Any]:
        pairs = [list(p) for p in zip(points[::2], points[1::2], strict=True)]
        return {"category": label, "group": group, "segmentation": pairs, "layer": layer, "iscrowd": 0, "note": ""}

    picture(tmp_path / "isat" / "0.jpg")
    objects = [
        entry("dog", 2, square(12, 4, 10), 3.0),  # over the cat
        entry("cat", 1, square(2, 4, 20), 1.0),
        entry("__background__", 0, square(4, 6, 4), 2.0),  # a hole in the cat
        entry("cat", 1, square(30, 20, 5), 4.0),  # another part of it
    ]
    info = {"description": "ISAT", "folder": "", "name": "0.jpg", "width": 40, "height": 30, "depth": 3, "note": ""}
    (tmp_path / "isat" / "0.json").write_text(json.dumps({"info": info, "objects": objects}))
    ask(capsys, "import", tmp_path / "isat", tmp_path / "set", "--from", "isat")
    found = dict(tracks_of(read_annotations(tmp_path / "set" / "train.json"))["isat"])
    cat, dog = found["cat"][0], found["dog"][0]
    assert dog.sum() == 100
    assert cat.sum() == 400 - 100 - 16 + 25
    assert not (cat & dog).any()
    assert not cat[6:10, 4:8].any()
    assert cat[22, 32]


@pytest.mark.parametrize("beside", [True, False])
def test_a_picture_that_isat_did_not_save_is_a_second_without_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, beside: bool
) -> None:
    info = {"width": 40, "height": 30, "depth": 3, "name": ""}
    points = [[2, 2], [12, 2], [12, 12], [2, 12]]
    (tmp_path / "isat" / "v").mkdir(parents=True)
    pictures = tmp_path / ("isat" if beside else "pictures")
    for t in range(4):
        picture(pictures / "v" / f"f{t + 8}.png")
    picture(pictures / "v" / "f9.jpg")  # the same frame again, which a tool may leave
    picture(pictures / "v" / "cover.png")
    for t in (1, 3):
        objects = [{"category": "dog", "group": 1, "segmentation": points, "layer": 1.0}]
        content = {"info": info | {"name": f"f{t + 8}.png"}, "objects": objects}
        (tmp_path / "isat" / "v" / f"f{t + 8}.json").write_text(json.dumps(content))
    images = [] if beside else ["--images", pictures]
    ask(capsys, "import", tmp_path / "isat", tmp_path / "set", "--from", "isat", *images)
    ((_, masks),) = tracks_of(read_annotations(tmp_path / "set" / "train.json"))["v"]
    assert [bool(mask.any()) for mask in masks] == [False, True, False, True]


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>t</name><size>4</size>
<labels><label><name>car</name></label><label><name>horse</name></label><label><name>sheep</name></label></labels>
<original_size><width>40</width><height>30</height></original_size></task></meta>
<track id="0" label="horse" source="manual">
 <polygon frame="0" keyframe="1" outside="0" occluded="0" points="2.00,3.00;12.00,3.00;12.00,13.00;2.00,13.00"/>
 <polygon frame="2" keyframe="1" outside="0" occluded="0" points="5.00,3.00;15.00,3.00;15.00,13.00;5.00,13.00"/>
 <polygon frame="3" keyframe="1" outside="1" occluded="0" points="5.00,3.00;15.00,3.00;15.00,13.00;5.00,13.00"/>
</track>
<track id="1" label="car" source="manual">
 <mask frame="1" keyframe="1" outside="0" rle="1,2,3" left="20" top="10" width="3" height="2"/>
</track>
</annotations>"""


def test_a_cvat_shape_holds_until_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for t in range(4):
        picture(tmp_path / "task" / "images" / f"frame_{t:06d}.png")
    (tmp_path / "task" / "annotations.xml").write_text(CVAT)
    ask(capsys, "import", tmp_path / "task" / "annotations.xml", tmp_path / "set", "--from", "cvat")
    found = dict(tracks_of(read_annotations(tmp_path / "set" / "train.json"))["task"])
    assert [int(mask.nonzero()[0, 1]) if mask.any() else None for mask in found["horse"]] == [2, 2, 5, None]
    assert [mask.sum().item() for mask in found["car"]] == [0, 2, 2, 2]
    assert found["car"][1].nonzero().tolist() == [[10, 21], [10, 22]]


@pytest.mark.parametrize("level", ["task", "job"])
def test_cvat_counts_frames_of_the_film(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str) -> None:
    """A task of every 25th frame from 100 on."""
    for t in range(4):
        picture(tmp_path / "task" / "images" / f"frame_{100 + 25 * t:06d}.png")
    text = CVAT.replace("<size>", "<start_frame>100</start_frame><frame_filter>step=25</frame_filter><size>")
    text = text.replace("<task>", f"<{level}>").replace("</task>", f"</{level}>").replace("sheep", "unicorn")
    for t in range(4):
        text = text.replace(f'frame="{t}"', f'frame="{100 + 25 * t}"')
    (tmp_path / "task" / "annotations.xml").write_text(text)
    command = ["import", tmp_path / "task" / "annotations.xml", tmp_path / "set", "--from", "cvat"]
    ask(capsys, *command)
    annotations = read_annotations(tmp_path / "set" / "train.json")
    assert list(annotations.categories.values()) == ["car", "horse", "unicorn"]
    found = dict(tracks_of(annotations)["task"])
    assert [int(mask.nonzero()[0, 1]) if mask.any() else None for mask in found["horse"]] == [2, 2, 5, None]
    (tmp_path / "task" / "annotations.xml").write_text(text.replace('frame="150"', 'frame="151"'))
    assert "has frame 151, but its task takes 100, 125, ..." in refused(capsys, *command, "--force")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<size>", "<frame_filter>step=0</frame_filter><size>"), "must be like start=0 step=25, got start=0 step=0"),
        (("<size>4", "<size>5"), "its task has 5 frames, there are 4 images; give those"),
        (("<original_size>", "<size_of>"), "cannot be read as XML"),
        (('<mask frame="1"', '<box frame="1"'), "has a box; only polygons and masks outline an object"),
        (('width="3" height="2"', 'width="30" height="2"'), "does not fit its box of 30x2 at 20,10"),
        (('frame="3"', 'frame="9"'), "goes to frame 9, but there are 4 images"),
    ],
)
def test_broken_cvat_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    for t in range(4):
        picture(tmp_path / "images" / f"{t}.png")
    (tmp_path / "annotations.xml").write_text(CVAT.replace(*change))
    error = refused(capsys, "import", tmp_path / "annotations.xml", tmp_path / "set", "--from", "cvat")
    assert message in error
    assert not (tmp_path / "set" / "train.json").exists()


def test_other_doors(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no .json file in it" in refused(capsys, "import", tmp_path / "empty", tmp_path / "s", "--from", "isat")
    assert "no .xml file in it" in refused(capsys, "import", tmp_path / "empty", tmp_path / "s", "--from", "cvat")
    again = ["import", made / "val.json", made, "--from", "ytvis", "--split", "val"]
    assert "is there already" in refused(capsys, *again)
    lost = ["import", made / "val.json", tmp_path / "s", "--from", "ytvis", "--images", tmp_path / "empty"]
    assert "no such image of" in refused(capsys, *lost)
    assert "has no 'images'" in refused(capsys, "import", made / "val.json", tmp_path / "s", "--from", "coco")
    document = json.loads((made / "val.json").read_text())
    document["annotations"][0]["category_id"] = 99
    (tmp_path / "odd.json").write_text(json.dumps(document))
    odd = refused(capsys, "import", tmp_path / "odd.json", tmp_path / "s", "--from", "ytvis")
    assert "is of category 99, which the document does not list" in odd


def test_outlines_of_a_ring_have_a_hole_and_lie_on_pixel_edges() -> None:
    ring = torch.zeros(12, 16, dtype=torch.bool)
    ring[2:10, 0:9], ring[4:6, 3:5] = True, False
    (hole, outer), (second, inner) = outlines(ring)
    assert (hole, second) == (False, True)
    assert np.ptp(np.array(outer), axis=0).tolist() == [9, 8]
    assert np.ptp(np.array(inner), axis=0).tolist() == [2, 2]
