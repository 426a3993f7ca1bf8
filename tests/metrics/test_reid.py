"""Returns under the same name, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from avis_stream.errors import ConfigError
from avis_stream.metrics.pairs import TrackTable, VideoPair
from avis_stream.metrics.reid import Reappearance, ReturnCounts, gap_edges, reappearance

EDGES = (1, 3, 6)


def video(truth: Sequence[str], predicted: Sequence[str]) -> VideoPair:
    """Tracks as strings, a letter where an object is and a dot where it is not; the same letter is the same place."""

    def table(tracks: Sequence[str]) -> TrackTable:
        present = np.array([[c != "." for c in track] for track in tracks]).T
        count = len(tracks)
        zeros = np.zeros(count, np.int64)
        return TrackTable(
            id=np.arange(count),
            category=zeros,
            score=np.ones(count),
            frame_score=np.ones(present.shape),
            crowd=zeros > 0,
            present=present,
            area=9 * present.astype(np.int64),
            mean_area=np.ones(count),
            looks_empty=~present,
        )

    iou = np.array(
        [[[float(g[t] == p[t] != ".") for p in predicted] for g in truth] for t in range(len(truth[0]))]
    )  # fmt: skip
    return VideoPair("made", table(truth), table(predicted), iou)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (["aaa....aaa"], ["aaa....aaa"], (1, 1, 1)),
        (["aaa....aaa"], ["aaa.......", ".......aaa"], (1, 1, 0)),
        (["aaa....aaa"], ["aaa......."], (1, 0, 0)),
        (["aaa....aaa"], ["..a....a..", "aa......aa"], (1, 1, 1)),  # majority of three on both sides
        (["aaaa...aaaa"], ["aaa....aaaa", "...a......."], (1, 1, 1)),
        (["aaaaaaaaaa"], ["aaaaa.....", ".....aaaaa"], (0, 0, 0)),  # a switch, but no absence
    ],
    ids=["same", "new_name", "missed_after", "majority", "last_frame_only", "never_away"],
)
def test_return(truth: list[str], predicted: list[str], expected: tuple[int, int, int]) -> None:
    found = reappearance(video(truth, predicted), EDGES)
    assert found.by_gap[1] == ReturnCounts(*expected)
    assert found.by_gap[0] == found.by_gap[2] == ReturnCounts()


def test_gaps_go_into_their_ranges() -> None:
    film = "aa.aa..aa...aa.....aa......aa"
    found = reappearance(video([film], [film]), EDGES)
    assert [gap.returns for gap in found.by_gap] == [2, 2, 1]
    assert all(gap.reid == gap.coverage == 1.0 for gap in found.by_gap)
    assert gap_edges(6, 36) == (1, 6, 36, 72, 144)
    with pytest.raises(ConfigError, match="window"):
        gap_edges(36, 36)


def test_crowds_are_nobody() -> None:
    """Neither return: one comes back from a crowd, and a crowd is no newcomer that was taken for somebody."""
    pair = video(["aa....aa", "bb....bb"], ["aa....aa", "bb......", "......bb"])
    with_crowd = replace(pair, truth=replace(pair.truth, crowd=np.array([False, True])))
    assert reappearance(pair, EDGES).by_gap[1] == ReturnCounts(2, 2, 1)
    assert reappearance(with_crowd, EDGES).by_gap[1] == ReturnCounts(1, 1, 1)
    newcomer = video(["aaa.......", "......bbbb"], ["aaa...bbbb"])
    assert reappearance(newcomer, EDGES).newcomers == 1
    assert not reappearance(
        replace(newcomer, truth=replace(newcomer.truth, crowd=np.array([False, True]))), EDGES
    ).newcomers


@pytest.mark.parametrize(
    ("truth", "predicted", "false"),
    [
        (["aaa.......", "......bbbb"], ["aaa...bbbb"], 1),
        (["aaa.......", "......bbbb"], ["aaa.......", "......bbbb"], 0),
        (["aaa......a", "......bbbb"], ["aaa......a", "......bbbb"], 0),
        (["aaaaaaaaaa", "......bbbb"], ["aaaaaa....", "......bbbb"], 0),
        (["aaaaaaaaaa", "......bbbb"], ["aaaaaabbbb"], 0),  # a switch to a newcomer: the other is still there
    ],
    ids=["taken_for_the_gone", "own_name", "other_returns", "other_lost", "switch"],
)
def test_newcomer(truth: list[str], predicted: list[str], false: int) -> None:
    found = reappearance(video(truth, predicted), EDGES)
    assert (found.newcomers, found.false_returns) == (1, false)


def test_those_of_the_first_frame_are_no_newcomers() -> None:
    found = reappearance(video(["aaaa", "bbbb"], ["aaaa", "bbbb"]), EDGES)
    assert found.false_return_rate is None
    assert found == Reappearance((ReturnCounts(),) * 3)


def test_videos_add_up() -> None:
    one = reappearance(video(["aaa....aaa"], ["aaa....aaa"]), EDGES)
    two = reappearance(video(["aaa....aaa", "....b....."], ["aaa.......", "....b..aaa"]), EDGES)
    both = one + two
    assert both.by_gap[1] == ReturnCounts(2, 2, 1)
    assert both.by_gap[1].reid == 0.5
    assert (both.newcomers, both.false_returns) == (1, 0)
    assert both.false_return_rate == 0.0
