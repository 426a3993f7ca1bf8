"""Names across a cut, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_reid import video

from avis_stream.errors import ConfigError
from avis_stream.metrics.reid import ReturnCounts
from avis_stream.metrics.splice import across_cut, spliced, without_filler


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (["aaaaaaaa"], ["aaaaaaaa"], (1, 1, 1)),
        (["aaaaaaaa"], ["aaaa....", "....aaaa"], (1, 1, 0)),
        (["aaaaaaaa"], ["aaaa...."], (1, 0, 0)),
        (["aaaaaaaa"], ["........"], (1, 0, 0)),
        (["aa......"], ["aa......"], (0, 0, 0)),
        (["aa....aa"], ["aa....aa"], (1, 1, 1)),  # away at the cut, and back
        (["aaaaaaaa"], ["a...aaaa", ".aaa...."], (1, 1, 0)),  # the last three before it count
        (["aaaaaaaa"], ["aaaa.aaa", "....a..."], (1, 1, 1)),  # one wrong frame of three does not
        (["aaaaaaaa", "bbbbbbbb"], ["aaaabbbb", "bbbbaaaa"], (2, 2, 0)),  # each takes the other's
        (["aaaa....", "....bbbb"], ["aaaabbbb"], (0, 0, 0)),
    ],
    ids=[
        "same",
        "new_name",
        "missed_after",
        "no_answer",
        "gone",
        "absent_at_it",
        "late_switch",
        "majority",
        "swap",
        "two",
    ],
)
def test_names_across_a_cut(truth: list[str], predicted: list[str], expected: tuple[int, int, int]) -> None:
    assert across_cut(video(truth, predicted), 4) == ReturnCounts(*expected)


def test_a_crowd_has_no_name() -> None:
    pair = video(["aaaaaaaa", "bbbbbbbb"], ["aaaaaaaa", "bbbb....", "....bbbb"])
    with_crowd = replace(pair, truth=replace(pair.truth, crowd=np.array([False, True])))
    assert across_cut(pair, 4) == ReturnCounts(2, 2, 1)
    assert across_cut(with_crowd, 4) == ReturnCounts(1, 1, 1)


@pytest.mark.parametrize(
    ("frames", "expected"), [(0, "abcdef"), (1, "abxcdef"), (5, "abxyxyxcdef")], ids=["none", "one", "again"]
)
def test_what_comes_in_between(frames: int, expected: str) -> None:
    assert "".join(spliced("abcdef", "xy", 2, frames)) == expected


@pytest.mark.parametrize(("cut", "filler"), [(0, "x"), (6, "x"), (2, "")], ids=["nothing_before", "after", "between"])
def test_a_cut_without_two_sides_is_refused(cut: int, filler: str) -> None:
    with pytest.raises(ConfigError, match=r"^(cut|filler) must be"):
        spliced("abcdef", filler, cut, 3)


def test_answers_about_the_filler_are_taken_out() -> None:
    entries = [
        {"score": 0.9, "segmentations": ["a", None, "x", "y", "b"]},
        {"score": 0.8, "segmentations": [None, None, "x", "y", None]},
    ]
    assert without_filler(entries, 2, 2) == [{"score": 0.9, "segmentations": ["a", None, "b"]}]
    assert without_filler(entries, 2, 0) == entries
