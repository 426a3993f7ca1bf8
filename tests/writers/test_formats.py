"""What programs read: the formats of `docs/formats.md`, key by key."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_results import CLASSES, pair_at, result_for
from PIL import Image

from avis_stream.data import rle
from avis_stream.types import Event
from avis_stream.writers.base import Writers
from avis_stream.writers.jsonl import JsonlWriter, result_record
from avis_stream.writers.masks import PngMaskWriter, RleMaskWriter
from avis_stream.writers.predictions import PredictionsWriter
from avis_stream.writers.summary import SummaryWriter

STORY = [  # by frame: (id, class, score, rectangle or None)
    [(1, 1, 0.9, (4, 4, 20, 20)), (2, 0, 0.6, None)],
    [(1, 1, 0.7, (5, 4, 21, 20)), (2, 0, 0.5, (30, 10, 60, 40))],
    [(2, 0, 0.4, (30, 10, 60, 40))],
    [(1, 2, 0.8, None), (7, 0, 0.3, None)],
]


def tell(*writers: object, fps: float = 1.0) -> None:
    with Writers(writers) as all_of_them:  # type: ignore[arg-type]
        for index, tracks in enumerate(STORY):
            pair = pair_at(index, fps=fps)
            events = [Event(kind="returned", track_id=2, gap_seconds=1.25)] if index == 1 else []
            all_of_them.write(pair, result_for(pair, tracks, events))


def test_a_result_has_these_keys() -> None:
    pair = pair_at(1, fps=2)
    result = result_for(pair, STORY[0], [Event(kind="born", track_id=1)])
    record = result_record(pair, result, CLASSES, latency_ms=12.345, dropped={"late": 2})
    tracks = record.pop("tracks")
    assert record == {
        "source_id": "clip",
        "frame_id": 1,
        "segment": 0,
        "pts": 0.5,
        "wall_utc": None,
        "latency_ms": 12.35,
        "audio_valid": 1.0,
        "width": 64,
        "height": 48,
        "events": [{"kind": "born", "id": 1}],
        "dropped_since_last": {"late": 2},
    }
    segmentation = tracks[0].pop("segmentation")
    assert tracks == [
        {"id": 1, "label": "cat", "category_id": 2, "score": 0.9, "bbox": [4.0, 4.0, 16.0, 16.0], "sounding": True},
        {
            "id": 2,
            "label": "person",
            "category_id": 1,
            "score": 0.6,
            "bbox": None,
            "sounding": False,
            "segmentation": None,
        },
    ]
    assert segmentation["size"] == [48, 64]
    assert torch.equal(rle.decode(segmentation), result.mask[0])


def test_the_guide_shows_what_is_written(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    shown, entry = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    pair = pair_at(1)
    event = Event(kind="returned", track_id=1, gap_seconds=1.25)
    record = result_record(pair, result_for(pair, STORY[0], [event]), CLASSES, dropped={"stale": 2})
    assert shown.keys() == record.keys()
    assert shown["tracks"][0].keys() == record["tracks"][0].keys()
    assert shown["events"] == record["events"]
    tell(PredictionsWriter(tmp_path / "predictions.json"))
    assert entry.keys() == json.loads((tmp_path / "predictions.json").read_text())[0].keys()


def test_json_lines_one_per_frame(tmp_path: Path) -> None:
    tell(JsonlWriter(tmp_path / "results.jsonl", CLASSES))
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["frame_id"] for record in records] == [0, 1, 2, 3]
    assert [len(record["tracks"]) for record in records] == [2, 2, 1, 2]
    assert records[1]["events"] == [{"kind": "returned", "id": 2, "gap_seconds": 1.25}]
    assert records[0]["latency_ms"] is None


def test_json_lines_to_an_open_stream_appear_at_once() -> None:
    stream = io.StringIO()
    writer = JsonlWriter(stream, CLASSES)
    pair = pair_at(0)
    writer.write(pair, result_for(pair, []))
    assert json.loads(stream.getvalue())["tracks"] == []
    writer.close()
    assert not stream.closed


def test_predictions(tmp_path: Path) -> None:
    tell(PredictionsWriter(tmp_path / "predictions.json", video_id=5))
    one, two = json.loads((tmp_path / "predictions.json").read_text())
    assert one["category_id"] == 3  # the class when the stream ends
    assert one["score"] == pytest.approx(0.8)  # mean of 0.9 and 0.7: only frames in which it sounded
    assert [segmentation is not None for segmentation in one["segmentations"]] == [True, True, False, False]
    assert two["score"] == pytest.approx(0.45)
    assert [segmentation is not None for segmentation in two["segmentations"]] == [False, True, True, False]
    assert {entry["video_id"] for entry in (one, two)} == {5}  # id 7 never sounded
    assert rle.area(two["segmentations"][1]) == 30 * 30


def test_masks_as_pictures(tmp_path: Path) -> None:
    tell(PngMaskWriter(tmp_path / "masks"))
    names = sorted(str(path.relative_to(tmp_path / "masks")) for path in (tmp_path / "masks").rglob("*.png"))
    assert names == ["id_0001/000000.png", "id_0001/000001.png", "id_0002/000001.png", "id_0002/000002.png"]
    mask = np.asarray(Image.open(tmp_path / "masks" / names[2]))
    assert mask.shape == (48, 64)
    assert mask.astype(bool).sum() == 900


def test_masks_take_the_place_of_an_older_folder(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "old.png").write_bytes(b"")
    tell(PngMaskWriter(tmp_path / "masks"))
    assert not (tmp_path / "masks" / "old.png").exists()


def test_masks_as_a_coco_file(tmp_path: Path) -> None:
    tell(RleMaskWriter(tmp_path / "masks.json", CLASSES), fps=2)
    from pycocotools.coco import COCO

    coco = COCO(str(tmp_path / "masks.json"))
    assert [coco.imgs[i]["pts"] for i in sorted(coco.imgs)] == [0.0, 0.5, 1.0, 1.5]
    assert [(a["image_id"], a["track_id"], a["category_id"]) for a in coco.anns.values()] == [
        (1, 1, 2),
        (2, 1, 2),
        (2, 2, 1),
        (3, 2, 1),
    ]
    assert coco.anns[3]["area"] == 900
    assert coco.anns[3]["bbox"] == [30, 10, 30, 30]
    assert coco.annToMask(coco.anns[3]).sum() == 900
    assert [category["name"] for category in coco.cats.values()] == list(CLASSES)


def test_summary(tmp_path: Path) -> None:
    summary = SummaryWriter(tmp_path / "summary.json", CLASSES, fps=2)
    summary.add(stages={"localize": 1.5}, metrics={"fsla": float("nan")}, broken=None)
    tell(summary, fps=2)
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document.pop("peak_memory_bytes") > 1e6
    assert document == {
        "frames": 4,
        "seconds": 2.0,
        "fps": 2.0,
        "width": 64,
        "height": 48,
        "frames_with_sounding_objects": 3,
        "tracks": [
            {"id": 1, "label": "lawn_mover", "sounding_seconds": 1.0},
            {"id": 2, "label": "person", "sounding_seconds": 1.0},
        ],
        "events": {"returned": 1},
        "stages": {"localize": 1.5},
        "metrics": {"fsla": None},
        "broken": None,
    }
