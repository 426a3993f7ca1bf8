"""`timeline.png`: drawn whatever happened, bars where they belong, in the overlay's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_results import CLASSES, Track, pair_at, result_for
from numpy.typing import NDArray
from PIL import Image

from avis_stream.writers.colors import identity_color
from avis_stream.writers.timeline import MAX_ROWS, TimelineWriter, _clock

HERE = (4, 4, 20, 20)


def drawn(path: Path, story: list[list[Track]], fps: float = 1.0) -> NDArray[np.uint8]:
    writer = TimelineWriter(path, CLASSES, fps=fps, title="a clip")
    for index, tracks in enumerate(story):
        pair = pair_at(index, fps=fps)
        writer.write(pair, result_for(pair, tracks))
    writer.close()
    return np.asarray(Image.open(path).convert("RGB"))


def test_bars_stand_where_the_object_sounds(tmp_path: Path) -> None:
    story = [[(1, 1, 0.9, HERE if 2 <= k < 5 else None), (2, 0, 0.9, HERE if k == 9 else None)] for k in range(10)]
    picture = drawn(tmp_path / "t.png", story)
    first, second = (np.abs(picture.astype(int) - identity_color(k)).max(axis=2) <= 2 for k in (1, 2))
    left, right = np.flatnonzero(first.any(axis=0))[[0, -1]]
    begin, end = np.flatnonzero(second.any(axis=0))[[0, -1]]
    per_second = (end - begin + 3) / 1.0  # one second wide, less its border
    assert (right - left) / per_second == pytest.approx(3, abs=0.1)
    assert (begin - left) / per_second == pytest.approx(7, abs=0.2)


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "t.png", CLASSES, fps=1.0, title="A$AP_$hort.mp4")
    pair = pair_at(0, fps=1.0)
    writer.write(pair, result_for(pair, [(1, 1, 0.9, HERE)]))
    writer.close()
    assert (tmp_path / "t.png").is_file()


@pytest.mark.parametrize("fps", [0.5, 1, 7.3, 30])
def test_any_rate(tmp_path: Path, fps: float) -> None:
    assert drawn(tmp_path / "t.png", [[(1, 1, 0.9, HERE)]] * 6, fps).shape[1] == 1560


def test_nothing_happened(tmp_path: Path) -> None:
    assert drawn(tmp_path / "t.png", [[], []]).size
    assert drawn(tmp_path / "u.png", []).size


def test_a_crowd_stays_a_picture(tmp_path: Path) -> None:
    story = [[(k, 1, 0.9, HERE) for k in range(1, MAX_ROWS + 20)]]
    assert drawn(tmp_path / "t.png", story).shape[0] < 2600


@pytest.mark.parametrize(
    ("seconds", "step", "text"), [(0, 1, "0:00"), (75, 5, "1:15"), (3725, 60, "1:02:05"), (1.5, 0.5, "0:01.5")]
)
def test_clock(seconds: float, step: float, text: str) -> None:
    assert _clock(seconds, step) == text
