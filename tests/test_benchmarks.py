"""That the scripts in `benchmarks/` still fit the library: all import it; those that reach into its parts run, tiny."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_sets import write_set
from PIL import Image
from small_model import small_model

from avis_stream.data.annotations import Video
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.errors import DataError
from avis_stream.models.avism import AVISM
from avis_stream.online.tracking import StreamTracker

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.name.startswith(("bench_", "conftest", "cuda", "gst")))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_what_it_names(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_a_sound_without_a_mask_in_time_is_missed_and_infinitely_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the demo something begins to sound at 3, 5, 10, 12, 15 (until 16), 16, 18 and 19 s."""
    live = importlib.import_module("live")
    monkeypatch.setattr(live, "shows", lambda result, wanted: result.pts_seconds > 0 and len(wanted) > 0)

    def waits(*stamps: float, latency_ms: float = 500, played: float = math.inf) -> list[float]:
        results = [
            SimpleNamespace(pts_seconds=at, frame_id=round(25 * at), latency_ms=latency_ms) for at in (0, *stamps)
        ]
        return sorted(live.delays(results, played))

    assert waits() == [math.inf] * 8
    assert waits(3.0, played=6) == [0.5]
    assert waits(2.9, played=6) == [math.inf], "it is of a frame before"
    assert waits(5.6, played=6) == [math.inf], "it comes after more than 3 s"
    assert waits(5.6, played=8) == [pytest.approx(1.1), math.inf]
    assert waits(16.4, 16.6)[:3] == [pytest.approx(0.9), pytest.approx(1.9), math.inf]
    assert waits(16.6)[:2] == [pytest.approx(1.1), math.inf], "it comes more than 1 s after the end of the one at 15 s"
    assert waits(9.9, played=5.9) == [], "it may still come"
    assert waits(9.9, played=6.0) == [math.inf]
    of_found = "onset_to_mask_p50_s_of_found", "onset_to_mask_p95_s_of_found"
    seen = live.onsets(waits(3.0))
    assert (seen["onsets_total"], seen["onsets_missed"]) == (8, 7)
    assert seen["onset_to_mask_p95_s"] == "missed"
    assert [seen[name] for name in of_found] == [0.5, 0.5], "of the one that was found"
    in_time = live.onsets([0.5, 1.5, 1.0])
    assert in_time["onsets_missed"] == 0
    assert (in_time["onset_to_mask_p95_s"], *(in_time[name] for name in of_found)) == (1.5, 1.0, 1.5)
    assert live.onsets([])["onset_to_mask_p95_s"] is None


def test_who_moves_is_compared_with_where_he_is_before_and_after() -> None:
    """In the demo the cat comes in from 16 s on while it meows, until 18 s: where it begins it is for an instant."""
    live = importlib.import_module("live")
    truth = live.read_annotations(live.DEMO / "truth.json")
    video, (cat,) = truth.videos[0], [t for t in truth.tracks[truth.videos[0].id] if t.segmentations[17] is not None]
    whole = [live.rle.as_rle(cat.segmentations[second], video.height, video.width) for second in (16, 17)]
    assert not live.same(*whole)
    assert live.outlines(video, cat, 16.0, 18) == whole[:1]
    assert live.outlines(video, cat, 16.4, 18) == whole
    assert live.outlines(video, cat, 17.4, 18) == whole[1:]
    assert live.outlines(video, cat, 18.6, 18) == whole[1:], "late, but where it was last"
    masks = torch.stack([live.rle.decode(outline).bool() for outline in whole])
    result = SimpleNamespace(mask=masks, sounding=torch.tensor([False, True]))
    assert not live.shows(result, whole[:1]), "who does not sound is not shown"
    assert live.shows(result, whole)


def test_ablations_are_drawn(tmp_path: Path) -> None:
    ablations = importlib.import_module("mini_ablations")
    rows = {"with": {"FA": 40.0, "HOTA": 50.0}, "without": {"FA": 20.0, "HOTA": 30.5}}
    ablations.draw({"fusion": rows, "window": rows | {"third": rows["with"]}}, tmp_path / "ablations.png")
    with Image.open(tmp_path / "ablations.png") as picture:
        assert picture.width > picture.height > 200


def test_delays_count_what_is_heard_and_what_never_comes() -> None:
    """Three sounds shown at once, one step late and never; a step takes 0.1 or 0.3 s."""
    online = importlib.import_module("online_results")
    found = online.wait_seconds([0, 1, -1], [0.1, 0.3])
    assert found == {"count": 3, "never": 1, "p50 s": 2.3, "p95 s": "never"}
    assert online.wait_seconds([0, 0, 0], [0.1])["p95 s"] == 1.1
    assert online.wait_seconds([], [0.1])["p50 s"] is None


def test_online_is_compared_with_offline() -> None:
    online = importlib.import_module("online_results")
    row = {"FA": 40.0, "FAn": None, "HOTA": 50.0, "AP_all": 20.0, "IDSW": 3}
    rows = online.against_offline({"offline": row, "parity": row | {"FA": 39.5, "FAn": 80.0, "AP_all": 21.0}})
    assert rows["parity minus offline"] == {"FA": -0.5, "FAn": None, "HOTA": 0.0, "AP_all": 1.0}
    assert rows["offline"] == row


