"""`avis-stream run --mode online`: the files of a run, written as the stream goes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from media_files import Media, clicks, regular, write_media
from small_model import SMALL, open_config, small_model

from avis_stream.cli import main
from avis_stream.commands.run import RunOptions
from avis_stream.commands.run_online import run_online
from avis_stream.data.rle import as_rle
from avis_stream.errors import ConfigError
from avis_stream.sources.file import open_clip

FILES = ["overlay.mp4", "predictions.json", "results.jsonl", "summary.json", "timeline.png"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    media = Media(stamps=regular(4.0, 10.0), rate=Fraction(10), sound=clicks(4.0, [0.5, 1.5, 2.5]))
    return write_media(tmp_path / "clip.mp4", media)


def test_files_of_a_stream(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    model = small_model()
    config = open_config(silence_dbfs=None)
    seen = run_online(model, open_clip(clip, previous=True), out, RunOptions(), config)
    assert seen.frames == 4
    assert sorted(path.name for path in out.iterdir()) == FILES
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(line["frame_id"], line["pts"]) for line in lines] == [(k, float(k)) for k in range(4)]
    shown = {track["id"] for line in lines for track in line["tracks"] if track["segmentation"]}
    events = [(event["kind"], event["id"]) for line in lines for event in line["events"]]
    assert ("born", 1) in events
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions) == len(shown) > 0
    assert seen.sounding == len(predictions), "and none that was never heard"
    for entry in predictions:
        assert entry["video_id"] == 1
        assert 1 <= entry["category_id"] <= len(model.classes)
        assert len(entry["segmentations"]) == 4
        assert all(mask is None or as_rle(mask) for mask in entry["segmentations"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mode"] == "online"
    assert summary["frames"] == 4
    assert summary["state_bytes"] > 0
    assert summary["stages"]["step"] > 0


def test_results_that_come_late_are_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refine_delay=2"):
        run_online(small_model(), open_clip(clip), tmp_path, RunOptions(), open_config(refine_delay=2))


def test_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = ["run", str(clip), "--mode", "online", "--model", "avism_mini", "--weights", "random", *settings]
    assert main([*command, "--fps", "2", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert len((out / "results.jsonl").read_text().splitlines()) == 8
    assert "in 8 frames" in capsys.readouterr().err
    assert main([*command, "--memory-budget", "1G", "--out", str(tmp_path / "other")]) == 2
    assert "constant" in capsys.readouterr().err
