"""Clips from disk: drawn, cut and mirrored with their masks, and heard at the right second."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import wavfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from avis_stream.cli import main
from avis_stream.commands.diary import Diary
from avis_stream.config import AVISEG_CLASSES, AudioConfig, AugmentConfig, AVISMConfig, LossConfig, TrainConfig
from avis_stream.data.dataset import open_split
from avis_stream.errors import DataError
from avis_stream.presets import preset
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import make_scene
from avis_stream.synth.write import write_set
from avis_stream.train.augment import Geometry, apply_geometry, draw_frames, draw_geometry
from avis_stream.train.dataset_clips import DatasetClips
from avis_stream.train.step import ClipLosses
from avis_stream.weights import load
from avis_stream.weights.files import save_weights
from avis_stream.weights.load import unfolded_model

SMALL = AugmentConfig(
    short_sides_px=(48, 64), long_side_px=128, crop_first_sides_px=(60,), crop_range_px=(40, 60), frame_range=3
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    protocol = replace(Protocol.load(), size=(96, 64))
    scenes = [
        make_scene(ProceduralLibrary(), protocol, seed=0, index=i, seconds=(6, 6), size=(96, 64), photograph_share=0.0)
        for i in range(4)
    ]
    write_set(folder, "train", scenes, protocol, seed=0)
    return folder


LISTENS = AVISMConfig(audio=AudioConfig(encoder="yamnet", feature_dim=1024))
TAKES_FEATURES = AVISMConfig(audio=AudioConfig(encoder="none"))


def clips(data: Path, config: AugmentConfig = SMALL, model: AVISMConfig = LISTENS) -> DatasetClips:
    return DatasetClips(open_split(data, "train"), model, frames=5, config=config, seed=0)


def test_the_same_number_is_the_same_clip(data: Path) -> None:
    one, again = clips(data).clip(5), clips(data).clip(5)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.masks, again.masks)
    assert torch.equal(one.seconds, again.seconds)
    assert len({clips(data).clip(n).name for n in range(6)}) > 3


def test_an_epoch_shows_every_video(data: Path) -> None:
    source = clips(data)
    names = {source.clip(n).name.split()[0] for n in range(len(source._videos))}
    assert len(names) == len(source._videos)


def test_sound_is_that_of_the_frame(data: Path) -> None:
    sample = clips(data).clip(0)
    name, _, frames = sample.name.partition(" frames ")
    _, wave = wavfile.read(data / "train" / "WAVAudios" / f"{name}.wav")
    for second, t in zip(sample.seconds, json.loads(frames), strict=True):
        expected = wave[t * 16_000 : (t + 1) * 16_000, 0] / 32768
        np.testing.assert_allclose(second.numpy(), expected, atol=1e-6)


def test_what_a_recording_lacks_is_known_to_the_encoder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a model would learn to hear seconds that `segment` gives it as none (quirk Q20)."""
    shutil.copytree(data, tmp_path / "set")
    for wav in (tmp_path / "set" / "train" / "WAVAudios").glob("*.wav"):
        wavfile.write(wav, 16_000, np.zeros(88_000, np.int16))
    sample = next(s for n in range(20) if "5]" in (s := clips(tmp_path / "set").clip(n)).name)
    frames = json.loads(sample.name.partition(" frames ")[2])
    wanted = [8_000 if t == 5 else 16_000 for t in frames]
    model, told = unfolded_model(LISTENS, None, ""), list[int]()

    def spy(seconds: Tensor, valid_samples: Tensor) -> Tensor:
        told.extend(valid_samples.tolist())
        return torch.zeros(len(seconds), 1024)

    monkeypatch.setattr(model, "hear", spy)
    ClipLosses(model, TrainConfig())._hear([sample, replace(sample, valid_samples=None)])
    assert told == [*wanted, *[16_000] * 5]
    assert sample.part(slice(4, 5)).there.tolist() == [8_000]


def test_frames_are_near_each_other_and_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        frames = draw_frames(60, 5, AugmentConfig(), rng)
        assert frames == sorted(frames)
        assert max(frames) - min(frames) <= 40
        assert 0 <= min(frames) <= max(frames) < 60
    assert draw_frames(1, 3, AugmentConfig(), rng) == [0, 0, 0]


def test_masks_go_where_the_pictures_go() -> None:
    """A picture that shows its own mask still does after any geometry."""
    rng = np.random.default_rng(0)
    mask = torch.zeros(1, 3, 64, 96, dtype=torch.bool)
    mask[:, :, 20:50, 30:70] = True
    images = (mask[0, :, None].expand(-1, 3, -1, -1) * 255).to(torch.uint8)
    for _ in range(40):
        geometry = draw_geometry(64, 96, 3, SMALL, rng)
        changed, masks = apply_geometry(images, mask, geometry, SMALL)
        assert changed.shape[-2:] == masks.shape[-2:]
        assert ((changed[:, 0] > 127) ^ masks[0]).float().mean() < 0.06


