"""What a viewer sees when, and that late answers count as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import Box, Tracks, percent, write

from avis_stream.data.annotations import read_annotations, read_predictions
from avis_stream.errors import ConfigError, DataError
from avis_stream.metrics import evaluation
from avis_stream.metrics.streaming import Delivery, as_live, deliveries, on_screen, read_latencies

A: Box = (0, 0, 4, 4)
B: Box = (5, 5, 4, 4)


def frames_of(found: list[Delivery]) -> list[tuple[int, float]]:
    return [(d.frame, round(d.seconds, 6)) for d in found]


def test_a_quick_model_delivers_every_frame() -> None:
    assert frames_of(deliveries(3, 1.0, [0.25])) == [(0, 0.25), (1, 1.25), (2, 2.25)]


def test_a_slow_model_takes_the_newest_frame_and_drops_the_others() -> None:
    assert frames_of(deliveries(6, 1.0, [1.5])) == [(0, 1.5), (1, 3.0), (3, 4.5), (4, 6.0), (5, 7.5)]
    assert frames_of(deliveries(9, 1.0, [2.5, 0.5])) == [
        (0, 2.5), (2, 3.0), (3, 5.5), (5, 6.0), (6, 8.5), (8, 9.0)
    ]  # fmt: skip


def test_the_screen_shows_the_newest_result() -> None:
    shown = on_screen(3, 1.0, deliveries(3, 1.0, [0.3]), instants=4)
    # instants at 1/8, 3/8, 5/8, 7/8 of each second
    assert shown == [None, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert on_screen(2, 1.0, [], instants=2) == [None] * 4


def scored(tmp_path: Path, latency: float, tracks: Tracks, answers: Tracks) -> dict[str, object]:
    truth_file, found_file = write(tmp_path, [(len(tracks[0][1]), tracks, answers)])
    truth = read_annotations(truth_file)
    lived = as_live(truth, read_predictions(found_file, truth), 1.0, [latency])
    return dict(evaluation(*lived, "fixed").summary())


def test_scores_of_frames_go_with_their_masks(tmp_path: Path) -> None:
    truth_file, found_file = write(tmp_path, [(2, [("dog", [A, A])], [("dog", [A, B])])])
    entries = json.loads(found_file.read_text())
    found_file.write_text(json.dumps([{**entries[0], "frame_scores": [0.25, 0.75]}]))
    truth = read_annotations(truth_file)
    _, lived = as_live(truth, read_predictions(found_file, truth), 1.0, [0.3])
    track = lived[1][0]
    assert [mask is None for mask in track.segmentations] == [True] + [False] * 7
    assert track.frame_scores == (0.0, 0.25, 0.25, 0.25, 0.25, 0.75, 0.75, 0.75)


def test_without_latency_the_scores_are_the_offline_ones(tmp_path: Path) -> None:
    scores = scored(tmp_path, 0.0, [("dog", [A, None, B])], [("dog", [A, None, B])])
    assert scores["FA"] == scores["HOTA"] == 100


def test_a_late_answer_is_wrong_until_it_comes(tmp_path: Path) -> None:
    """0.5 s late: at 1/8 and 3/8 of each second the screen still shows the second before, or nothing.

    The dog sounds in seconds 0 and 2 at different places: second 0 is right at 2 of 4 instants, second 1 (silent) at
    2 of 4, second 2 at 2 of 4: 6 of 12.
    """
    scores = scored(tmp_path, 0.5, [("dog", [A, None, B])], [("dog", [A, None, B])])
    assert scores["FA"] == percent(6 / 12)
    assert scores["FAn"] == percent(2 / 4)


def test_a_still_scene_forgives_latency(tmp_path: Path) -> None:
    """Only the first answer's lateness shows: 2 of 16 instants without it."""
    assert scored(tmp_path, 0.5, [("dog", [A] * 4)], [("dog", [A] * 4)])["FA"] == percent(14 / 16)


def test_recorded_latencies_are_read(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text("".join(json.dumps({"frame_id": k, "latency_ms": 100.0 + k}) + "\n" for k in range(3)))
    assert read_latencies(path) == [0.1, 0.101, 0.102]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no result"),
        ("{}\n", "latency_ms"),
        ("hello\n", "one JSON object"),
        ('{"latency_ms": null}\n', "read on demand has none; record it with `avis-stream live --realtime`"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_latencies(path)


def test_latencies_must_be_there(tmp_path: Path) -> None:
    truth_file, found_file = write(tmp_path, [(1, [("dog", [A])], [("dog", [A])])])
    truth = read_annotations(truth_file)
    with pytest.raises(ConfigError, match="latencies"):
        as_live(truth, read_predictions(found_file, truth), 1.0, [])
