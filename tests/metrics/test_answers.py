"""Answers of other systems: label, place, interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import Box, make_crowds, mask, percent, score, write

from avis_stream.data.annotations import Annotations, read_annotations, read_predictions
from avis_stream.errors import DataError
from avis_stream.metrics import answers_of_predictions, parse_answers, score_answers
from avis_stream.metrics.answers import is_answers

A: Box = (0, 0, 4, 4)
B: Box = (5, 5, 4, 4)


@pytest.fixture
def truth(tmp_path: Path) -> Annotations:
    """A dog in seconds 0 and 1, a cat beside it in second 1, silence in seconds 2 and 3."""
    tracks = [("dog", [A, A, None, None]), ("cat", [None, B, None, None])]
    return read_annotations(write(tmp_path, [(4, tracks, [])])[0])


def scored(truth: Annotations, *answers: dict[str, Any]) -> dict[str, Any]:
    document = json.loads(json.dumps([{"video": "video1"} | answer for answer in answers]))
    return score_answers(truth, parse_answers(Path("answers.json"), document, truth))


def test_boxes_by_hand(truth: Annotations) -> None:
    """The dog is right for two seconds. The cat's box is 4x8 around 4x4, IoU 1/2, and lasts a second too long.

    Second 0 right, second 1 right below IoU 1/2 (9 of 19), second 2 wrong, second 3 right. Of 4 answers 2 overlap by
    more than 1/2, and 3 were wanted. Who sounds is right in seconds 0, 1 and 3.
    """
    scores = scored(
        truth,
        {"label": "dog", "interval": [0, 2], "box": list(A)},
        {"label": "Cat", "interval": [1, 3], "box": [5, 1, 4, 8]},
    )
    assert (scores["FAs"], scores["FAm"], scores["FAn"]) == (100, percent(9 / 19), 50)
    assert scores["FA"] == percent((1 + 9 / 19 + 0 + 1) / 4)
    assert scores["labels"] == 75
    assert (scores["precision"], scores["recall"]) == (50, percent(2 / 3))


def test_masks(truth: Annotations) -> None:
    scores = scored(
        truth,
        {"category_id": 2, "interval": [0, 2], "segmentation": mask(A)},
        {"category_id": 3, "interval": [1, 2], "segmentation": mask(B)},
    )
    assert (scores["FA"], scores["labels"], scores["precision"], scores["recall"]) == (100, 100, 100, 100)


@pytest.mark.parametrize("kind", ["segmentation", "box"])
def test_what_lies_on_a_crowd_is_not_asked(kind: str, tmp_path: Path) -> None:
    """A dog at A beside a crowd of dogs at B; in second 1 the crowd alone.

    An answer of 16 pixels that reaches half beside B has 8 on the crowd: not more than half, so that it is wrong.
    """
    paths = write(tmp_path, [(2, [("dog", [A, None]), ("dog", [B, B])], [])])
    make_crowds(paths[0], 1)
    truth = read_annotations(paths[0])

    def answer(place: Box, label: str = "dog") -> dict[str, Any]:
        return {"label": label, "interval": [0, 2], kind: mask(place) if kind == "segmentation" else list(place)}

    dog = answer(A) | {"interval": [0, 1]}
    for on_crowd in ([], [answer(B)], [answer((6, 6, 2, 2))] * 2, [answer((5, 6, 4, 4))]):
        scores = scored(truth, dog, *on_crowd)
        assert [scores[key] for key in ("FA", "FAn_all", "FAm_all", "labels", "precision", "recall")] == [
            100, 1, 0, 100, 100, 100
        ]  # fmt: skip
    for beside in (answer((5, 3, 4, 4)), answer(B, "cat")):
        scores = scored(truth, dog, beside)
        assert (scores["FA"], scores["labels"], scores["precision"]) == (0, 0, percent(1 / 3))
    assert scored(truth, answer(B))["recall"] == 0, "a crowd's answer is none about the object"


def test_labels_beside_a_crowd_may_be_of_it(tmp_path: Path) -> None:
    paths = write(tmp_path, [(2, [("dog", [A, None]), ("dog", [B, B])], [])])
    make_crowds(paths[0], 1)
    truth = read_annotations(paths[0])
    dog, cat = ({"label": label, "interval": [0, 2]} for label in ("dog", "cat"))
    assert scored(truth, dog)["labels"] == scored(truth, dog, dog)["labels"] == 100
    assert scored(truth, dog, cat)["labels"] == 0
    assert scored(truth, dog)["precision"] == 0, "it says not where: one answer to the dog, and none to the crowd"
    assert scored(truth)["labels"] == 50


def test_labels_alone_say_who_but_not_where(truth: Annotations) -> None:
    scores = scored(truth, {"label": "dog", "interval": [0, 2]}, {"label": "cat", "interval": [1, 2]})
    assert (scores["labels"], scores["FA"], scores["FAn"]) == (100, 50, 100)


def test_labels_are_compared_as_people_write_them(truth: Annotations) -> None:
    named = replace(truth, categories={**truth.categories, 2: "Guide Dog"})
    for label in ("guide dog", "Guide_Dog", "Guide Dog"):
        scores = scored(named, {"label": label, "interval": [0, 2]}, {"label": "cat", "interval": [1, 2]})
        assert scores["labels"] == 100, label


def test_a_label_the_set_does_not_have_is_a_false_alarm(truth: Annotations) -> None:
    scores = scored(truth, {"label": "kettle", "interval": [3, 4], "box": list(A)})
    assert (scores["FAn"], scores["precision"]) == (50, 0)


@pytest.mark.parametrize(
    ("interval", "seconds"), [([0.4, 1], 1), ([0.6, 1], 0), ([0.4, 1.6], 2), ([-3, 99], 4), ([0.2, 0.8], 1)]
)
def test_more_than_half_a_second_counts(interval: list[float], seconds: int, truth: Annotations) -> None:
    document = [{"video_id": 1, "label": "dog", "interval": interval}]
    (video,) = parse_answers(Path("answers.json"), document, truth).values()
    assert sum(map(len, video)) == seconds


def test_nothing_said(truth: Annotations) -> None:
    scores = scored(truth)
    assert (scores["FA"], scores["FAn"], scores["precision"], scores["recall"]) == (50, 100, None, 0)


def test_our_own_predictions_on_the_same_ruler(tmp_path: Path) -> None:
    """An identity that changes costs FSLA half; second by second nothing is wrong."""
    video = (4, [("dog", [A] * 4)], [("dog", [A, A, None, None]), ("dog", [None, None, A, A])])
    assert score(tmp_path, "fixed", video)["FA"] == 50
    paths = tmp_path / "truth.json", tmp_path / "predictions.json"
    truth = read_annotations(paths[0])
    own = answers_of_predictions(truth, read_predictions(paths[1], truth))
    assert score_answers(truth, own)["FA"] == 100
    assert score_answers(truth, own, boxes=True)["FA"] == 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": "video9"}, r"\[0\] must name a video of truth.json"),
        ({"video": None, "video_id": [1]}, r"\[0\].video_id must be a number, got '\[1\]'"),
        ({"label": "", "category_id": [1]}, r"\[0\].category_id must be a number, got '\[1\]'"),
        ({"interval": [2, 1]}, r"\[0\].interval must be \[begin, end\] in seconds"),
        ({"interval": 3}, r"\[0\].interval must be"),
        ({"box": [1, 2, 3]}, r"\[0\].box must be \[x, y, width, height\]"),
        ({"segmentation": "x"}, r"\[0\].segmentation: a segmentation must be"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"\[0\].segmentation is \[5, 5\], its video \[10, 10\]"),
    ],
)
def test_doors(change: dict[str, Any], words: str, truth: Annotations) -> None:
    with pytest.raises(DataError, match=words):
        scored(truth, {"label": "dog", "interval": [0, 1]} | change)


def test_files_tell_themselves_apart() -> None:
    assert is_answers([{"interval": [0, 1]}])
    assert not is_answers([{"segmentations": []}])
    assert not is_answers({"interval": 1})
    assert not is_answers([])
