"""The command as people use it: files appear complete, wrong use and broken files end with one sentence."""

from __future__ import annotations

import io
import json
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from golden_data import state
from media_files import Media, clicks, regular, write_media
from PIL import Image

import avis_stream as avs
from avis_stream.audio.yamnet import is_published
from avis_stream.cli import _parser, main
from avis_stream.commands.film import drawn_again
from avis_stream.commands.run import progress
from avis_stream.models.offline import segment_clip
from avis_stream.presets import preset
from avis_stream.sources.file import open_clip
from avis_stream.weights import load
from avis_stream.weights.bundled import bundled_weights, stored_state
from avis_stream.weights.files import read_state, save_weights
from avis_stream.weights.load import unfolded_model

DRY = ["--model", "avism_mini", "--weights", "random"]
EVERYTHING = [
    "--set", "postprocess.score_threshold=0.0001", "--set", "postprocess.top_k=3",
    "--set", "postprocess.presence_threshold=0",
]  # fmt: skip
"""Untrained scores are low; with these thresholds some pairs pass, so that every writer has something to write."""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    media = Media(stamps=regular(3.0, 10.0), rate=Fraction(10), sound=clicks(3.0, [0.5, 1.5]))
    return write_media(tmp_path / "clip.mp4", media)


def test_run_writes_everything(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = tmp_path / "out"
    assert main(["run", str(clip), *DRY, *EVERYTHING, "--out", str(out), "--save-masks", "rle"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "masks.json",
        "overlay.mp4",
        "predictions.json",
        "results.jsonl",
        "summary.json",
        "timeline.png",
    ]
    predictions = json.loads((out / "predictions.json").read_text())
    assert predictions
    assert all(len(entry["segmentations"]) == 3 for entry in predictions)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["frame_id"] for line in lines] == [0, 1, 2]
    assert [line["pts"] for line in lines] == [0.0, 1.0, 2.0]
    assert {track["id"] for track in lines[0]["tracks"]} == set(range(1, len(predictions) + 1))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 3
    assert summary["stages"]["localize"] > 0
    with av.open(str(out / "overlay.mp4")) as container:
        assert len(container.streams.audio) == 1
        assert sum(1 for _ in container.decode(video=0)) == 30, "a quick model draws on every picture of the camera"


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_memory_cannot_hold_lies_beside_the_results_and_goes_with_the_run(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool
) -> None:
    """Not in the folder for temporary files, which may be memory itself."""
    spools: list[Any] = []

    def opened(*, dir: Path) -> Any:
        spools.append(tempfile.NamedTemporaryFile(dir=dir))  # noqa: SIM115 - with a name, so that a test can see it go
        return spools[-1]

    def segment(*arguments: Any, **options: Any) -> Any:
        result = segment_clip(*arguments, **options)
        assert [Path(file.name).parent for file in spools] == [tmp_path / "results"]
        if interrupted:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr("avis_stream.models.mask_store.tempfile.TemporaryFile", opened)
    monkeypatch.setattr("avis_stream.commands.run.segment_clip", segment)
    out = tmp_path / "results" / "out"
    status = main(["run", str(clip), *DRY, "--no-video", "--memory-budget", "0", "--out", str(out)])
    assert status == int(interrupted)
    assert not Path(spools[0].name).exists()
    assert [path.name for path in out.parent.iterdir()] == ([] if interrupted else ["out"])
    if not interrupted:
        assert json.loads((out / "summary.json").read_text())["mask_features"] == {"disk": 3}


def test_an_overlay_at_camera_rate_is_of_recordings_as_a_whole(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(clip), *DRY, "--mode", "online", "--overlay", "camera"]) == 2
    assert "--overlay camera is not for --mode online" in capsys.readouterr().err


def test_the_overlay_may_keep_to_the_sampled_frames(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["run", str(clip), *DRY, "--overlay", "sampled", "--out", str(out)]) == 0
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_masks_on_sampled_pictures_are_the_same_at_camera_rate(clip: Path) -> None:
    torch.manual_seed(0)
    model = load("avism_mini", "random", settings=EVERYTHING[1::2])
    recording = open_clip(clip)
    images = torch.stack([pair.frame.image for pair in recording])
    sound = torch.cat([pair.audio for pair in recording])
    result = model.segment(images, sound)
    assert len(result)
    film = [frame for _, frame in drawn_again(model, recording.at(10), result, recording.fps)]
    assert len(film) == 30
    for k, frame in enumerate(result.results()):
        again = film[10 * k]
        assert torch.equal(again.sounding, frame.sounding)
        differing = (again.mask != frame.mask).float().mean()
        assert differing < 1e-3, "but for pixels whose logit is within rounding of 0"