def test_official_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        geometry = draw_geometry(720, 1280, 5, AugmentConfig(), rng)
        assert geometry.side in range(288, 513, 32)
        if geometry.first_side is not None:
            assert geometry.first_side in (400, 500, 600)
            assert all(384 <= side <= 600 for side in geometry.crop)
            rows = [corner[0] for corner in geometry.corners]
            assert rows in (sorted(rows), sorted(rows, reverse=True))


def test_flip() -> None:
    picture = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4).expand(1, 3, 3, 4)
    flipped, _ = apply_geometry(
        picture, torch.zeros(0, 1, 3, 4, dtype=torch.bool), Geometry(None, (0, 0), (), 3, True), SMALL
    )
    assert torch.equal(flipped, picture.flip(-1))


def test_silent_first_frame_quirk_is_an_option(data: Path) -> None:
    """Quirk Q2: officially an object that is silent in the first frame has no class."""
    official = replace(SMALL, silent_first_frame_has_no_class=True)
    seen = 0
    for number in range(24):
        ours, theirs = clips(data).clip(number), clips(data, official).clip(number)
        silent = ~ours.masks[:, 0].flatten(1).any(dim=1) if len(ours.labels) else torch.zeros(0, dtype=torch.bool)
        assert torch.equal(theirs.labels, torch.where(silent, len(AVISEG_CLASSES), ours.labels))
        seen += int(silent.sum())
    assert seen > 0


@pytest.fixture
def with_features(data: Path) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The data while it has stored features, by video."""
    folder = data / "train" / "FEATAudios"
    folder.mkdir()
    rng = np.random.default_rng(0)
    stored = {v.name: rng.random((6, 128), np.float32) for v in open_split(data, "train").annotations.videos}
    for name, features in stored.items():
        np.save(folder / f"{name}.npy", features)
    yield stored
    shutil.rmtree(folder)


def test_a_model_that_does_not_hear_takes_stored_features(
    data: Path, with_features: dict[str, NDArray[np.float32]]
) -> None:
    sample = clips(data, model=TAKES_FEATURES).clip(0)
    assert sample.features is not None
    name, _, frames = sample.name.partition(" frames ")
    np.testing.assert_array_equal(sample.features.numpy(), with_features[name][json.loads(frames)])


def test_a_model_that_hears_listens_for_itself(data: Path, with_features: dict[str, NDArray[np.float32]]) -> None:
    """AVISeg's features are VGGish's; YAMNet's are longer."""
    sample = clips(data).clip(0)
    assert sample.features is None
    assert sample.seconds.abs().max() > 0


