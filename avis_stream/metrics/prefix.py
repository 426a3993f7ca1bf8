"""The prefix curve: what online answers lack against offline ones of the same videos, by the videos' length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from avis_stream.checks import require
from avis_stream.data.annotations import Annotations, Predictions
from avis_stream.metrics.evaluate import UNDEFINED, evaluation
from avis_stream.metrics.fsla import Mode

CURVES = ("FA", "FAn", "HOTA", "AP_all")


@dataclass(frozen=True, slots=True)
class LengthGap:
    """Videos of one range of lengths."""

    least_frames: int
    """Of the range; it ends where the next begins, and the last has no end."""
    videos: int
    minus_offline: dict[str, float | None]
    """Online minus offline in points, by score (`CURVES`); None: not defined for one of both."""


def prefix_curve(
    truth: Annotations, offline: Predictions, online: Predictions, edges: Sequence[int], mode: Mode = "fixed"
) -> tuple[LengthGap, ...]:
    """Scores online minus offline, for each range of lengths that has a video.

    Args:
        truth: Of all videos.
        offline: Answers of the model on whole videos.
        online: Its answers on the same videos as streams.
        edges: Ascending least frames of each range, from 1 on so that no video is left out.
        mode: As for `evaluate`.
    Raises:
        ConfigError: `edges` do not ascend from 1.
    """
    ascending = bool(edges) and edges[0] == 1 and all(a < b for a, b in pairwise(edges))
    require(ascending, "edges", list(edges), "frames that ascend from 1")
    found = []
    for least, end in pairwise([*edges, float("inf")]):
        videos = tuple(video for video in truth.videos if least <= video.length < end)
        if not videos:
            continue
        part = replace(truth, videos=videos, tracks={video.id: truth.tracks[video.id] for video in videos}, silent={})
        base, own = (
            evaluation(part, {v.id: answers[v.id] for v in videos if v.id in answers}, mode).summary()
            for answers in (offline, online)
        )
        found.append(LengthGap(int(least), len(videos), {key: _difference(own[key], base[key]) for key in CURVES}))
    return tuple(found)


def _difference(own: float | None, base: float | None) -> float | None:
    if own is None or base is None or UNDEFINED in (own, base):
        return None
    return round(own - base, 2)
