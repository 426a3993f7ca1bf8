"""What a stream turned out to hold, in the form that evaluators read; and whole data sets run as streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from avis_stream.data import rle
from avis_stream.data.annotations import Video
from avis_stream.data.dataset import DataSplit
from avis_stream.online.segmenter import OnlineSegmenter
from avis_stream.types import OnlineResult


@dataclass(slots=True)
class _Identity:
    class_id: int
    scores: list[float] = field(default_factory=list)
    masks: dict[int, rle.Rle] = field(default_factory=dict)
    """By position of the frame in the stream."""


class StreamPredictions:
    """Gathers one entry per identity that sounded; masks are held as run lengths, a few hundred bytes each."""

    def __init__(self) -> None:
        self._frames = 0
        self._identities: dict[int, _Identity] = {}

    def add(self, result: OnlineResult) -> None:
        """Takes the next frame of the stream."""
        for row, track_id in enumerate(result.track_id.tolist()):
            identity = self._identities.setdefault(track_id, _Identity(class_id=0))
            identity.class_id = int(result.class_id[row])  # the last one counts
            if result.sounding[row]:
                identity.scores.append(float(result.score[row]))
                if result.mask[row].any():
                    identity.masks[self._frames] = rle.encode(result.mask[row])
        self._frames += 1

    def entries(self, video_id: int) -> list[dict[str, Any]]:
        """The predictions so far, in order of identity."""
        return [
            {
                "video_id": video_id,
                "score": round(sum(identity.scores) / len(identity.scores), 6),
                "category_id": identity.class_id + 1,
                "segmentations": [identity.masks.get(index) for index in range(self._frames)],
            }
            for _, identity in sorted(self._identities.items())
            if identity.scores
        ]


def run_video(online: OnlineSegmenter, split: DataSplit, video: Video) -> Iterator[OnlineResult]:
    """The results of a video of a data set as a stream: frame t comes with the second of sound that the set gives it.

    Raises:
        DataError: A file is missing or broken.
    """
    state = online.init_state((video.height, video.width))
    wants_previous = online.model.wants_previous
    for t in range(video.length):
        previous = split.previous(video, t) if wants_previous else None
        (sound,), (valid,) = split.sound(video, [t])
        result, state = online.step(split.image(video, t), sound[:valid], state, previous=previous)
        if result.frame_id >= 0:
            yield result
    yield from online.finish(state)


def predict_streams(online: OnlineSegmenter, split: DataSplit) -> Iterator[list[dict[str, Any]]]:
    """Entries of a predictions file, one list a video, each run as a stream."""
    names = list(split.annotations.categories.items())
    classes = online.model.classes
    category = {classes.index(name): number for number, name in names if name in classes}
    for video in split.annotations.videos:
        gathered = StreamPredictions()
        for result in run_video(online, split, video):
            gathered.add(result)
        # A model may know classes that the data does not; the truth cannot tell whether those are right.
        known = [entry for entry in gathered.entries(video.id) if entry["category_id"] - 1 in category]
        yield [{**entry, "category_id": category[entry["category_id"] - 1]} for entry in known]