def test_features_that_are_missing_or_of_another_encoder_say_so(data: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(DataError, match=r"no stored features .* give the encoder's weights"):
        clips(data, model=TAKES_FEATURES)
    request.getfixturevalue("with_features")
    other = AVISMConfig(audio=AudioConfig(encoder="none", feature_dim=64))
    with pytest.raises(DataError, match=r"128 numbers a second, but the model takes 64"):
        clips(data, model=other)


def test_nothing_to_learn_from_says_so(data: Path, tmp_path: Path) -> None:
    document = json.loads((data / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(DataError, match="no video has an annotation to learn from"):
        clips(tmp_path)


SETTINGS = [
    "channels=32", "mask_channels=16", "pixel_decoder.heads=4", "pixel_decoder.layers=1", "localizer.heads=4",
    "localizer.layers=2", "localizer.queries=6", "tracker.heads=4", "tracker.encoder_layers=2",
    "tracker.decoder_layers=2", "tracker.queries=6", "train.steps=2", "train.frames=2", "train.query_layers=2",
    "train.losses.points=64", "train.augment.short_sides_px=48,64", "train.augment.crop_first_sides_px=60",
    "train.augment.crop_range_px=40,60", "train.augment.crop_share=0.5",
]  # fmt: skip

SMALL_RUN = ["train.steps=1", "train.frames=1", "train.clips=1", "train.losses.points=64",
             "train.augment.short_sides_px=48", "train.augment.crop_share=0"]  # fmt: skip


def test_train_command_makes_weights_that_load_and_begins_from_them(data: Path, tmp_path: Path) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    first = tmp_path / "first"
    assert main(["train", "--data", str(data), "--out", str(first), *settings]) == 0
    left = {"last.pt", "log.jsonl", "schedule.json", "tensorboard", "weights.safetensors"}
    assert {p.name for p in first.iterdir()} == left
    assert list((first / "tensorboard").glob("events.out.tfevents.*"))
    steps = [json.loads(line)["step"] for line in (first / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    model = load("avism_mini", weights=first / "weights.safetensors")
    assert model.config.channels == 32
    assert model.audio_encoder is not None
    images = torch.from_numpy(np.array(Image.new("RGB", (96, 64)))).permute(2, 0, 1)[None]
    assert model.segment(images, torch.zeros(16_000)).frames == 1
    second = [
        "train",
        "--data",
        "synth",
        "--init",
        str(first / "weights.safetensors"),
        "--out",
        str(tmp_path / "second"),
    ]
    small = ["--set", "input.short_side_px=48"]
    assert main([*second, *settings, *small]) == 0
    assert main(["train", "--data", "synth", "--resume", str(tmp_path / "second"), *settings, *small]) == 0


def test_a_run_is_not_begun_over_another(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--set", *SETTINGS, "train.steps=1"]
    assert main(command) == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    assert main(command) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    lost = [*command, "--force", "--data", str(tmp_path / "nowhere")]
    assert main(lost) == 1
    assert main([*command, "--force", "--init", str(tmp_path / "none.safetensors")]) == 1
    assert (tmp_path / "run" / "last.pt").read_bytes() == before, "a run that cannot begin clears nothing away"
    assert main([*command, "--force", "--init", str(tmp_path / "run" / "weights.safetensors")]) == 0
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


def test_a_run_that_ended_before_its_first_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 1}\n')
    assert main(["train", "--data", str(data), "--resume", str(run)]) == 1
    assert f"begin again with --out {run}" in capsys.readouterr().err
    assert main(["train", "--data", str(data), "--out", str(run), "--set", *SETTINGS, "train.steps=1"]) == 0


def test_a_resumed_run_may_decay_otherwise_but_not_learn_otherwise(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), "--set", *SETTINGS]) == 0
    again = ["train", "--data", str(data), "--resume", str(run), "--set", "train.steps=3"]
    assert main([*again, "train.frozen=tracker."]) == 1
    assert "leave train.frozen" in capsys.readouterr().err
    assert main([*again, "train.weight_decay=0.5"]) == 0
    stored = torch.load(run / "last.pt", weights_only=True)["optimiser"]["param_groups"]
    assert {group["weight_decay"] for group in stored} == {0.0, 0.5}


def test_made_scenes_are_of_the_model_s_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "synth", "--out", str(tmp_path / "run"), "--set", *SETTINGS, "train.steps=1"]
    assert main([*command, "classes=cat,dog", "input.short_side_px=48"]) == 0
    assert main([*command[:4], str(tmp_path / "other"), *command[5:], "classes=mower"]) == 2
    assert "of which the model has none" in capsys.readouterr().err


def test_objects_that_are_crowds_alone(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "set")
    document = json.loads((tmp_path / "set" / "train.json").read_text())
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    (tmp_path / "set" / "train.json").write_text(json.dumps({**document, "silent_annotations": []}))
    sample = clips(tmp_path / "set").clip(0)
    assert sample.sounding is None or sample.sounding.dtype == torch.bool
    assert not len(sample.masks)


def test_a_run_goes_on_with_its_own_model_and_schedule(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), "--set", *SETTINGS]) == 0
    again = ["train", "--data", str(data), "--resume", str(run)]
    assert main(again) == 0  # nothing is left to do
    assert main([*again, "--set", "train.steps=3"]) == 0
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_run_that_goes_on_is_told_to_leave_settings_of_the_model_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), "--set", *SETTINGS]) == 0
    again = ["train", "--data", str(data), "--resume", str(run), "--set", "train.steps=3"]
    assert main([*again, "postprocess.score_threshold=0.5"]) == 1
    assert "with its own model: leave out --set of the model" in capsys.readouterr().err


def test_a_run_may_begin_with_the_bundled_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--init", "bundled", "--set", *SMALL_RUN]
    assert main(command) == 0
    assert " loaded, 0 skipped, 0 fresh" in capsys.readouterr().err
    assert main([*command[:7], "--force", "--model", "avism_r50_in"]) == 1
    assert "no weights of avism_r50_in come with the package" in capsys.readouterr().err


def test_official_presets_learn_from_features_or_with_given_ears(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", str(data), "--model", "avism_r50_in", "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "train.steps=1"]) == 1
    assert "--audio-weights" in capsys.readouterr().err


