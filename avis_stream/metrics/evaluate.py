"""All scores of a predictions file: in total, by class, by scenario, and frame by frame.

Three modes. `official` gives the numbers of the official AVISeg evaluator, oddities included, to compare with published
results. `fixed` is what the same scores were meant to be: an empty mask is no detection, classes without truth do not
count, a silent second is right when nothing is shown, and what lies on a crowd is not asked. `paper` reads FSLA as the
paper's text has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from avis_stream.checks import require
from avis_stream.data.annotations import Annotations, Predictions, read_annotations, read_predictions
from avis_stream.data.scenarios import SCENARIOS, scenario_of_video
from avis_stream.metrics.frame_ap import MaskMatches, average_precision, match_masks
from avis_stream.metrics.fsla import FrameVerdicts, Mode, judge_frames, paper_fsla, pooled_fsla
from avis_stream.metrics.hota import HOTA_KEYS, HotaSums, hota_sums
from avis_stream.metrics.identity import IdentityCounts, identity_counts
from avis_stream.metrics.pairs import VideoPair, pair_videos
from avis_stream.metrics.track_map import TrackMatches, average_over_classes, match_tracks, track_curves

Scores = dict[str, float | int | None]
"""Percent rounded to two decimals, or whole counts; None: not defined on this data (mAP in `official`: `UNDEFINED`)."""

UNDEFINED = -100.0
"""How the official evaluator writes an mAP that is not defined."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassInVideo:
    """What one class adds to the scores in one video."""

    hota: HotaSums
    identity: IdentityCounts
    tracks: TrackMatches
    masks: MaskMatches


@dataclass(frozen=True, slots=True, eq=False)
class ScoredVideo:
    """What one video adds to the scores."""

    verdicts: FrameVerdicts
    scenario: str | None
    classes: Mapping[int, ClassInVideo]
    """By category id; those with truth or predictions in this video."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A data set, scored."""

    mode: Mode
    categories: Mapping[int, str]
    videos: tuple[ScoredVideo, ...]

    def summary(self) -> Scores:
        """Scores of the whole data set; in official mode exactly the keys of the official evaluator."""
        counted = list(self.categories) if self.mode == "official" else self._with_truth(self.videos)
        return self._scores(self.videos, counted)

    def by_scenario(self) -> dict[str, Scores]:
        """Scores of the videos of each scenario that occurs; means are over classes with truth in all modes."""
        groups = {name: [video for video in self.videos if video.scenario == name] for name in SCENARIOS}
        return {name: self._scores(group, self._with_truth(group)) for name, group in groups.items() if group}

    def by_class(self) -> dict[str, Scores]:
        """Scores of each class with truth: FA over the frames in which it sounds, the others of its tracks alone."""
        table = {}
        for category in self._with_truth(self.videos):
            scores = self._scores(self.videos, [category])
            frames = [
                right
                for video in self.videos
                for right, sounding in zip(video.verdicts.right, video.verdicts.categories, strict=True)
                if category in sounding
            ]
            table[self.categories[category]] = {
                "FA": _percent(float(np.mean(frames)) if frames else None),
                **{key: value for key, value in scores.items() if not key.startswith("FA")},
                "frames": len(frames),
            }
        return table

    def of_class(self, category: int) -> list[ClassInVideo]:
        """What a class adds, over all videos in order."""
        return [video.classes[category] for video in self.videos if category in video.classes]

    def _with_truth(self, videos: Iterable[ScoredVideo]) -> list[int]:
        seen = {c for video in videos for c, own in video.classes.items() if (own.hota.tp + own.hota.fn).any()}
        return [category for category in self.categories if category in seen]

    def _scores(self, videos: Sequence[ScoredVideo], categories: Sequence[int]) -> Scores:
        parts = [[video.classes[c] for video in videos if c in video.classes] for c in categories]
        curves = [track_curves([part.tracks for part in own]) for own in parts]
        undefined = UNDEFINED if self.mode == "official" else None
        scores: Scores = {
            key: undefined if value is None else _percent(value) for key, value in average_over_classes(curves).items()
        }
        hota = [sum((part.hota for part in own), HotaSums.zero()).scores() for own in parts]
        for key in HOTA_KEYS:
            scores[key] = _percent(float(np.mean([values[key] for values in hota])) if hota else None)
        fsla = (paper_fsla if self.mode == "paper" else pooled_fsla)(video.verdicts for video in videos)
        scores |= {key: _percent(value) if isinstance(value, float) else value for key, value in fsla.summary().items()}
        if self.mode != "official":
            identity = sum((part.identity for own in parts for part in own), IdentityCounts())
            precisions = [average_precision([part.masks for part in own]) for own in parts]
            defined = [value for value in precisions if value is not None]
            scores["IDF1"] = _percent(identity.idf1)
            scores["IDSW"] = identity.switches
            pooled = sum((part.hota for own in parts for part in own), HotaSums.zero()).scores()["HOTA"]
            scores["HOTA_pooled"] = _percent(float(np.mean(pooled))) if parts else None
            scores["frame_AP50"] = _percent(float(np.mean(defined)) if defined else None)
        return scores


def evaluate(gt_json: str | Path, predictions_json: str | Path, mode: Mode = "official") -> Scores:
    """Scores a predictions file.

    Args:
        gt_json: Ground truth in AVISeg's form; polygons, both kinds of run lengths, null.
        predictions_json: As `avis-stream run` and the official code write them.
        mode: `official`, `fixed` or `paper`; `docs/metrics.md`.
    Returns:
        AP_all AP_s AP_m AP_l AR_all, HOTA DetA DetRe DetPr AssA AssRe AssPr LocA, FA FAn FAs FAm in percent, rounded
        to two decimals, and the frame counts FAn_count FAn_all FAs_count ... The other modes add IDF1 and HOTA_pooled
        (detections of all classes with truth counted together), IDSW and frame_AP50. None: there is nothing to
        measure it on.
    Raises:
        DataError: A file is missing or broken, or the two do not belong together.
        ConfigError: No such mode.
    Example:
        >>> evaluate("test.json", "predictions.json", mode="fixed")["FA"]
        47.11
    """
    require(mode in get_args(Mode), "mode", mode, "one of " + ", ".join(get_args(Mode)))
    truth = read_annotations(gt_json)
    return evaluation(truth, read_predictions(predictions_json, truth), mode).summary()


def evaluation(truth: Annotations, predictions: Predictions, mode: Mode) -> Evaluation:
    """Scores predictions in every detail."""
    videos = tuple(_scored(pair, truth.categories, mode) for pair in pair_videos(truth, predictions))
    return Evaluation(mode, truth.categories, videos)


def _scored(pair: VideoPair, categories: Mapping[int, str], mode: Mode) -> ScoredVideo:
    if mode != "official":
        pair = pair.without_empty_masks()
    counted = pair if mode == "official" else pair.without_crowds()
    classes = {}
    for category in np.unique(np.concatenate([pair.truth.category, pair.predicted.category])).tolist():
        own = counted.of_category(category)
        classes[category] = ClassInVideo(
            hota=hota_sums(own),
            identity=identity_counts(own),
            tracks=match_tracks(pair.of_category(category), official=mode == "official"),
            masks=match_masks(own),
        )
    seconds: Counter[str] = Counter()
    for category, present in zip(pair.truth.category.tolist(), pair.truth.present.T, strict=True):
        seconds[categories[category]] += int(present.sum())
    return ScoredVideo(judge_frames(counted, mode), scenario_of_video(seconds), classes)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
