"""`predictions.json`: what the official AVISeg evaluator reads, from a stream of results (`docs/formats.md`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avis_stream.online.predictions import StreamPredictions
from avis_stream.types import AVPair, OnlineResult
from avis_stream.writers.base import Pending


class PredictionsWriter:
    """Gathers one entry per identity that sounded, and writes them in the end."""

    def __init__(self, path: str | Path, video_id: int = 1) -> None:
        self._pending = Pending(path)
        self._video_id = video_id
        self._gathered = StreamPredictions()

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame."""
        self._gathered.add(result)

    def entries(self) -> list[dict[str, Any]]:
        """The predictions so far, in order of identity."""
        return self._gathered.entries(self._video_id)

    def close(self) -> None:
        """Writes the file."""
        self._pending.path.write_text(json.dumps(self.entries(), allow_nan=False), encoding="utf-8")
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        self._pending.discard()