def test_existing_results_are_not_overwritten(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "summary.json").write_text("old")
    command = ["run", str(clip), *DRY, "--no-video", "--out", str(out)]
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert (out / "summary.json").read_text() == "old"
    assert main([*command, "--force"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "summary.json").read_text())["frames"] == 3
    assert not (out / "overlay.mp4").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log it would be a line for each step."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", screen)
    assert list(progress(range(3), 3, "overlay")) == [0, 1, 2]
    said = screen.getvalue()
    assert all(word in said for word in ("overlay", "3/3", "frame/s")) if terminal else not said


def test_an_interrupted_run_leaves_nothing(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("avis_stream.writers.timeline.TimelineWriter.close", interrupt)
    before = sorted(tmp_path.iterdir())
    assert main(["run", str(clip), *DRY, "--out", str(tmp_path / "out")]) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "absent.mp4", *DRY], 1, "absent.mp4: no such file or folder"),
        (["run", "text.mp4", *DRY], 1, "text.mp4"),
        (["run", "clip.mp4", "--model", "avism_r50_coco"], 1, "no weights of avism_r50_coco come with the package"),
        (
            ["run", "clip.mp4", "--device", "foo"],
            2,
            "device must be one that this torch can use, such as cpu, got 'foo'",
        ),
        (["run", "clip.mp4", "--device", "cuda:77"], 2, "got 'cuda:77' ("),
        (["run", "clip.mp4", *DRY, "--set", "tracker.windows=3"], 2, "no field 'windows' here"),
        (["run", "clip.mp4", *DRY, "--fps", "0"], 2, "fps must be"),
        (["run", "clip.mp4", "--weights", "absent.pth"], 1, "no weight file 'absent.pth'"),
        (["convert", "absent.pth", "out.safetensors"], 1, "no weight file 'absent.pth'"),
        (["convert", "absent.pth", "out.pth"], 1, "must end in .safetensors"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    status: int,
    words: str,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("this is no film")
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out
    assert sorted(tmp_path.iterdir()) == before


def test_every_command_begins_with_a_model_that_has_weights(tmp_path: Path) -> None:
    data = ["--data", "d", "--split", "s", "--weights", "bundled"]
    for command in (["run", "clip.mp4"], ["live"], ["serve"], ["train", "--data", "d"], ["eval", *data]):
        name = _parser().parse_args(command).model
        assert bundled_weights(name), f"{command[0]} begins with {name}, which has no weights"


def test_options_of_models_are_the_same_everywhere() -> None:
    data = ["--data", "d", "--split", "s"]
    given = ["--weights", "w.pth", "--audio-weights", "v.pth", "--set", "a=1", "b=2", "--set", "c=3"]
    for command in (["run", "x"], ["live"], ["serve"], ["eval", *data], ["export", "avism_mini", "-o", "out"]):
        options = _parser().parse_args([*command, *given])
        assert (options.weights, options.audio_weights) == ("w.pth", Path("v.pth")), command
        assert options.settings == ["a=1", "b=2", "c=3"], command
    for command in (["train", "--data", "d"], ["convert", "a", "b"]):
        assert _parser().parse_args([*command, "--set", "a=1", "b=2"]).settings == ["a=1", "b=2"], command


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("by\nzero"), "avis-stream: unexpected ZeroDivisionError: by zero; --debug shows more\n"),
        (KeyboardInterrupt(), "avis-stream: interrupted\n"),
    ],
)
def test_whatever_happens_is_one_sentence(
    error: BaseException, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("avis_stream.commands.info.print_info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == words
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            main(["info", "--debug"])


@pytest.mark.parametrize("arguments", [[], ["dance"], ["run"], ["run", "x.mp4", "--memory-budget", "plenty"]])
def test_wrong_use_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_recording_that_breaks_off_keeps_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(1, 6):
        Image.new("RGB", (48, 32), (50 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:40])
    out = tmp_path / "out"
    assert main(["run", str(folder), *DRY, "--no-video", "--out", str(out)]) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"] == 3
    assert "image 4 of 5" in summary["broken"]
    assert "image 4 of 5" in capsys.readouterr().err


def test_convert_changes_settings_of_our_own_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model = unfolded_model(preset("avism_mini"), None, "")
    save_weights(stored_state(model), model.config, source, half=True)
    assert main(["convert", str(source), str(target), "--half", "--set", "postprocess.presence_threshold=0.4"]) == 0
    (before, _), (after, config) = read_state(source), read_state(target)
    assert config is not None
    assert config.postprocess.presence_threshold == 0.4
    encoder = [key.removeprefix("audio_encoder.") for key in after if key.startswith("audio_encoder.")]
    assert encoder
    assert not any(is_published(key) for key in encoder), "YAMNet ships once"
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_copy_of_the_bundled_weights_answers_as_they_do(tmp_path: Path) -> None:
    bundled = bundled_weights("avism_mini")
    assert bundled is not None
    target = tmp_path / "mine.safetensors"
    assert main(["convert", str(bundled), str(target), "--set", "postprocess.score_threshold=0.5"]) == 0
    _, config = read_state(target)
    assert config is not None
    assert config.input.clip_short_side_px == 256, "chosen after they were written, and so not in the file"
    assert config.postprocess.score_threshold == 0.5
    near = os.path.relpath(bundled)
    assert avs.load("avism_mini", near).config.input.clip_short_side_px == 256


def test_convert_writes_weights_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from avis_stream.weights.files import read_state

    source, target = tmp_path / "official.pth", tmp_path / "ours.safetensors"
    torch.save({"model": state("a_state")}, source)
    assert main(["convert", str(source), str(target), "--half"]) == 0
    assert "ours.safetensors" in capsys.readouterr().out
    stored, config = read_state(target)
    assert config is not None
    assert config.name == "ours"
    assert config.audio.encoder == "none"
    assert stored["tracker.query_feat.weight"].dtype == torch.float16


def test_info_lists_what_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--settings", "avism_mini"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "postprocess.score_threshold=0.4" in lines, "of the bundled weights"
    assert "train.losses.no_object_weight=0.4" in lines
    assert "localizer.queries=24" in lines


def test_info_names_kernels_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "ms_deform_attn" in printed
    assert "avism_swinl_coco" in printed
    reasons = [line for line in printed.splitlines() if line.startswith("reference on")]
    assert len(reasons) == len(set(reasons)) <= 2, "each said once"


def test_what_a_run_that_goes_on_would_pass_over_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--data", "synth", "--resume", "run"]
    for given, name in (
        (["--init", "bundled"], "--init"),
        (["--force"], "--force"),
        (["--model", "avism_mini"], "--model"),
        (["--out", "out/train"], "--out"),
        (["--audio-weights", "v.pth", "--out", "elsewhere"], "--audio-weights, --out"),
    ):
        assert main([*command, *given]) == 2
        assert capsys.readouterr().err.endswith(f"leave out {name}\n")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["info", "--json", "a.json"], "--json"),
        (["info", "--plot", "a.png", "--json", "a.json"], "--json, --plot"),
        (["info", "--settings", "avism_mini", "--data", "d", "--json", "a.json"], "--data, --json"),
        (["doctor", "--audio", "mic"], "--audio"),
        (["doctor", "--audio", "source"], "--audio"),
        (["doctor", "--data", "d", "--av-sync", "f.mp4"], "--av-sync"),
        (["doctor", "--data", "d", "--clip", "f.mp4", "--audio", "mic"], "--clip, --audio"),
        (["doctor", "--clip", "f.mp4", "--av-sync", "0", "--audio", "mic"], "--av-sync, --audio"),
    ],
)
def test_what_would_be_passed_over_is_refused(
    arguments: list[str],
    names: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(f"; leave out {names}\n")
    assert len(captured.err.splitlines()) == 1
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["run"], "INPUT"),
        (["live", "--hop", "99"], "from 0.04 to 10"),
        (["nothing"], "nothing"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert line.endswith("--help explains")
