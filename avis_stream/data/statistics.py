"""What is in a data set: lengths, sounding objects per second, classes and which sound together, scenarios."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.data.annotations import Annotations, Track
from avis_stream.data.scenarios import scenario_of_video


@dataclass(frozen=True, slots=True, eq=False)
class SplitStatistics:
    """Counts over one split."""

    classes: tuple[str, ...]
    """K class names, in order of the file."""
    lengths: NDArray[np.int64]
    """Frames of each video."""
    sounding: NDArray[np.int64]
    """Objects that sound, for every frame of all videos one after the other."""
    scenarios: dict[str, int]
    """Videos by scenario; those without one are left out."""
    videos_of_class: NDArray[np.int64]
    """[K], videos in which it sounds."""
    objects_of_class: NDArray[np.int64]
    """[K]."""
    masks_of_class: NDArray[np.int64]
    """[K], object seconds."""
    together: NDArray[np.int64]
    """[K, K], seconds in which both sound; on the diagonal, in which it sounds at all."""

    def shares(self) -> dict[str, float]:
        """Share of frames in which nothing, one or several objects sound."""
        frames = max(1, len(self.sounding))
        counts = {"silent": self.sounding == 0, "single": self.sounding == 1, "multi": self.sounding > 1}
        return {name: float(which.sum()) / frames for name, which in counts.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "videos": len(self.lengths),
            "frames": int(self.lengths.sum()),
            "objects": int(self.objects_of_class.sum()),
            "masks": int(self.masks_of_class.sum()),
            "shares": {name: round(share, 4) for name, share in self.shares().items()},
            "sounding_at_once": {str(n): int(count) for n, count in enumerate(np.bincount(self.sounding))},
            "lengths": self.lengths.tolist(),
            "scenarios": self.scenarios,
            "classes": {
                name: {
                    "videos": int(self.videos_of_class[k]),
                    "objects": int(self.objects_of_class[k]),
                    "masks": int(self.masks_of_class[k]),
                    "together": {
                        other: int(count)
                        for other, count in zip(self.classes, self.together[k], strict=True)
                        if count and other != name
                    },
                }
                for k, name in enumerate(self.classes)
            },
        }


def split_statistics(annotations: Annotations) -> SplitStatistics:
    """Counts everything in one pass over the annotations; masks are not decoded."""
    index = {category: k for k, category in enumerate(annotations.categories)}
    classes = tuple(annotations.categories.values())
    count = len(classes)
    videos, objects, masks = (np.zeros(count, np.int64) for _ in range(3))
    together = np.zeros((count, count), np.int64)
    sounding: list[NDArray[np.int64]] = []
    scenarios: Counter[str] = Counter()
    for video in annotations.videos:
        tracks = annotations.tracks[video.id]
        seconds = _per_class(tracks, index, video.length)  # [T, K] objects
        sounding.append(seconds.sum(axis=1))
        heard = (seconds > 0).astype(np.int64)
        videos += heard.any(axis=0)
        masks += seconds.sum(axis=0)
        together += heard.T @ heard
        for track in tracks:
            objects[index[track.category_id]] += 1
        scenario = scenario_of_video(dict(zip(classes, seconds.sum(axis=0).tolist(), strict=True)))
        if scenario is not None:
            scenarios[scenario] += 1
    return SplitStatistics(
        classes=classes,
        lengths=np.array([video.length for video in annotations.videos], np.int64),
        sounding=np.concatenate(sounding),
        scenarios=dict(scenarios),
        videos_of_class=videos,
        objects_of_class=objects,
        masks_of_class=masks,
        together=together,
    )


def _per_class(tracks: Sequence[Track], index: dict[int, int], length: int) -> NDArray[np.int64]:
    counts = np.zeros((length, len(index)), np.int64)
    for track in tracks:
        counts[:, index[track.category_id]] += [mask is not None for mask in track.segmentations]
    return counts
