"""The clip that ships: readable, small, credited, and as its truth says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import avis_stream
from avis_stream.config import AVISEG_CLASSES
from avis_stream.data import rle
from avis_stream.sources.clip import Clip
from avis_stream.sources.file import open_clip

DEMO = Path(avis_stream.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return open_clip(DEMO / "demo.mp4")


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEMO / "truth.json").read_text())
    return document


def test_the_clip(clip: Clip, truth: dict[str, Any]) -> None:
    assert (DEMO / "demo.mp4").stat().st_size <= 2_000_000
    assert (clip.width, clip.height, clip.expected_frames, clip.has_audio) == (640, 360, 20, True)
    (video,) = truth["videos"]
    assert (video["width"], video["height"], video["length"]) == (640, 360, 20)
    assert truth["categories"] == [{"id": k, "name": name} for k, name in enumerate(AVISEG_CLASSES, 1)]


def test_who_sounds_when(truth: dict[str, Any]) -> None:
    """Two look-alike dogs, one at a time; a cat that leaves for eight seconds and comes back; and silence."""
    left, right, cat = (
        {second for second, shape in enumerate(entry["segmentations"]) if shape} for entry in truth["annotations"]
    )
    assert [AVISEG_CLASSES[entry["category_id"] - 1] for entry in truth["annotations"]] == ["dog", "dog", "cat"]
    assert not left & right
    assert not (left | right) & cat
    assert set(range(20)) - left - right - cat == {8, 9, 14}
    gone = [second for second, shape in enumerate(truth["annotations"][2]["visible_segmentations"]) if shape is None]
    assert gone == list(range(8, 16))


def test_silent_seconds_hold_no_more_than_room_tone(clip: Clip, truth: dict[str, Any]) -> None:
    for pair in clip:
        second = pair.frame.frame_id
        sounds = any(entry["segmentations"][second] for entry in truth["annotations"])
        level = float(pair.audio.square().mean().sqrt())
        assert (level > 0.03) if sounds else (1e-4 < level < 0.01), second
        assert pair.audio_valid == pytest.approx(1, abs=2e-3)


def test_the_outlines_hold_the_animals(truth: dict[str, Any]) -> None:
    for entry in truth["annotations"]:
        for sounding, seen, area, box in zip(
            entry["segmentations"], entry["visible_segmentations"], entry["areas"], entry["bboxes"], strict=True
        ):
            assert sounding is None or sounding == seen
            if sounding is not None:
                run = rle.from_polygons(sounding, 360, 640)
                assert (rle.area(run), rle.box(run)) == (area, box)
                assert 4_000 < area < 40_000


def test_everything_in_it_is_credited() -> None:
    credits = (DEMO / "CREDITS.md").read_text()
    for name in ("newfoundland_113", "newfoundland_136", "Siamese_108", "2-114280-A", "1-97392-A", "I_DAK01_MC_FN"):
        assert name in credits
    for licence in ("by-sa/4.0", "by/3.0", "by/4.0"):
        assert licence in credits
