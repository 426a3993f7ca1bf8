"""What a stream shows from frame to frame, most of which no step has seen: what asking again who sounds is worth.

python benchmarks/between_steps.py [SET] [--split val] [--videos 3] [--fps 5]

SET is made by `avis-stream synth SET --films ...`; without it the bundled demo is played. Films are played frame by
frame, however long that takes: figures are in the films' own time, a live run adds the age of its masks
(`benchmarks/live.py`). Sounds of made films begin at whole seconds, so each film is played several times, its first
step at 0, 0.4 and 0.8 s. What is true of a second is taken to be true of all its frames; a mask is right if it overlaps
by 0.3 with that of an object that sounds. A sound counts as found if a right mask comes within 3 s, and not later than
1 s after its end. Who moves is compared with where he is at the second before a frame and the one after it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from live import DEMO, LONGEST_AFTER, LONGEST_WAIT, late, outlines, same
from tqdm import tqdm

import avis_stream as avs
from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, read_annotations
from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
from avis_stream.sources.file import open_clip
from avis_stream.stream.two_rates import TwoRates
from avis_stream.types import NANOSECONDS, AVPair, OnlineResult

PHASES = (0.0, 0.4, 0.8)
"""Seconds of a film at which its first step is taken."""


class Stays(OnlineSegmenter):
    """Who sounds is who sounded in the last step."""

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        frame = pair.frame
        return replace(self.refresh(frame.image, state, frame.pts_ns), frame_id=frame.frame_id)


class NoCue(OnlineSegmenter):
    """Who sounds is asked again, but not who moves."""

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        return super().refresh_pair(replace(pair, frame=replace(pair.frame, previous=None)), state)


VARIANTS: dict[str, tuple[type[OnlineSegmenter], float]] = {
    "steps alone say who sounds": (Stays, 1.0),
    "the same, a step each half second": (Stays, 0.5),
    "asked again, without the motion cue": (NoCue, 1.0),
    "asked again, as shipped": (OnlineSegmenter, 1.0),
}


@dataclass
class Tally:
    """What was counted over films."""

    right: int = 0
    wrong: int = 0
    lacking: int = 0
    changes: int = 0
    seconds: float = 0.0
    begins: list[float] = field(default_factory=list)
    """Seconds from each sound's beginning to its first right mask; infinite: none in time."""
    ends: list[float] = field(default_factory=list)
    """Seconds from the end of each sound that was shown at its end until the object is not shown any more."""

    def row(self) -> dict[str, Any]:
        found = [wait for wait in self.begins if math.isfinite(wait)]
        return {
            "F": round(200 * self.right / max(1, 2 * self.right + self.wrong + self.lacking), 1),
            "precision": round(100 * self.right / max(1, self.right + self.wrong), 1),
            "recall": round(100 * self.right / max(1, self.right + self.lacking), 1),
            "sounds": len(self.begins),
            "found": len(found),
            "begin p50 s": late(found, 50),
            "begin p95 s": late(found),
            "end p50 s": late(self.ends, 50),
            "end p95 s": late(self.ends),
            "changes a minute": round(60 * self.changes / max(1e-9, self.seconds), 1),
        }

    def count(self, results: Sequence[OnlineResult], video: Video, tracks: Sequence[Track]) -> None:
        """Adds a film."""
        before: dict[int, bool] = {}
        shown: list[list[tuple[float, bool]]] = [[] for _ in tracks]
        for result in results:
            at = result.pts_seconds
            second = min(int(at), video.length - 1)
            own = [rle.encode(mask) for mask in result.mask[result.sounding] if mask.any()]
            taken: set[int] = set()
            for times, track in zip(shown, tracks, strict=True):
                sounds = track.segmentations[second] is not None
                wanted = outlines(video, track, min(at, second + 1), video.length) if sounds else []
                place = _place(own, taken, wanted)
                if place is not None:
                    taken.add(place)
                self.right += place is not None
                self.lacking += sounds and place is None
                times.append((at, place is not None or (not sounds and _still(own, track, second, video))))
            self.wrong += len(own) - len(taken)
            now = dict(zip(result.track_id.tolist(), result.sounding.tolist(), strict=True))
            self.changes += sum(before[key] != shown_now for key, shown_now in now.items() if key in before)
            before = now
        self.seconds += results[-1].pts_seconds - results[0].pts_seconds
        for times, track in zip(shown, tracks, strict=True):
            self._waits(times, track, video.length)

    def _waits(self, times: Sequence[tuple[float, bool]], track: Track, length: int) -> None:
        there = [segmentation is not None for segmentation in track.segmentations]
        for k in range(1, length):
            if there[k] and not there[k - 1]:
                ends = next((t for t in range(k, length) if not there[t]), length)
                limit = min(k + LONGEST_WAIT, ends + LONGEST_AFTER)
                self.begins.append(next((at - k for at, right in times if right and k <= at <= limit), math.inf))
            if there[k - 1] and not there[k]:
                last = [right for at, right in times if k - 1 <= at < k]
                if last and last[-1]:
                    again = next((t for t in range(k, length) if there[t]), length)
                    gone = next((at for at, right in times if k <= at and not right), math.inf)
                    self.ends.append(min(gone, again) - k)


def _place(own: Sequence[Any], taken: set[int], wanted: Sequence[Any]) -> int | None:
    """The first of some masks that nobody has and that is where one of some outlines is."""
    free = (n for n, mask in enumerate(own) if n not in taken and any(same(mask, outline) for outline in wanted))
    return next(free, None)


def _still(own: Sequence[Any], track: Track, second: int, video: Video) -> bool:
    """Whether an object is shown where it was when it last sounded."""
    last = next((s for s in reversed(track.segmentations[:second]) if s is not None), None)
    return last is not None and any(same(mask, rle.as_rle(last, video.height, video.width)) for mask in own)


def films_of(options: argparse.Namespace) -> Iterator[tuple[Path, Annotations, Video]]:
    """Films with what is true of them."""
    if options.set is None:
        truth = read_annotations(DEMO / "truth.json")
        yield DEMO / "demo.mp4", truth, truth.videos[0]
        return
    truth = read_annotations(options.set / f"{options.split}.json")
    for video in truth.videos[: options.videos]:
        yield options.set / options.split / "films" / f"{video.name}.mp4", truth, video


def played(segmenter: OnlineSegmenter, film: Path, fps: float, begin: float) -> Iterator[OnlineResult]:
    """Results for every frame from a second on, in order."""
    rates = TwoRates(segmenter)
    for pair in open_clip(film, fps=fps):
        answer = rates(pair) if pair.frame.pts_ns >= begin * NANOSECONDS else None
        if answer is not None:
            yield answer[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, nargs="?")
    parser.add_argument("--split", default="val")
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--variants", type=int, nargs="*", default=list(range(len(VARIANTS))), help="numbers from 0")
    options = parser.parse_args()
    model = avs.load("avism_mini", options.weights)
    tallies = {list(VARIANTS)[n]: Tally() for n in options.variants}
    for film, truth, video in tqdm(list(films_of(options))):
        for name, tally in tallies.items():
            kind, hop = VARIANTS[name]
            segmenter = kind(model, OnlineConfig.of(model.config, hop_seconds=hop))
            for begin in PHASES:
                results = list(played(segmenter, film, options.fps, begin))
                tally.count(results, video, truth.tracks[video.id])
    print(json.dumps({name: tally.row() for name, tally in tallies.items()}, indent=1))


if __name__ == "__main__":
    main()
