"""`eval`, `doctor` and `info --data` as people use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_sets import predictions, truth, write_set
from PIL import Image

from avis_stream.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    (tmp_path / "found.json").write_text(json.dumps(predictions()))
    return tmp_path


EVAL = ["eval", "--data", "set", "--split", "test", "--predictions", "found.json"]


@pytest.mark.parametrize(("mode", "fsla"), [("official", "50.00"), ("fixed", "75.00"), ("paper", "66.67")])
def test_eval_prints_a_table(mode: str, fsla: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4 + 4 seconds 6 are right; officially the 2 silent ones of a video with a prediction are not.

    Paper: the dog's video is right, the hall's half; it counts for person and for piano: (1 + 1/2 + 1/2) / 3.
    """
    assert main([*EVAL, "--metrics", mode]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 videos, 8 frames" in lines[0]
    rows = {line.split()[0]: line.split() for line in lines[2:]}
    assert rows["all"][1] == fsla
    assert {"Music", "Animal", "person", "piano", "dog"} <= rows.keys()


def test_classes_may_be_called_as_the_other_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((here / "set" / "test.json").read_text())
    called = {"person": "all", "dog": "Animal"}
    for category in document["categories"]:
        category["name"] = called.get(category["name"], category["name"])
    (here / "set" / "test.json").write_text(json.dumps(document))
    assert main([*EVAL, "--metrics", "fixed"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows].count("all") == 2
    assert rows[0][:2] == ["all", "75.00"], "the total comes first"
    document["categories"][0]["name"] = document["categories"][1]["name"]
    (here / "set" / "test.json").write_text(json.dumps(document))
    assert main([*EVAL]) == 1
    assert f"categories name {document['categories'][0]['name']} occurs 2 times" in capsys.readouterr().err


def test_eval_writes_json_and_picture(here: Path) -> None:
    assert main([*EVAL, "--metrics", "fixed", "--json", "out/scores.json", "--plot", "out/seconds.png"]) == 0
    report: dict[str, Any] = json.loads((here / "out" / "scores.json").read_text())
    assert report["summary"]["FA"] == 75
    assert report["by_class"]["piano"]["FA"] == 50
    assert [video["right"] for video in report["videos"]] == [[1, 1, 1, 1], [1, 0, 0, 1]]
    with Image.open(here / "out" / "seconds.png") as picture:
        assert picture.width > 1000
    assert sorted(path.name for path in (here / "out").iterdir()) == ["scores.json", "seconds.png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video_id": 9}, "[0].video_id 9 is no video of this set"),
        ({"category_id": 9}, "[0].category_id 9 is no category of this set"),
        ({"score": None}, "[0].score must be a finite number, got nothing"),
        ({"score": float("nan")}, "[0].score must be a finite number, got float 'nan'"),
        ({"frame_scores": [0.5]}, "[0].frame_scores has 1 entries, its video 4 frames"),
        ({"frame_scores": [0.5, None, 1, 0]}, "[0].frame_scores[1] must be a finite number, got nothing"),
        ({"segmentations": [None]}, "[0].segmentations has 1 entries, its video 4 frames"),
        ({"segmentations": [{"size": [5, 5], "counts": [25]}] * 4}, "a mask of 5x5 in a video of 32x24"),
        ({"segmentations": [{"size": [24, 32], "counts": [[1], "x"]}] * 4}, "video 'yard', a track of category 14"),
        ({"segmentations": [[[0, 0, 5, 0, float("inf"), 5]]] * 4}, "a polygon's points must be finite"),
    ],
)
def test_predictions_that_do_not_fit(
    change: dict[str, Any], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = predictions()
    content[0] |= change
    (here / "found.json").write_text(json.dumps(content))
    assert main([*EVAL, "--json", "scores.json"]) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out
    assert not (here / "scores.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "--data", "set", "--split", "val", "--predictions", "found.json"], "set has test"),
        (["eval", "--data", "absent", "--split", "val", "--predictions", "found.json"], "absent: no such folder"),
        (["eval", "--data", "set", "--split", "test", "--predictions", "absent.json"], "absent.json: no such file"),
        (["eval", "--data", "set", "--split", "test", "--predictions", "set"], "set is a folder"),
        (
            ["eval", "--data", "set", "--split", "test", "--predictions", "set/test.json"],
            "must be a list of predictions",
        ),
        (["info", "--data", "absent"], "absent: no such folder"),
        (["doctor", "--data", "set/test"], "no .json file is in it"),
    ],
)
def test_missing_files(arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out


def test_eval_of_predictions_refuses_what_is_about_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, names in (
        (["--save", "kept.json"], "--save"),
        (["--mode", "online"], "--mode"),
        (["--model", "avism_mini"], "--model"),
        (["--device", "cuda", "--precision", "bfloat16"], "--device, --precision"),
        (["--set", "input.short_side_px=64", "--audio-weights", "v.pth"], "--audio-weights, --set"),
    ):
        assert main([*EVAL, *given]) == 2
        captured = capsys.readouterr()
        assert captured.err.endswith(f"no model is asked; leave out {names}\n")
        assert not captured.out
    assert not (here / "kept.json").exists()


def test_answers_that_are_not_kept_are_called_as_their_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*EVAL[:5], "--weights", "random", "--set", "input.short_side_px=32", "--json", "scores.json"]
    for kept, key, name in (([], "model", "avism_mini"), (["--save", "kept.json"], "predictions", "kept.json")):
        assert main([*command, *kept]) == 0
        assert capsys.readouterr().out.startswith(f"{name} on test: 2 videos, 8 frames; ")
        report = json.loads((here / "scores.json").read_text())
        assert {key: value for key, value in report.items() if key in {"model", "predictions"}} == {key: name}


