"""`summary.json`: what was processed, how long each stage took, how much memory, and how good it was."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avis_stream.types import AVPair, OnlineResult
from avis_stream.writers.base import Pending


class SummaryWriter:
    """Counts while the results pass; the run adds what only it can know (`add`)."""

    def __init__(self, path: str | Path, classes: Sequence[str], *, fps: float) -> None:
        self._pending = Pending(path)
        self._classes = classes
        self._interval = 1.0 / float(fps)
        self._frames = 0
        self._seconds = 0.0
        self._size: tuple[int, int] | None = None
        self._sounding_frames = 0
        self._heard: dict[int, tuple[str, int]] = {}  # identity -> class when last heard of, frames in which it sounded
        self._events: Counter[str] = Counter()
        self._facts: dict[str, Any] = {}

    def add(self, **facts: Any) -> None:
        """Adds facts of the run: `stages={"localize": 3.2}`, `metrics={...}`, `broken=clip.broken`, `model=...`."""
        self._facts.update(facts)

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Counts one frame."""
        self._frames += 1
        self._seconds = pair.frame.pts_seconds + self._interval
        self._size = (int(pair.frame.image.shape[2]), int(pair.frame.image.shape[1]))
        self._sounding_frames += bool(result.sounding.any())
        self._events.update(event.kind for event in result.events)
        for track_id, class_id, sounds in zip(
            result.track_id.tolist(), result.class_id.tolist(), result.sounding.tolist(), strict=True
        ):
            _, frames = self._heard.get(track_id, ("", 0))
            self._heard[track_id] = (self._classes[class_id], frames + bool(sounds))

    def document(self) -> Mapping[str, Any]:
        """The summary so far."""
        tracks = [
            {"id": track_id, "label": label, "sounding_seconds": round(frames * self._interval, 3)}
            for track_id, (label, frames) in sorted(self._heard.items())
            if frames
        ]
        return {
            "frames": self._frames,
            "seconds": round(self._seconds, 3),
            "fps": round(1.0 / self._interval, 6),
            "width": self._size[0] if self._size else None,
            "height": self._size[1] if self._size else None,
            "frames_with_sounding_objects": self._sounding_frames,
            "tracks": tracks,
            "events": dict(sorted(self._events.items())),
            "peak_memory_bytes": peak_memory_bytes(),
            **self._facts,
        }

    def close(self) -> None:
        """Writes the file."""
        text = json.dumps(_plain(self.document()), indent=2, allow_nan=False)
        self._pending.path.write_text(text + "\n", encoding="utf-8")
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        self._pending.discard()


def _plain(value: Any) -> Any:
    """JSON has no NaN: a metric without a value (nothing to measure) becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_bytes() -> int | None:
    """The most memory this process ever had resident; None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux kilobytes