@pytest.fixture
def split(tmp_path: Path) -> DataSplit:
    return open_split(write_set(tmp_path), "test")


@pytest.fixture
def model() -> AVISM:
    """Random weights, frame queries as objects, as the model that ships; whatever it says counts."""
    return small_model(objects="frame")


def test_looks_are_made_once(model: AVISM, split: DataSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = importlib.import_module("online_looks")
    folder, (video, other) = tmp_path / "looks", split.annotations.videos
    made, kept = looks.look_at_all(model, split, video), looks.looks_of(model, split, video, folder)
    monkeypatch.setattr(looks, "look_at_all", lambda *_: pytest.fail("it is there"))
    again = looks.looks_of(model, split, video, folder)
    for one in (kept, again):
        assert len(one) == video.length
        for a, b in zip(one, made, strict=True):
            assert (a.masks, a.silent) == (b.masks, b.silent)
            for name in (*looks._TENSORS, "likely"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name
    names = {looks.kept_name(m, split, v) for m in (model, small_model(seed=1)) for v in (video, other)}
    (path,) = folder.rglob("*.pt")
    assert len(names) == 4
    assert path.relative_to(folder).as_posix() in names
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="remove it"):
        looks.looks_of(model, split, video, folder)


def test_a_tiny_run_of_online_results(model: AVISM, split: DataSplit, tmp_path: Path) -> None:
    online = importlib.import_module("online_results")
    report = online.results(model, split, split.annotations.videos, [0.1], tmp_path / "looks")
    assert set(report["as shown"]) == {
        "offline", "gates on", "parity", "gates on minus offline", "parity minus offline"
    }  # fmt: skip
    assert report["delays"]["onset"]["count"] == 1
    assert report["delays"]["offset"]["count"] == 1
    assert len(list((tmp_path / "looks").rglob("*.pt"))) == 2
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("objects", ["frame", "video"])
@pytest.mark.parametrize("filler", ["other", "black"])
def test_a_tiny_run_of_online_returns(objects: str, filler: str, split: DataSplit, tmp_path: Path) -> None:
    online = importlib.import_module("online_returns")
    model, videos = copy.copy(small_model(objects=objects)), split.annotations.videos
    # Random weights would show classes that the set does not have.
    model.config = model.config.with_overrides(["postprocess.score_threshold=0.3"])
    report = online.returns(model, split, videos, looks=tmp_path / "looks", splices=[0, 3], filler=filler)
    rows = [f"sinks {s}, table {t}" for s in ("none", "first", "per_query") for t in ("off", "on")]
    if objects == "frame":
        rows += ["linked frame queries, as shipped", "linked frame queries, by looks alone"]
    assert list(report["returns"]) == [*rows, "frame to frame (MinVIS)"]
    assert list(report["splice"]["rows"]) == rows
    for own in report["splice"]["rows"].values():
        assert [found["returns"] for found in own.values()] == [3, 3], "the dog, the piano, the person"
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    table = online.splice_table(report["splice"]["rows"]).splitlines()
    assert len(table) == len(rows) + 1
    online.plot_splice(report["splice"]["rows"], filler, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (1050, 675)


def test_a_stream_goes_through_what_is_put_in_between(model: AVISM, split: DataSplit) -> None:
    """The rows are given the first half, the filler, the second half; answers about the filler are gone after."""
    online = importlib.import_module("online_returns")
    video, given = split.annotations.videos[0], []

    def row(video: Video, looks: Sequence[Any]) -> list[dict[str, Any]]:
        given.append(list(looks))
        return [{"segmentations": list(looks)}]

    entries = online.entries_across(row, video, ["a", "b", "c", "d"], ["x"], 3)
    assert given == [["a", "b", "x", "x", "x", "c", "d"]]
    assert entries == [{"segmentations": ["a", "b", "c", "d"]}]


def test_rows_about_sinks_ask_video_queries(model: AVISM, split: DataSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model whose streams ask none: else all of them would be the same row."""
    online = importlib.import_module("online_returns")
    asked = []
    answer = StreamTracker.answer

    def counted(self: StreamTracker, *given: Any) -> Any:
        asked.append(self.config.sinks)
        return answer(self, *given)

    monkeypatch.setattr(StreamTracker, "answer", counted)
    video = split.annotations.videos[0]
    seen = importlib.import_module("online_looks").look_at_all(model, split, video)
    found = {}
    for name, row in online.rows_of(model).items():
        asked.clear()
        row(video, seen)
        found[name] = len(asked)
    for own in ("as shipped", "by looks alone"):
        assert found.pop(f"linked frame queries, {own}") == 0
    assert set(found.values()) == {video.length}


@pytest.mark.parametrize("generator", [False, True])
def test_a_clip_of_one_frame(generator: bool) -> None:
    threads = torch.get_num_threads()
    clip = importlib.import_module("offline_clip")
    options = argparse.Namespace(frames=1, memory_gib=1.0, reference=False, generator=generator)
    try:
        report = clip.run(options)
    finally:
        torch.set_num_threads(threads)
    assert report["instances"] == clip.PAIRS
    assert report["mean_mask_pixels"] > 0
