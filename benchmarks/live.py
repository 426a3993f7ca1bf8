"""A live model on this machine: how often masks come, how old they are, and how long after a sound the first one comes.

python benchmarks/live.py [--weights random] [--seconds 60] [--hop 1.0] [--video SOURCE] [--audio SOURCE]

Without --video the bundled demo clip is played at its own pace, again and again, and its truth says when a sound began:
what is measured then is the time from that instant until a mask with an overlap of 0.3 with the true one was there. The
truth is known at whole seconds; who moves is compared with where he is at the second before a picture and the one after
it. A sound is missed if its mask takes more than 3 s, or until more than 1 s after its end: it is then of no use, or of
the next sound. One percentile counts a miss as infinitely late (`missed` in its place means that it falls on one), as a
user sees it; others are of the sounds that got a mask, and say what the way from capture to mask takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

import avis_stream as avs
from avis_stream.data import rle
from avis_stream.data.annotations import Track, Video, read_annotations
from avis_stream.online import OnlineConfig
from avis_stream.sources.open import native_rate
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import LiveResult

LONGEST_WAIT, LONGEST_AFTER = 3.0, 1.0
"""Seconds from a sound's beginning, and from its end, after which a mask of it comes too late."""
LEAST_OVERLAP = 0.3
DEMO = Path(avs.__file__).parent / "assets" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avism_mini")
    parser.add_argument("--weights")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--video")
    parser.add_argument("--audio", default="source")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--hop", type=float, default=1.0, metavar="SECONDS", help="from one step to the next")
    options = parser.parse_args()
    model = avs.load(options.model, options.weights)
    config, online = SessionConfig(num_threads=options.threads), OnlineConfig.of(model.config, hop_seconds=options.hop)
    waits: list[float] = []
    seconds, reports = 0.0, []
    while seconds < options.seconds:
        video = options.video or str(DEMO / "demo.mp4")
        live = None if options.video else True
        with Session(model, video, options.audio, config=config, online=online, realtime=live) as session:
            found = []
            while not session.over and seconds < options.seconds:
                result = session.next(0.5)
                if result is not None:
                    found.append(result)
                if session.stats().seconds + seconds >= options.seconds:
                    break
            whole, stats = session.over, session.stats()
        seconds += stats.seconds
        reports.append(stats)
        if options.video is None:
            waits += delays(found, math.inf if whole else stats.seconds)
    last = max(reports, key=lambda stats: stats.seconds)
    results = sum(s.steps + s.refreshes for s in reports)
    record: dict[str, Any] = {
        "model": options.model, "weights": options.weights or "bundled", "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "torch": torch.__version__, "seconds": round(seconds, 1),
        "masks_hz": round(results / seconds, 2), "steps_hz": round(sum(s.steps for s in reports) / seconds, 2),
        "latency_ms": repr(last.latency), "stages": {name: repr(s) for name, s in last.stages.items()},
        "dropped": dict(last.dropped), "frames_in": sum(s.frames_in for s in reports),
    }  # fmt: skip
    if options.video is None:
        record |= onsets(waits)
    print(json.dumps(record, indent=1))


def onsets(waits: list[float]) -> dict[str, Any]:
    """What the record says of them."""
    found = [wait for wait in waits if math.isfinite(wait)]
    return {
        "onsets_total": len(waits), "onsets_missed": len(waits) - len(found), "onset_to_mask_p95_s": late(waits),
        "onset_to_mask_p50_s_of_found": late(found, 50), "onset_to_mask_p95_s_of_found": late(found),
    }  # fmt: skip


def late(waits: list[float], percent: float = 95) -> float | str | None:
    """A percentile of them, upwards; None if there is none."""
    value = float(np.percentile(waits, percent, method="higher")) if waits else None
    return value if value is None else "missed" if math.isinf(value) else round(value, 2)


def delays(results: Sequence[LiveResult], played: float) -> list[float]:
    """Seconds from the beginning of each sound to the first mask of what makes it; infinite: there was none in time.

    Args:
        results: Of one playing of the demo clip, live, in order.
        played: Seconds of it that there was time for; a sound that might still have got its mask later is left out.
    """
    truth = read_annotations(DEMO / "truth.json")
    rate = float(native_rate(DEMO / "demo.mp4"))
    begin = results[0].pts_seconds - results[0].frame_id / rate if results else 0.0
    found = []
    for track in truth.tracks[truth.videos[0].id]:
        for k, segmentation in enumerate(track.segmentations):
            if segmentation is None or k == 0 or track.segmentations[k - 1] is not None:
                continue
            ends = next((t for t, s in enumerate(track.segmentations) if t > k and s is None), truth.videos[0].length)
            limit = min(k + LONGEST_WAIT, ends + LONGEST_AFTER)
            if limit > played - begin:
                continue
            shown = [(r, r.pts_seconds - begin, r.pts_seconds - begin + (r.latency_ms or 0) / 1e3) for r in results]
            in_time = (
                there
                for r, at, there in shown
                if at >= k and there <= limit and shows(r, outlines(truth.videos[0], track, at, ends))
            )
            found.append(next(in_time, math.inf) - k)
    return found


def outlines(video: Video, track: Track, at: float, ends: int) -> list[Any]:
    """Where an object is at the second before an instant and the one after it, as far as it sounds then.

    After the end of its sound (`ends`) that is where it was last.
    """
    seconds = {min(second, ends - 1) for second in (math.floor(at), math.ceil(at))}
    known = (track.segmentations[second] for second in sorted(seconds))
    return [rle.as_rle(segmentation, video.height, video.width) for segmentation in known if segmentation is not None]


def shows(result: LiveResult, wanted: Sequence[Any]) -> bool:
    """Whether something that sounds is shown where one of some outlines is."""
    own = [rle.encode(mask) for mask in result.mask[result.sounding] if mask.any()]
    return any(same(mask, outline) for mask in own for outline in wanted)


def same(a: Any, b: Any) -> bool:
    """Whether two outlines overlap by 0.3."""
    return list(a["size"]) == list(b["size"]) and bool(coco.iou([a], [b], [0])[0, 0] >= LEAST_OVERLAP)


if __name__ == "__main__":
    main()