def test_eval_as_live_counts_lateness(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("live.jsonl").write_text('{"latency_ms": 0}\n')
    assert main([*EVAL, "--metrics", "fixed", "--as-live", "live.jsonl"]) == 0
    at_once = capsys.readouterr().out
    Path("live.jsonl").write_text('{"latency_ms": 900}\n')
    assert main([*EVAL, "--metrics", "fixed", "--as-live", "live.jsonl"]) == 0
    late = capsys.readouterr().out
    assert "latency 900 ms p50" in late

    def fsla(text: str) -> float:
        return float(next(line for line in text.splitlines() if line.startswith("all")).split()[1])

    assert fsla(late) < fsla(at_once)


def test_eval_of_answers_and_of_pixels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EVAL, "--metrics", "fixed", "--semantic"]) == 0
    assert "pixels: binary_mIoU 100.00, binary_F 100.00, semantic_mIoU" in capsys.readouterr().out
    answers = [{"video": "yard", "label": "dog", "interval": [0, 2], "box": [2, 2, 10, 10]}]
    (here / "answers.json").write_text(json.dumps(answers))
    command = [*EVAL[:-1], "answers.json"]
    assert main([*command, "--json", "out/answers.json"]) == 0
    assert "answers second by second" in capsys.readouterr().out
    summary = json.loads((here / "out" / "answers.json").read_text())["summary"]
    assert (summary["FAn"], summary["precision"]) == (100, 100)
    (here / "live.jsonl").write_text('{"latency_ms": 0}\n')
    for refused in (["--plot", "seconds.png"], ["--semantic"], ["--as-live", "live.jsonl"], ["--metrics", "official"]):
        assert main([*command, *refused]) == 2
        assert (
            f"answers with intervals are scored second by second; leave out {refused[0]}\n" in capsys.readouterr().err
        )


def test_doctor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", "set"]) == 0
    assert "test: no problem found" in capsys.readouterr().out
    (here / "set" / "test" / "JPEGImages" / "hall" / "3.jpg").unlink()
    (here / "set" / "test" / "WAVAudios" / "hall.wav").write_bytes(b"RIFF")
    assert main(["doctor", "--data", "set"]) == 1
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.out.splitlines()] == [
        "set/test/JPEGImages/hall/3.jpg",
        "set/test/WAVAudios/hall.wav",
    ]
    assert captured.err == "avis-stream: set: 2 problems; correct the files named above\n"


def test_info_of_a_data_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "set" / "val.json").write_text(json.dumps(truth() | {"annotations": []}))
    assert main(["info", "--data", "set", "--json", "info.json", "--plot", "info.png"]) == 0
    printed = capsys.readouterr().out
    assert "test: Animal 1, Music 1" in printed
    assert any(line.split()[:4] == ["piano", "1", "1", "4"] for line in printed.splitlines())
    assert json.loads((here / "info.json").read_text())["val"]["shares"]["silent"] == 1
    assert (here / "info.png").stat().st_size > 10_000
