"""`results.jsonl`: one JSON object a frame (`docs/formats.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from avis_stream.data import rle
from avis_stream.types import AVPair, Event, OnlineResult
from avis_stream.writers.base import Pending


def result_record(
    pair: AVPair,
    result: OnlineResult,
    classes: Sequence[str],
    *,
    latency_ms: float | None = None,
    dropped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One frame as a JSON object. Boxes and masks are null for identities that are silent.

    Args:
        pair: What went in.
        result: What came out.
        classes: Class names by `class_id`.
        latency_ms: Age of the frame when its result was there; None for recordings.
        dropped: Frames left out since the last record, by cause.
    """
    frame = pair.frame
    return {
        "source_id": frame.source_id,
        "frame_id": frame.frame_id,
        "segment": frame.segment,
        "pts": round(frame.pts_seconds, 6),
        "wall_utc": frame.wall_utc,
        "latency_ms": None if latency_ms is None else round(latency_ms, 2),
        "audio_valid": round(pair.audio_valid, 4),
        "width": int(frame.image.shape[2]),
        "height": int(frame.image.shape[1]),
        "tracks": [_track(result, row, classes) for row in range(len(result))],
        "events": [_event(event) for event in result.events],
        "dropped_since_last": dict(dropped or {}),
    }


def _track(result: OnlineResult, row: int, classes: Sequence[str]) -> dict[str, Any]:
    class_id = int(result.class_id[row])
    visible = bool(result.sounding[row]) and bool(result.mask[row].any())
    return {
        "id": int(result.track_id[row]),
        "label": classes[class_id],
        "category_id": class_id + 1,
        "score": round(float(result.score[row]), 4),
        "bbox": [round(float(value), 2) for value in result.box[row]] if visible else None,
        "sounding": bool(result.sounding[row]),
        "segmentation": rle.encode(result.mask[row]) if visible else None,
    }


def _event(event: Event) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": event.kind, "id": event.track_id}
    if event.source_id:
        record["source_id"] = event.source_id
    if event.detail:
        record["detail"] = event.detail
    if event.gap_seconds is not None:
        record["gap_seconds"] = round(event.gap_seconds, 3)
    return record


class JsonlWriter:
    """Writes one line a frame: to a file that appears when complete, or at once to an open stream such as stdout."""

    def __init__(self, target: str | Path | TextIO, classes: Sequence[str]) -> None:
        self._classes = classes
        self._pending = Pending(target) if isinstance(target, (str, Path)) else None
        self._own = self._pending.path.open("w", encoding="utf-8") if self._pending else None
        self._stream: TextIO = target if not isinstance(target, (str, Path)) else self._own  # type: ignore[assignment]

    def write(
        self,
        pair: AVPair,
        result: OnlineResult,
        *,
        latency_ms: float | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Writes one line; see `result_record` for the two extras of live sources."""
        record = result_record(pair, result, self._classes, latency_ms=latency_ms, dropped=dropped)
        self._stream.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        if self._own is None:
            self._stream.flush()  # someone is reading along

    def close(self) -> None:
        """Gives the file its name; a stream stays open, it belongs to its owner."""
        if self._own is not None and self._pending is not None:
            self._own.close()
            self._pending.commit()

    def abort(self) -> None:
        """Removes the file; what went to a stream has been read already."""
        if self._own is not None and self._pending is not None:
            self._own.close()
            self._pending.discard()
