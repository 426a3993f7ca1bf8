"""Online minus offline by length, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Box, Tracks, write

from avis_stream.data.annotations import Annotations, Predictions, read_annotations, read_predictions
from avis_stream.errors import ConfigError
from avis_stream.metrics.fsla import Mode
from avis_stream.metrics.prefix import prefix_curve

A: Box = (0, 0, 4, 4)


def answers(folder: Path, *wrong: int) -> tuple[Annotations, Predictions]:
    """A dog in videos of 2, 4 and 4 frames, of which `wrong` last frames are not found in each."""
    videos: list[tuple[int, Tracks, Tracks]] = [
        (length, [("dog", [A] * length)], [("dog", [A] * (length - missed) + [None] * missed)])
        for length, missed in zip((2, 4, 4), wrong, strict=True)
    ]
    truth, predictions = write(folder, videos)
    read = read_annotations(truth)
    return read, read_predictions(predictions, read)


def test_what_is_lost_is_told_by_length(tmp_path: Path) -> None:
    """Nothing is lost on the short video. Of the 8 frames of the long ones offline misses 1 and online 3: 25 points."""
    truth, offline = answers(tmp_path, 0, 1, 0)
    _, online = answers(tmp_path, 0, 1, 2)
    short, long = prefix_curve(truth, offline, online, (1, 3, 100))
    assert (short.least_frames, short.videos, short.minus_offline["FA"]) == (1, 1, 0)
    assert (long.least_frames, long.videos, long.minus_offline["FA"]) == (3, 2, -25)
    assert long.minus_offline["FAn"] is None  # no second is silent


@pytest.mark.parametrize("mode", ["official", "fixed", "paper"])
def test_what_is_undefined_has_no_difference(mode: Mode, tmp_path: Path) -> None:
    """Nothing sounds, so there is no mAP; officially it is written as -100."""
    truth, nobody = write(tmp_path, [(2, [], [])])
    silent = read_annotations(truth)
    answered = read_predictions(nobody, silent)
    (curve,) = prefix_curve(silent, answered, answered, (1,), mode)
    assert curve.minus_offline["AP_all"] is None
    assert curve.minus_offline["FAn"] == 0


@pytest.mark.parametrize("edges", [(), (2, 5), (1, 5, 5)])
def test_edges_that_leave_videos_out_are_refused(tmp_path: Path, edges: tuple[int, ...]) -> None:
    truth, offline = answers(tmp_path, 0, 0, 0)
    with pytest.raises(ConfigError, match="edges"):
        prefix_curve(truth, offline, offline, edges)
