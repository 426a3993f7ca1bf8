#!/usr/bin/env python3
"""What the online path of `avism_mini` reaches, against offline and in seconds.

    avis-stream synth SETS/streams --split test --videos 4 --streams --assets ASSETS --classes disjoint
    python benchmarks/online_results.py --sets SETS [--clips CLIPS] [--looks FOLDER] [--split test] [--weights FILE]
        [--wait 1 3] [--json FILE]

Each stream is localized once, or was before (`online_looks.py`, `--looks`):

- scores as shown, online with its gates, with its gates and results that wait some steps (`refine_delay`), and as near
  to offline as can be, and what each lacks against offline, also by length of the video;
- how long after a sound begins or ends its mask comes or goes: the second that is heard, the steps that it takes, and
  the time of a step, measured here or given with `--latency`.

`--clips` is a set of short videos; the bars are on videos of 60 s. Who comes back is asked by `online_returns.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from online_looks import Entries, looks_of, with_table
from torch import Tensor

from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, parse_predictions
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.metrics import evaluation, prefix_curve
from avis_stream.metrics.prefix import CURVES
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.weights import load

HEARD_SECONDS = 1.0
"""A sound that begins with a second is known when that second has been heard."""
LONGEST_WAIT = 10
"""Steps after which a mask no longer counts as that of the sound that began or ended."""
LENGTHS = (1, 37, 120, 300, 600)
"""Least frames of each part of the prefix curve; up to the ring's the tracker equals offline."""
AT_ONCE = "gates on"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, help="folder that holds the set `streams`")
    parser.add_argument("--clips", type=Path, help="a set of short videos")
    parser.add_argument("--looks", type=Path, metavar="FOLDER", help="what the localizer made is kept there")
    parser.add_argument("--videos", type=int, help="the first so many of each set (default: all)")
    parser.add_argument("--latency", type=float, nargs="+", metavar="SECONDS", help="of steps (default: measured here)")
    parser.add_argument("--wait", type=int, nargs="*", default=[1, 3], metavar="STEPS", help="rows with `refine_delay`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", help='default: those that come with the package; "random": for a dry run')
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.sets is None and options.clips is None:
        parser.error("one of --sets and --clips is needed")
    model = load("avism_mini", options.weights)
    report: dict[str, Any] = {}
    for name, folder in (("streams", options.sets and options.sets / "streams"), ("clips", options.clips)):
        if folder is not None:
            split = open_split(folder, options.split, model.classes)
            videos = split.annotations.videos[: options.videos]
            report[name] = results(model, split, videos, options.latency, options.looks, options.wait)
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def results(
    model: AVISM,
    split: DataSplit,
    videos: Sequence[Video],
    latencies: Sequence[float] | None = None,
    looks: Path | None = None,
    wait: Sequence[int] = (),
) -> dict[str, Any]:
    """All figures of some videos.

    Args:
        model: Prepared for inference.
        split: That holds the videos.
        videos: Of it.
        latencies: Seconds that a step takes; None: measured on the first video.
        looks: Folder in which looks are kept; None: nowhere.
        wait: Steps that results wait, a row of scores for each.
    """
    truth = of_videos(split.annotations, videos)
    report: dict[str, Any] = {"videos": len(videos), "minutes": round(sum(v.length for v in videos) / 60, 1)}
    configs = shown_by(model, wait)
    shown: dict[str, Entries] = {"offline": [], **{name: [] for name in configs}}
    waits: dict[str, list[int]] = {"onset": [], "offset": []}
    for video in videos:
        seen = looks_of(model, split, video, looks)
        shown["offline"] += next(predict(model, split, [video]))
        for name, config in configs.items():
            entries = with_table(model, video, seen, config)
            shown[name] += entries
            if name == AT_ONCE:
                own = delays(video, truth.tracks[video.id], entries)
                waits = {key: waits[key] + own[key] for key in waits}
    report["as shown"] = against_offline({name: scores(truth, entries) for name, entries in shown.items()})
    found = {name: parse_predictions(Path("rows"), entries, truth) for name, entries in shown.items()}
    report["minus offline by length"] = {
        name: [asdict(own) for own in prefix_curve(truth, found["offline"], found[name], LENGTHS)] for name in configs
    }
    taken = list(latencies or step_seconds(model, split, videos[0]))
    report["step seconds"] = {"p50": round(float(np.quantile(taken, 0.5)), 3), "measured here": latencies is None}
    report["delays"] = {key: wait_seconds(values, taken) for key, values in waits.items()}
    return report


