"""What the scores are where there is nothing to score, and what must not change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CATEGORIES, EMPTY, SIZE, Box, Tracks, mask, score, write

from avis_stream.data.annotations import Track, Video
from avis_stream.metrics import evaluate
from avis_stream.metrics.fsla import judge_frames
from avis_stream.metrics.hota import hota_sums
from avis_stream.metrics.identity import identity_counts
from avis_stream.metrics.pairs import VideoPair, pair_video

A: Box = (0, 0, 4, 4)
B: Box = (5, 5, 4, 4)


@pytest.mark.parametrize(
    ("truth", "predicted", "fixed", "official"),
    [
        pytest.param(
            [], [],
            {"FA": 100, "FAn": 100, "FAs": None, "HOTA": None, "AP_all": None, "IDF1": None, "frame_AP50": None},
            {"FA": 100, "FAn": 100, "FAs": None, "HOTA": 0, "LocA": 100, "AP_all": -100},
            id="nothing sounds, nothing shown",
        ),
        pytest.param(
            [], [("dog", [A, A])],
            {"FA": 0, "FAn": 0, "HOTA": None, "AP_all": None, "IDF1": None},
            {"FA": 0, "FAn": 0, "HOTA": 0, "AP_all": -100},
            id="nothing sounds, something shown",
        ),
        pytest.param(
            [("dog", [A, None])], [],
            {"FA": 50, "FAn": 100, "FAs": 0, "HOTA": 0, "LocA": 100, "AP_all": 0, "AR_all": 0, "IDF1": 0, "IDSW": 0},
            {"FA": 50, "FAn": 100, "FAs": 0, "HOTA": 0, "AP_all": 0, "AR_all": 0},
            id="no prediction",
        ),
        pytest.param(
            [("dog", [A, None])], [("dog", [A, EMPTY])],
            {"FA": 100, "HOTA": 100, "AP_all": 100, "IDF1": 100, "frame_AP50": 100},
            {"FA": 50, "FAn": 0, "DetA": round(100 / 2 / 3, 2)},
            id="an empty mask is silence; officially it is a detection, and shown at 10x10",
        ),
        pytest.param(
            [("dog", [A, A])], [("dog", [EMPTY, EMPTY])],
            {"FA": 0, "HOTA": 0, "AP_all": 0, "IDF1": 0},
            {"FA": 0, "HOTA": 0, "AP_all": 0},
            id="nothing but empty masks",
        ),
        pytest.param(
            [("dog", [None, None])], [("dog", [A, A])],
            {"FA": 0, "HOTA": None, "AP_all": None, "IDF1": None},
            {"FA": 0, "HOTA": 0, "AP_all": 0},
            id="an object without a mask",
        ),
        pytest.param(
            [("dog", [A, A])], [("cat", [A, A])],
            {"FA": 0, "HOTA": 0, "AP_all": 0, "IDF1": 0},
            {"FA": 0, "HOTA": 0, "AP_all": 0},
            id="another class",
        ),
        pytest.param(
            [("dog", [A, A])], [("dog", [A, A]), ("dog", [A, A])],
            {"FA": 0, "DetA": 50, "AssA": 100, "AP_all": 100, "IDSW": 0},
            {"FA": 0, "AP_all": 100},
            id="everything twice",
        ),
        pytest.param(
            [("dog", [A, B]), ("dog", [B, A])], [("dog", [A, A]), ("dog", [B, B])],
            {"DetA": 100, "IDSW": 2, "IDF1": 50, "FA": 50},
            {"FA": 50},
            id="two of a class change places",
        ),
    ],
)  # fmt: skip
def test_edges(
    truth: Tracks, predicted: Tracks, fixed: dict[str, Any], official: dict[str, Any], tmp_path: Path
) -> None:
    video = (2, truth, predicted)
    scores = score(tmp_path, "fixed", video)
    assert {key: scores[key] for key in fixed} == fixed
    scores = score(tmp_path, "official", video)
    assert {key: scores[key] for key in official} == official
    score(tmp_path, "paper", video)


ON_B: Box = (6, 6, 2, 2)


@pytest.mark.parametrize(
    "shown",
    [[], [("dog", [B, B])], [("dog", [B, B])] * 2, [("dog", [ON_B, ON_B])] * 2, [("dog", [ON_B, None])]],
)
def test_what_is_shown_on_a_crowd_does_not_count(shown: Tracks, tmp_path: Path) -> None:
    video = (2, [("dog", [A, A]), ("dog", [B, B])], [*shown, ("dog", [A, A])])
    paths = write(tmp_path, [video])
    document = json.loads(paths[0].read_text())
    document["annotations"][1]["iscrowd"] = 1
    paths[0].write_text(json.dumps(document))
    names = ("FA", "FAs", "HOTA", "IDF1", "AP_all", "AR_all", "frame_AP50")
    for mode in ("fixed", "paper"):
        scores = evaluate(*paths, mode=mode)
        assert {name: scores[name] for name in names} == dict.fromkeys(names, 100), mode
    document["annotations"][1]["category_id"] = CATEGORIES["cat"]
    paths[0].write_text(json.dumps(document))
    assert (evaluate(*paths, mode="fixed")["FA"] == 100) is (not shown)  # dogs on a crowd of cats are wrong


def test_an_object_in_front_of_a_crowd_is_found(tmp_path: Path) -> None:
    paths = write(tmp_path, [(1, [("dog", [A]), ("dog", [(0, 0, 10, 10)])], [("dog", [A])])])
    document = json.loads(paths[0].read_text())
    document["annotations"][1]["iscrowd"] = 1
    paths[0].write_text(json.dumps(document))
    scores = evaluate(*paths, mode="fixed")
    assert scores["FA"] == scores["HOTA"] == scores["AP_all"] == 100


def random_pair(seed: int, order: bool = False) -> VideoPair:
    """A video of up to 6 frames with up to 4 tracks of 2 classes on either side."""
    random = np.random.default_rng(seed)
    video = Video(id=1, name="video", height=SIZE, width=SIZE, length=int(random.integers(1, 7)), file_names=())

    def track() -> Track:
        boxes = [(*random.integers(0, 6, 2), *random.integers(0, 5, 2)) for _ in range(video.length)]
        masks = [mask(box) if random.random() < 0.8 else None for box in boxes]
        return Track(1, int(random.integers(1, 3)), tuple(masks), score=float(random.random()))

    truth, predicted = ([track() for _ in range(random.integers(0, 5))] for _ in range(2))
    if order:
        truth, predicted = truth[::-1], predicted[::-1]
    return pair_video(video, truth, predicted).without_empty_masks()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_the_order_of_tracks_changes_nothing(seed: int) -> None:
    one, other = random_pair(seed), random_pair(seed, order=True)
    for category in (1, 2):
        a, b = one.of_category(category), other.of_category(category)
        for key, values in hota_sums(a).scores().items():
            np.testing.assert_allclose(values, hota_sums(b).scores()[key], err_msg=key)
        assert identity_counts(a).idtp == identity_counts(b).idtp
    for mode in ("fixed", "paper"):
        assert (judge_frames(one, mode).right == judge_frames(other, mode).right).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_truth_scored_against_itself_is_perfect(seed: int) -> None:
    pair = random_pair(seed)
    same = VideoPair(pair.name, pair.truth, pair.truth, _self_overlap(seed))
    same_class = [same.of_category(category) for category in (1, 2)]
    for mode in ("fixed", "paper"):
        assert judge_frames(same, mode).right.all()
    assert all((hota_sums(own).fp == 0).all() for own in same_class)
    assert sum(identity_counts(own).idfp for own in same_class) == 0


def _self_overlap(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Objects that do not overlap each other: 1 on the diagonal where they are there."""
    present = random_pair(seed).truth.present
    return present[:, :, None] * np.eye(present.shape[1])[None]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_stricter_thresholds_never_make_a_frame_right(seed: int) -> None:
    for mode in ("fixed", "paper", "official"):
        right = judge_frames(random_pair(seed), mode).right
        assert not (right[:, 1:] & ~right[:, :-1]).any()


def test_tracks_of_more_masks_than_eight_bits_count(tmp_path: Path) -> None:
    """pycocotools counts the pixels of 255 masks at once."""
    seconds: list[Box | None] = [A] * 310
    found = score(tmp_path, "fixed", (310, [("dog", seconds)], [("dog", seconds)]))
    assert found["FA"] == found["HOTA"] == 100
