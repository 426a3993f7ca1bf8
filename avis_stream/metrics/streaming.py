"""Streaming accuracy: what had been delivered at each instant of wall time, against the truth of that instant.

Latency, drops and accuracy become one number: the offline scores (sFSLA, sHOTA, ...) of the picture that a viewer of
the stream really sees. Source: "Towards Streaming Perception" (Li et al., ECCV 2020), carried over to masks with sound.

frames taken     |0        |1        |2        |3          one each 1 / fps
being computed    [--- 0 ---------]  [-- 2 --]  [-- 3 --   the newest when the last is done; 1 is dropped
on screen                         |0          |2
judged at         .    .    .    .    .    .    .    .     a few instants a frame, each against its own frame's truth
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from avis_stream.checks import require
from avis_stream.data.annotations import Annotations, Predictions, Track
from avis_stream.errors import DataError

INSTANTS = 4
"""Instants a frame at which the screen is judged."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A frame's result and when it was there."""

    frame: int
    seconds: float


def deliveries(frames: int, fps: float, latencies: Iterable[float]) -> list[Delivery]:
    """When the results of a stream arrive, if each step takes the newest frame as soon as the last step is done.

    Args:
        frames: Of the stream; frame k is taken at k / fps seconds.
        fps: Rate of the stream.
        latencies: Seconds that steps take, in order; begun again when they end.
    """
    found: list[Delivery] = []
    free, frame, steps = 0.0, 0, cycle(latencies)
    while frame < frames:
        begins = max(free, frame / fps)
        free = begins + next(steps)
        found.append(Delivery(frame, free))
        # The newest that has been taken by then; at least the next, for which the step waits.
        frame = max(frame + 1, min(frames - 1, int(free * fps + 1e-9)))
    return found


def on_screen(frames: int, fps: float, delivered: Sequence[Delivery], instants: int = INSTANTS) -> list[int | None]:
    """Whose result is the newest at each instant, [frames * instants]; None: there is none yet.

    Instants lie in the middle of equal parts of each frame's interval.
    """
    shown: list[int | None] = []
    newest, waiting = None, list(delivered)
    for n in range(frames * instants):
        now = (n + 0.5) / (instants * fps)
        while waiting and waiting[0].seconds <= now:
            newest = waiting.pop(0).frame
        shown.append(newest)
    return shown


def as_live(
    truth: Annotations, predictions: Predictions, fps: float, latencies: Sequence[float], instants: int = INSTANTS
) -> tuple[Annotations, Predictions]:
    """A data set and its answers as a viewer lived through them, to be scored like any other.

    Every frame of the truth becomes `instants` frames; an answer is what was on the screen at each of them.

    Args:
        truth: Of the frames.
        predictions: For the frames, each made without a look at later ones.
        fps: Of the frames.
        latencies: Seconds from a frame to its result, as recorded; a stream of its own for each video.
        instants: Instants a frame.
    Raises:
        ConfigError: No latencies, or negative ones.
    """
    usable = bool(latencies) and min(latencies) >= 0
    require(usable, "latencies", list(latencies)[:3], "seconds, at least one, none negative")
    lengths = {video.id: video.length for video in truth.videos}
    stretched = replace(
        truth,
        videos=tuple(replace(video, length=video.length * instants, file_names=()) for video in truth.videos),
        tracks={key: tuple(_slowed(track, instants) for track in tracks) for key, tracks in truth.tracks.items()},
        silent={},
    )
    seen = {}
    for key, tracks in predictions.items():
        frames = lengths[key]
        shown = on_screen(frames, fps, deliveries(frames, fps, latencies), instants)
        seen[key] = tuple(_on_screen(track, shown) for track in tracks)
    return stretched, seen


def read_latencies(path: Path) -> list[float]:
    """Latencies in seconds from live results, one JSON object a line with `latency_ms` (`docs/formats.md`).

    Raises:
        DataError: Not such a file, without a line, or of a recording that was read on demand: that has no latency.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        told = [json.loads(line)["latency_ms"] for line in lines if line.strip()]
        found = [float(latency) / 1000 for latency in told if latency is not None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} must hold one JSON object a line with latency_ms, as `avis-stream live --json` writes; {error!r}"
        ) from error
    if None in told:
        raise DataError(
            f"{path} must tell the latency of its results, latency_ms is null in it: a recording that is read on "
            "demand has none; record it with `avis-stream live --realtime`, or from a live source"
        )
    if not found:
        raise DataError(f"{path}: no result in it, so no latency; record some with `avis-stream live --json {path}`")
    return found


def _slowed(track: Track, instants: int) -> Track:
    """A track of the truth, each frame as many times."""
    return replace(
        track,
        segmentations=_repeated(track.segmentations, instants),
        areas=None if track.areas is None else _repeated(track.areas, instants),
        visible=None,
    )


def _on_screen(track: Track, shown: Sequence[int | None]) -> Track:
    """A predicted track, at each instant the frame of it that was `shown`."""
    scores = track.frame_scores
    return replace(
        track,
        segmentations=tuple(None if frame is None else track.segmentations[frame] for frame in shown),
        frame_scores=None if scores is None else tuple(0.0 if frame is None else scores[frame] for frame in shown),
    )


def _repeated(values: Sequence[T], times: int) -> tuple[T, ...]:
    return tuple(value for value in values for _ in range(times))
