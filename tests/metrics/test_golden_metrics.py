"""The official evaluator's numbers on four synthetic data sets (`tests/golden/README.md`, section f)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_data import GOLDEN

from avis_stream.data.annotations import read_annotations, read_predictions
from avis_stream.metrics import Evaluation, evaluate, evaluation
from avis_stream.metrics.alignment import ALPHAS
from avis_stream.metrics.fsla import SUFFIXES
from avis_stream.metrics.hota import HOTA_KEYS, HotaSums
from avis_stream.metrics.track_map import AREA_RANGES, track_curves

SETS = ["basic720", "multi720", "random720", "basic360"]


def path(name: str, what: str) -> str:
    return str(GOLDEN / "f_metrics" / f"{name}_{what}.json")


@functools.cache
def expected(name: str) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(Path(path(name, "expected")).read_text())
    return recorded


@functools.cache
def ours(name: str) -> Evaluation:
    truth = read_annotations(path(name, "gt"))
    return evaluation(truth, read_predictions(path(name, "pred"), truth), "official")


@pytest.mark.parametrize("name", SETS)
def test_summary_is_exactly_the_official_one(name: str) -> None:
    scores = evaluate(path(name, "gt"), path(name, "pred"), mode="official")
    assert scores == expected(name)["official_summary_percent"]


@pytest.mark.parametrize("name", SETS)
def test_frame_counts_of_every_video(name: str) -> None:
    recorded = expected(name)["fsla_counts_per_sequence"]
    assert [video.verdicts.name for video in ours(name).videos] == list(recorded)
    for video in ours(name).videos:
        for kind, suffix in SUFFIXES.items():
            right, frames = video.verdicts.counts(kind)
            counts = recorded[video.verdicts.name]
            assert right.tolist() == counts[f"frame_num_{suffix}_tp"], (video.verdicts.name, suffix)
            assert [frames] * len(ALPHAS) == counts[f"frame_num_{suffix}_all"]


@pytest.mark.parametrize("name", SETS)
def test_curves_of_every_class(name: str) -> None:
    ids = {label: category for category, label in ours(name).categories.items()}
    for label, curves in expected(name)["per_class"].items():
        parts = ours(name).of_class(ids[label])
        sums = sum((part.hota for part in parts), HotaSums.zero())
        tracks = track_curves([part.tracks for part in parts])
        own = sums.scores() | {"HOTA_TP": sums.tp, "HOTA_FN": sums.fn, "HOTA_FP": sums.fp, "AR_all": tracks.recall[0]}
        own |= {
            f"AP_{'' if area == 'all' else 'area_'}{area}": tracks.precision[n] for n, area in enumerate(AREA_RANGES)
        }
        for key, values in curves.items():
            np.testing.assert_allclose(own[key], values, rtol=0, atol=1e-9, err_msg=f"{label}: {key}")


@pytest.mark.parametrize("name", SETS)
def test_unrounded_means_over_classes(name: str) -> None:
    recorded = expected(name)["class_averaged_unrounded"]
    hota = [
        sum((part.hota for part in ours(name).of_class(category)), HotaSums.zero()).scores()
        for category in ours(name).categories
    ]
    for key in HOTA_KEYS:
        assert np.mean([scores[key] for scores in hota]) == pytest.approx(recorded[key], abs=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_shares_at_every_threshold(name: str) -> None:
    recorded = expected(name)["fsla_per_alpha"]
    videos = [video.verdicts for video in ours(name).videos]
    right = {s: sum(video.counts(kind)[0] for video in videos) for kind, s in SUFFIXES.items()}
    frames = {s: sum(video.counts(kind)[1] for video in videos) for kind, s in SUFFIXES.items()}
    for suffix in SUFFIXES.values():
        assert right[suffix].tolist() == recorded[f"FA{suffix}_count"]
        np.testing.assert_allclose(right[suffix] / frames[suffix], recorded[f"FA{suffix}"], atol=1e-9)
    np.testing.assert_allclose(sum(right.values()) / sum(frames.values()), recorded["FA"], atol=1e-9)
