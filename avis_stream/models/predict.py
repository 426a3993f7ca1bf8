"""A model's answers for a data set: every video as the reader hands it out, in the form that evaluators read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from avis_stream.data.annotations import Video
from avis_stream.data.dataset import DataSplit
from avis_stream.memory import available_memory_bytes
from avis_stream.models.avism import AVISM
from avis_stream.models.clip import ClipResult
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip
from avis_stream.types import SAMPLE_RATE

_SECONDS_AT_ONCE = 8
"""Of sound, listened to together."""


def predict(model: AVISM, split: DataSplit, videos: Iterable[Video] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Entries of a predictions file, one list a video.

    Args:
        model: Prepared for inference.
        split: The data.
        videos: Those of it to look at; None: all.
    """
    names = list(split.annotations.categories.items())
    category = {model.classes.index(name): number for number, name in names if name in model.classes}
    for video in split.annotations.videos if videos is None else videos:
        entries = predict_video(model, split, video).to_aviseg(video.id)
        # A model may know classes that the data does not; the truth cannot tell whether those are right.
        known = [entry for entry in entries if entry["category_id"] - 1 in category]
        yield [{**entry, "category_id": category[entry["category_id"] - 1]} for entry in known]


def predict_video(model: AVISM, split: DataSplit, video: Video, seconds: Tensor | None = None) -> ClipResult:
    """Segments one video of a split as a whole.

    Args:
        model: Prepared for inference.
        split: The data.
        video: Of it.
        seconds: float32 [T, 16000], another sound than the video's own; None: its own.
    """
    frames = list(range(video.length))
    features = split.features(video) if model.audio_encoder is None else None
    if features is None or seconds is not None:
        whole = torch.full((len(frames),), SAMPLE_RATE)
        heard, valid = split.sound(video, frames) if seconds is None else (seconds, whole)
        parts = zip(heard.split(_SECONDS_AT_ONCE), valid.split(_SECONDS_AT_ONCE), strict=True)
        features = torch.cat([model.hear(part, there).cpu() for part, there in parts])

    def again() -> Iterator[ClipFrame]:
        for t in frames:
            previous = split.previous(video, t) if model.wants_previous else None
            yield ClipFrame(split.image(video, t), features[t], previous)

    budget = available_memory_bytes() // 2
    with MaskStore(budget, recompute=lambda start: mask_features_again(model, again, start)) as store:
        return segment_clip(model, again, store=store)
