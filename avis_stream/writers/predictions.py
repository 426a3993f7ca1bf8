"""`predictions.json`: what the official AVISeg evaluator reads, from a stream of results (contract, "Predictions")."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avis_stream.data import rle
from avis_stream.types import AVPair, OnlineResult
from avis_stream.writers.base import Pending


@dataclass(slots=True)
class _Identity:
    class_id: int
    scores: list[float] = field(default_factory=list)
    masks: dict[int, rle.Rle] = field(default_factory=dict)
    """By position of the frame in the stream."""


class PredictionsWriter:
    """Gathers one entry per identity that sounded; masks are held as run lengths, a few hundred bytes each."""

    def __init__(self, path: str | Path, video_id: int = 1) -> None:
        self._pending = Pending(path)
        self._video_id = video_id
        self._frames = 0
        self._identities: dict[int, _Identity] = {}

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame."""
        for row, track_id in enumerate(result.track_id.tolist()):
            identity = self._identities.setdefault(track_id, _Identity(class_id=0))
            identity.class_id = int(result.class_id[row])  # the last one counts
            if result.sounding[row]:
                identity.scores.append(float(result.score[row]))
                if result.mask[row].any():
                    identity.masks[self._frames] = rle.encode(result.mask[row])
        self._frames += 1

    def entries(self) -> list[dict[str, Any]]:
        """The predictions so far, in order of identity."""
        return [
            {
                "video_id": self._video_id,
                "score": round(sum(identity.scores) / len(identity.scores), 6),
                "category_id": identity.class_id + 1,
                "segmentations": [identity.masks.get(index) for index in range(self._frames)],
            }
            for _, identity in sorted(self._identities.items())
            if identity.scores
        ]

    def close(self) -> None:
        """Writes the file."""
        self._pending.path.write_text(json.dumps(self.entries(), allow_nan=False), encoding="utf-8")
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        self._pending.discard()