def shown_by(model: AVISM, wait: Sequence[int]) -> dict[str, OnlineConfig]:
    """Settings of the rows of scores, by name."""
    own = OnlineConfig.of(model.config)
    later = {f"{AT_ONCE}, {steps} steps later": replace(own, refine_delay=steps) for steps in wait}
    return {AT_ONCE: own, **later, "parity": OnlineConfig.parity()}


def of_videos(truth: Annotations, videos: Sequence[Video]) -> Annotations:
    """Some videos, what sounds in them."""
    return replace(truth, videos=tuple(videos), tracks={v.id: truth.tracks[v.id] for v in videos}, silent={})


def scores(truth: Annotations, entries: Entries) -> dict[str, Any]:
    summary = evaluation(truth, parse_predictions(Path("rows"), entries, truth), "fixed").summary()
    return {key: summary[key] for key in ("FA", "FAn", "FAs", "FAm", "HOTA", "AssA", "AP_all", "IDF1", "IDSW")}


def against_offline(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each row of scores, and of those online what they have more than offline; None where one of both has none."""
    base, found = rows["offline"], dict(rows)
    for name, own in rows.items():
        if name != "offline":
            pairs = {key: (own[key], base[key]) for key in CURVES}
            found[f"{name} minus offline"] = {
                key: None if None in pair else round(pair[0] - pair[1], 2) for key, pair in pairs.items()
            }
    return found


def delays(video: Video, truth: Sequence[Track], entries: Entries) -> dict[str, list[int]]:
    """Frames from the beginning of a sound to its first mask, and from its end to the last one's going; -1: never."""
    shown = [{t for t, m in enumerate(e["segmentations"]) if m is not None} for e in entries]
    found: dict[str, list[int]] = {"onset": [], "offset": []}
    for track in truth:
        masks, visible = track.rles(video.height, video.width), _visible(video, track)
        for t in range(1, len(masks)):
            if masks[t] is not None and masks[t - 1] is None:
                found["onset"].append(_until(masks, entries, shown, t, covered=True))
            elif masks[t] is None and masks[t - 1] is not None and visible[t] is not None:
                found["offset"].append(_until(visible, entries, shown, t, covered=False))
    return found


def _visible(video: Video, track: Track) -> list[rle.Rle | None]:
    """Masks of silent seconds too; none in sets without them."""
    if track.visible is None:
        return [None] * video.length
    return replace(track, segmentations=track.visible).rles(video.height, video.width)


def _until(masks: Sequence[Any], entries: Entries, shown: list[set[int]], start: int, *, covered: bool) -> int:
    for t in range(start, min(start + LONGEST_WAIT, len(masks))):
        if masks[t] is None:
            break
        wanted = rle.decode(masks[t])
        overlaps = [_overlap(rle.decode(e["segmentations"][t]), wanted) for e, s in zip(entries, shown, strict=True)
                    if t in s]  # fmt: skip
        if (max(overlaps, default=0.0) >= 0.3) == covered:
            return t - start
    return -1


def wait_seconds(steps: Sequence[int], latencies: Sequence[float]) -> dict[str, Any]:
    """Quantiles of delays in seconds, each by each latency of a step; what never comes is later than all that does.

    Args:
        steps: Of each sound that began or ended; -1: never.
        latencies: Seconds.
    """
    late = [HEARD_SECONDS + n + own if n >= 0 else math.inf for n in steps for own in latencies]
    found: dict[str, Any] = {"count": len(steps), "never": sum(n < 0 for n in steps)}
    for name, share in (("p50 s", 0.5), ("p95 s", 0.95)):
        value = float(np.quantile(late, share, method="higher")) if late else None
        found[name] = "never" if value == math.inf else value if value is None else round(value, 2)
    return found


def step_seconds(model: AVISM, split: DataSplit, video: Video, count: int = 20) -> list[float]:
    """Time that whole steps take on this machine, the first two left out."""
    online, found = OnlineSegmenter(model), []
    state = online.init_state()
    for t in range(min(count + 2, video.length)):
        picture, sound, before = split.image(video, t), split.seconds(video, [t])[0], split.previous(video, t)
        begin = time.perf_counter()
        _, state = online.step(picture, sound, state, previous=before if model.wants_previous else None)
        found.append(time.perf_counter() - begin)
    return found[2:]


def _overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


if __name__ == "__main__":
    main()