def test_validation_writes_its_figures_and_the_best_weights_and_eval_agrees(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["synth", str(tmp_path / "made"), "--split", "val", "--videos", "1"]) == 0
    loose = ["train.validate_every=1", "postprocess.score_threshold=0", "postprocess.presence_threshold=0"]
    command = ["train", "--data", str(data), "--val", str(tmp_path / "made"), "--out", str(out)]
    assert main([*command, "--set", *SETTINGS, *loose]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    figures = [line["val_FSLA"] for line in lines if "val_FSLA" in line]
    assert len(figures) == 2
    assert all({"val_HOTA", "val_mAP"} <= line.keys() for line in lines if "val_FSLA" in line)
    capsys.readouterr()
    kept, report = tmp_path / "answers.json", tmp_path / "report.json"
    ask = ["eval", "--data", str(tmp_path / "made"), "--split", "val", "--weights", str(out / "best.safetensors")]
    assert main([*ask, "--metrics", "fixed", "--json", str(report), "--save", str(kept)]) == 0
    assert json.loads(report.read_text())["summary"]["FA"] == pytest.approx(max(figures), abs=0.2)  # stored in fp16
    table = capsys.readouterr().out
    assert main([*ask[:5], "--predictions", str(kept), "--metrics", "fixed"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == table.splitlines()[2:]


def test_a_validation_set_without_annotations_judges_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found beside the training set it is told of; asked for it is refused, before anything is cleared away."""
    bare = tmp_path / "set"
    shutil.copytree(data, bare)
    (bare / "val").symlink_to(bare / "train")
    document = json.loads((data / "train.json").read_text())
    (bare / "val.json").write_text(json.dumps({**document, "annotations": []}))
    command = ["train", "--data", str(bare), "--out", str(tmp_path / "run"), "--set", *SETTINGS, "train.steps=1"]
    assert main(command) == 0
    assert "val.json has no annotation" in (said := capsys.readouterr().err)
    assert f"trained: {tmp_path / 'run' / 'weights.safetensors'}" in said
    assert not (tmp_path / "run" / "best.safetensors").exists()
    before = (tmp_path / "run" / "last.pt").read_bytes()
    assert main([*command, "--force", "--val", str(bare)]) == 1
    assert "give --val another folder" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_log_has_each_step_once_however_a_run_ended(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--out", str(run), "--set", *SETTINGS]) == 0
    later = Diary(run, 2)
    later.note(3, {"total": 8.0})
    later.note(4, {"total": 9.0})
    later.close()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "tot')  # then its plug was pulled
    assert main(["train", "--data", str(data), "--resume", str(run), "--set", "train.steps=3"]) == 0
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("total")] == [1, 2, 3]
    assert [event.value for event in board.Scalars("total")][2] != 8.0


@pytest.fixture
def bells(data: Path, tmp_path: Path) -> Path:
    """The same data under other class names: whatever is in it is a bell."""
    document = json.loads((data / "train.json").read_text())
    kinds = ("annotations", "silent_annotations")
    all_bells = {kind: [{**a, "category_id": 1} for a in document[kind]] for kind in kinds}
    folder = tmp_path / "bells"
    folder.mkdir()
    (folder / "train").symlink_to(data / "train")
    bell = {"categories": [{"id": 1, "name": "bell"}]}
    (folder / "train.json").write_text(json.dumps(document | all_bells | bell))
    return folder


def test_fine_tuning_to_other_classes_keeps_what_fits(
    data: Path, bells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    first = tmp_path / "first"
    assert main(["train", "--data", str(data), "--out", str(first), *settings]) == 0
    settings += ["--set", "classes=bell,whistle"]
    command = ["train", "--data", str(bells), "--out", str(tmp_path / "tuned"), *settings]
    capsys.readouterr()
    assert main([*command, "--init", str(first / "weights.safetensors")]) == 0
    printed = capsys.readouterr().err
    assert "classes that begin afresh: bell, whistle" in printed
    assert load("avism_mini", weights=tmp_path / "tuned" / "weights.safetensors").classes == ("bell", "whistle")


def test_the_fine_tuning_example_runs(bells: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun.safetensors"
    model = unfolded_model(preset("avism_mini"), None, "")
    save_weights({k: v for k, v in model.state_dict().items() if not k.startswith("audio_")}, model.config, begun)
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "fine_tune.py"))
    schedule = TrainConfig(steps=1, frames=2, losses=LossConfig(points=64), augment=SMALL)
    example["main"](str(bells), str(begun), str(tmp_path / "tuned"), "bell,whistle", schedule)
    assert load("avism_mini", weights=tmp_path / "tuned" / "weights.safetensors").classes == ("bell", "whistle")
