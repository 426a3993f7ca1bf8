"""HOTA, IDF1 and identity switches of the reference implementation, PyPI's `trackeval`, on random sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trackeval.metrics import CLEAR, HOTA, Identity, TrackMAP

from avis_stream.metrics.hota import HotaSums, hota_sums
from avis_stream.metrics.identity import IdentityCounts, identity_counts
from avis_stream.metrics.pairs import TrackTable, VideoPair

SILENT = {"PRINT_CONFIG": False}


def random_sequence(random: np.random.Generator) -> VideoPair:
    """Tracks that come and go, overlaps from none to full, a permutation that holds for a while."""
    length, objects, tracks = (int(random.integers(low, high)) for low, high in ((0, 40), (0, 7), (0, 9)))
    truth, predicted = random.random((length, objects)) < 0.7, random.random((length, tracks)) < 0.6
    iou = np.where(random.random((length, objects, tracks)) < 0.3, random.random((length, objects, tracks)), 0.0)
    for start in range(0, length, 10):
        for g, p in enumerate(random.permutation(max(objects, tracks))[:objects]):
            if p < tracks:
                iou[start : start + 10, g, p] = 0.3 + 0.7 * random.random(len(iou[start : start + 10]))
    iou *= truth[:, :, None] & predicted[:, None, :]
    return VideoPair("random", table(truth), table(predicted), iou)


def table(present: np.ndarray[Any, np.dtype[np.bool_]]) -> TrackTable:
    count = present.shape[1]
    nothing = np.zeros(count)
    return TrackTable(
        id=np.arange(count),
        category=np.ones(count, np.int64),
        score=nothing,
        frame_score=np.zeros(present.shape),
        crowd=nothing.astype(bool),
        present=present,
        area=present.astype(np.int64),
        mean_area=nothing,
        looks_empty=~present,
    )


def for_trackeval(pair: VideoPair) -> dict[str, Any]:
    """The same sequence as its metrics take it: ids without gaps, similarities of what is there."""
    known = [np.flatnonzero(side.present.any(axis=0)) for side in (pair.truth, pair.predicted)]
    present = [side.present[:, ids] for side, ids in zip((pair.truth, pair.predicted), known, strict=True)]
    iou = pair.iou[:, known[0]][:, :, known[1]]
    there = [[np.flatnonzero(row) for row in side] for side in present]
    return {
        "num_timesteps": len(iou),
        "num_gt_ids": len(known[0]),
        "num_tracker_ids": len(known[1]),
        "num_gt_dets": int(present[0].sum()),
        "num_tracker_dets": int(present[1].sum()),
        "gt_ids": there[0],
        "tracker_ids": there[1],
        "similarity_scores": [iou[t][np.ix_(g, p)] for t, (g, p) in enumerate(zip(*there, strict=True))],
    }


@pytest.fixture(scope="module")
def sequences() -> list[VideoPair]:
    random = np.random.default_rng(4)
    return [random_sequence(random) for _ in range(40)]


def test_hota_of_each_sequence_and_of_all(sequences: list[VideoPair]) -> None:
    reference = HOTA()
    expected = {str(n): reference.eval_sequence(for_trackeval(pair)) for n, pair in enumerate(sequences)}
    ours = {str(n): hota_sums(pair) for n, pair in enumerate(sequences)}
    expected["all"] = reference.combine_sequences(expected)
    ours["all"] = sum(ours.values(), HotaSums.zero())
    for name, sums in ours.items():
        for key, values in (sums.scores() | {"HOTA_TP": sums.tp, "HOTA_FN": sums.fn, "HOTA_FP": sums.fp}).items():
            np.testing.assert_allclose(values, expected[name][key], rtol=0, atol=1e-12, err_msg=f"{name}: {key}")


def test_hota_of_classes_counted_together(sequences: list[VideoPair]) -> None:
    """What `HOTA_pooled` adds up, sequences taken for classes."""
    reference = HOTA()
    expected = reference.combine_classes_det_averaged(
        {str(n): reference.eval_sequence(for_trackeval(pair)) for n, pair in enumerate(sequences)}
    )
    pooled = sum((hota_sums(pair) for pair in sequences), HotaSums.zero()).scores()
    np.testing.assert_allclose(pooled["HOTA"], expected["HOTA"], rtol=0, atol=1e-12)


def test_identity_of_each_sequence_and_of_all(sequences: list[VideoPair]) -> None:
    identity, clear = Identity(SILENT), CLEAR(SILENT)
    expected = {str(n): identity.eval_sequence(for_trackeval(pair)) for n, pair in enumerate(sequences)}
    switches = {str(n): clear.eval_sequence(for_trackeval(pair))["IDSW"] for n, pair in enumerate(sequences)}
    ours = {str(n): identity_counts(pair) for n, pair in enumerate(sequences)}
    expected["all"] = identity.combine_sequences(expected)
    switches["all"] = sum(switches.values())
    ours["all"] = sum(ours.values(), IdentityCounts())
    assert switches["all"] > 100
    for name, counts in ours.items():
        reference = expected[name]
        assert (counts.idtp, counts.idfn, counts.idfp) == tuple(reference[key] for key in ("IDTP", "IDFN", "IDFP"))
        assert (counts.idf1 or 0.0) == pytest.approx(reference["IDF1"], abs=1e-12)
        assert counts.switches == switches[name]


def test_track_map_of_random_tracks() -> None:
    """Tracks of one class in several videos, in the layout of trackeval's TrackMAP, with boxes as masks."""
    from pycocotools import mask as coco
    from tiny import SIZE, mask

    from avis_stream.data.annotations import Track, Video
    from avis_stream.metrics.pairs import pair_video
    from avis_stream.metrics.track_map import AREA_RANGES, match_tracks, track_curves

    ranges = {"s": (0, 9), "m": (9, 16), "l": (16, 1e10)}
    settings = {
        "USE_TIME_RANGES": False,
        "AREA_RANGES": list(ranges.values()),
        "AREA_RANGE_LABELS": [f"area_{name}" for name in ranges],
    }
    reference = TrackMAP(SILENT | settings)
    random = np.random.default_rng(0)
    expected, ours, first_id = {}, [], 1
    with pytest.MonkeyPatch.context() as patch:
        for name, limits in ranges.items():
            patch.setitem(AREA_RANGES, name, limits)
        for n in range(30):
            video = Video(n, str(n), SIZE, SIZE, length=4, file_names=())
            objects = [[tuple(random.integers(1, 6, 4)) for _ in range(4)] for _ in range(random.integers(0, 4))]
            answers = [[_near(random, box) for box in boxes] for boxes in objects if random.random() < 0.9]
            answers += [[_near(random, box) for box in boxes] for boxes in objects if random.random() < 0.5]
            crowd = [bool(random.random() < 0.2) for _ in objects]
            truth = [Track(n, 1, tuple(map(mask, boxes)), crowd=c) for boxes, c in zip(objects, crowd, strict=True)]
            predicted = [Track(n, 1, tuple(map(mask, boxes)), score=float(random.random())) for boxes in answers]
            pair = pair_video(video, truth, predicted, first_id)
            ours.append(match_tracks(pair, official=True))
            order = np.argsort([-track.score for track in predicted], kind="mergesort")
            sides = {"gt": truth, "dt": [predicted[i] for i in order]}
            data: dict[str, Any] = {"iou_type": "mask", "gt_track_iscrowd": crowd}
            for side, tracks in sides.items():
                rles = [{t: m for t, m in enumerate(track.segmentations) if m} for track in tracks]
                data[f"{side}_tracks"] = rles
                data[f"{side}_track_ids"] = list(range(first_id, first_id + len(tracks)))
                data[f"{side}_track_areas"] = [np.mean(coco.area(list(own.values()))) for own in rles]
            data["dt_track_scores"] = [track.score for track in sides["dt"]]
            expected[str(n)] = reference.eval_sequence(data)
            first_id += len(predicted)
        curves = track_curves(ours)
    combined = reference.combine_sequences(expected)
    assert 0.2 < curves.precision[0, 0] < 0.95
    for n, area in enumerate(AREA_RANGES):
        label = area if area == "all" else f"area_{area}"
        np.testing.assert_allclose(curves.precision[n], combined[f"AP_{label}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(curves.recall[n], combined[f"AR_{label}"], rtol=0, atol=1e-12)


def _near(random: np.random.Generator, box: tuple[int, ...]) -> tuple[int, int, int, int]:
    x, y, width, height = (max(0, int(value + random.choice([-1, 0, 0, 0, 0, 0, 1]))) for value in box)
    return x, y, max(1, width), max(1, height)
