#!/usr/bin/env python3
"""What the online path of `avism_mini` reaches on long made streams, and what its memory is good for.

    avis-stream synth SETS/streams --split test --videos 4 --streams --assets ASSETS --classes disjoint
    python benchmarks/online_results.py --sets SETS [--clips CLIPS] [--split test] [--weights FILE] [--json FILE]

Each stream is localized once; every row then runs the tracker and the identities anew on the same frames:

- who comes back under the same name, by length of absence: all that is visible is followed (gate open), sinks {none,
  first, per query} x identity table {off: the video query's number, on}, and frame queries linked by the table;
- identity switches a minute, against frame-to-frame matching of the same frame queries (MinVIS, NeurIPS 2022);
- scores as shown, online with its gates and as near to offline as can be, and what each lacks against offline;
- how long after a sound begins or ends its mask comes or goes: the second that is heard, the steps that it takes, and
  the time of a step, measured here or given with `--latency`;
- what the sinks alone keep: mask embeddings against those with all of the past.

With `--clips` a set of short videos gets the scores against offline and the delays, nothing else: the bars are on
videos of 60 s.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, parse_predictions
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.metrics import evaluation, prefix_curve, reappearance
from avis_stream.metrics.alignment import assign
from avis_stream.metrics.pairs import pair_videos
from avis_stream.metrics.prefix import CURVES
from avis_stream.metrics.reid import Reappearance, gap_edges
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images
from avis_stream.models.sounding import motion_between
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.online.door import FrameInput
from avis_stream.online.looking import Eye, FrameAnswer, Seen
from avis_stream.online.predictions import StreamPredictions
from avis_stream.online.seeing import draw, observe
from avis_stream.online.tracking import Arrival
from avis_stream.synth.protocol import STREAMS, Protocol
from avis_stream.weights import load

Entries = list[dict[str, Any]]
HEARD_SECONDS = 1.0
"""A sound that begins with a second is known when that second has been heard."""
LONGEST_WAIT = 10
"""Steps after which a mask no longer counts as that of the sound that began or ended."""
LENGTHS = (1, 37, 120, 300, 600)
"""Least frames of each part of the prefix curve; up to the ring's the tracker equals offline."""
SHOWN = {"gates on": OnlineConfig(), "parity": OnlineConfig.parity()}
RING = 36
WINDOW = 6
GAPS = ("1 to 5 s", "6 to 35 s", "36 to 71 s", "72 to 143 s", "144 s and more")
ROWS = {
    (sinks, table): OnlineConfig(sinks=sinks, presence_threshold=-1.0, silence_dbfs=None)  # type: ignore[arg-type]
    for sinks in ("none", "first", "per_query")
    for table in ("off", "on")
}
"""Of what comes back under the same name: everything visible is shown."""
LINKED = ROWS["none", "on"]
"""Frame queries are the objects (ADR 0010): the table links them, and what sinks keep is not asked for."""


@dataclass(frozen=True)
class Look:
    """What the localizer made of one frame; features in half precision."""

    queries: Tensor
    logits: Tensor
    audio: Tensor
    features: Tensor
    mask_embed: Tensor
    chance: Tensor
    masks: list[rle.Rle]
    """Of the frame queries that are likely an object, by the localizer alone."""
    likely: Tensor
    """int64 [F], which those are."""
    silent: bool
    """Its second of sound holds next to nothing, by the default of `OnlineConfig.silence_dbfs`."""


class Replay(Eye):
    """An eye that has seen the stream before.

    Args:
        model: That localized it.
        looks: By frame number.
        linked: Frame queries are the objects, as `avism_mini` ships; False: video queries are, which sinks are about.
        silence: Silent seconds are told to be so.
    """

    def __init__(self, model: AVISM, looks: Sequence[Look], *, linked: bool = False, silence: bool = False) -> None:
        super().__init__(model, None)
        self._looks, self._linked, self._silence = looks, linked, silence

    def look_at(self, given: Sequence[FrameInput]) -> list[Seen]:
        return [self._seen_before(own) for own in given]

    def _seen_before(self, given: FrameInput) -> Seen:
        look = self._looks[given.frame_id]
        thing = 1 - look.logits.softmax(-1)[:, -1]
        arrival = Arrival(look.queries[None], look.audio[None], thing.max()[None])
        logits = look.logits if self._linked else None
        answer = FrameAnswer(look.features.float(), look.chance, look.mask_embed, logits)
        return Seen(arrival, answer, self.sizes(given.size), silent=self._silence and look.silent)


@torch.no_grad()
def look_at_all(model: AVISM, split: DataSplit, video: Video) -> list[Look]:
    config, looks = model.config, []
    size = network_size(video.height, video.width, config.input)

    def prepared(picture: Tensor) -> Tensor:
        return normalise_and_pad(resize_images(picture[None], size), config.input)

    sizes = Eye(model, None).sizes((video.height, video.width))
    for t in tqdm(range(video.length), desc=f"localizing {video.name}", disable=not sys.stderr.isatty()):
        images, earlier = prepared(split.image(video, t)), split.previous(video, t)
        motion = None if earlier is None else motion_between(images, prepared(earlier))
        seconds = split.seconds(video, [t])
        audio = model.hear(seconds)
        power = float(seconds.double().square().mean())
        pixels = model.pixel_decoder(model.backbone(images))
        answer = model.localizer(pixels, audio, motion).heads[-1]
        assert answer.sounding is not None
        score = answer.logits[0].softmax(-1)[:, :-1].amax(-1)
        likely = (score > 0.3).nonzero()[:, 0]
        masks, _ = draw(answer.mask_embed[0, likely], pixels.mask_features[0], sizes)
        looks.append(
            Look(answer.queries[0], answer.logits[0], audio[0], pixels.mask_features[0].half(), answer.mask_embed[0],
                 answer.sounding[0].sigmoid(), [rle.encode(m) for m in masks], likely,
                 power < 10 ** ((OnlineConfig().silence_dbfs or -math.inf) / 10))
        )  # fmt: skip
    return looks


# --- rows ---------------------------------------------------------------------------------------------------------


def with_table(
    model: AVISM, video: Video, looks: Sequence[Look], config: OnlineConfig, *, linked: bool = False
) -> tuple[Entries, list[Any]]:
    """Entries by public id, and the events of every frame."""
    online = OnlineSegmenter(model, config)
    online._eye = Replay(model, looks, linked=linked, silence=config.silence_dbfs is not None)
    state, gathered, events = online.init_state(), StreamPredictions(), []
    picture, sound = torch.zeros(3, video.height, video.width, dtype=torch.uint8), torch.zeros(16_000)
    for t in range(video.length):
        result, state = online.step(picture, sound, state, frame_id=t)
        gathered.add(result)
        events.append(result.events)
    return gathered.entries(video.id), events


def without_table(model: AVISM, video: Video, looks: Sequence[Look], config: OnlineConfig) -> Entries:
    """Entries by video query: the number of a query is the identity."""
    online = OnlineSegmenter(model, config)
    eye = Replay(model, looks)
    sizes, gates = eye.sizes((video.height, video.width)), online._presenter.gates(silent=False)
    state = online.init_state()
    masks: dict[int, dict[int, rle.Rle]] = {}
    votes: dict[int, Tensor] = {}
    for t, look in enumerate(looks):
        answer, state = online.step_features(
            look.queries, look.features.float(), look.audio, state, look.chance, look.mask_embed
        )
        seen = observe(answer, sizes, config, gates)
        shown = seen.score > config.birth_score
        drawn, _ = draw(seen.mask_embed[shown], look.features.float(), sizes)
        for query, probability, mask in zip(seen.query[shown].tolist(), seen.probability[shown], drawn, strict=True):
            if mask.any():
                masks.setdefault(query, {})[t] = rle.encode(mask)
                votes[query] = votes.get(query, torch.zeros_like(probability)) + probability
    return _entries(video, masks, votes)


def frame_to_frame(video: Video, looks: Sequence[Look]) -> Entries:
    """MinVIS: each frame's queries are those of the frame before that they are likest, one to one."""
    masks: dict[int, dict[int, rle.Rle]] = {}
    votes: dict[int, Tensor] = {}
    before: Tensor | None = None
    for t, look in enumerate(looks):
        queries = torch.nn.functional.normalize(look.queries, dim=-1)
        order = np.arange(len(queries))
        if before is not None:
            rows, columns = assign((before @ queries.T).double().numpy() + 1.0)
            order = np.argsort(rows)
            order = columns[order]  # order[slot]: which query continues it
        before = queries[torch.from_numpy(order)]
        slot_of = {int(query): slot for slot, query in enumerate(order)}
        for query, mask in zip(look.likely.tolist(), look.masks, strict=True):
            if rle.area(mask):
                slot = slot_of[query]
                probability = look.logits[query].softmax(-1)[:-1]
                masks.setdefault(slot, {})[t] = mask
                votes[slot] = votes.get(slot, torch.zeros_like(probability)) + probability
    return _entries(video, masks, votes)


def _entries(video: Video, masks: dict[int, dict[int, rle.Rle]], votes: dict[int, Tensor]) -> Entries:
    return [
        {
            "video_id": video.id,
            "score": 0.9,
            "category_id": int(votes[key].argmax()) + 1,
            "segmentations": [own.get(t) for t in range(video.length)],
        }
        for key, own in sorted(masks.items())
    ]


# --- truths and scores --------------------------------------------------------------------------------------------


def visible_truth(truth: Annotations, video: Video) -> Annotations:
    """One video, every object with a mask wherever it can be seen."""
    tracks = truth.tracks[video.id] + tuple(truth.silent.get(video.id, ()))
    shown = tuple(replace(t, segmentations=t.visible or t.segmentations, areas=None, visible=None) for t in tracks)
    return replace(truth, videos=(video,), tracks={video.id: shown}, silent={})


def of_videos(truth: Annotations, videos: Sequence[Video]) -> Annotations:
    """Some videos, what sounds in them."""
    return replace(truth, videos=tuple(videos), tracks={v.id: truth.tracks[v.id] for v in videos}, silent={})


def returns(truth: Annotations, entries: Entries) -> Reappearance:
    (pair,) = pair_videos(truth, parse_predictions(Path("rows"), entries, truth))
    return reappearance(pair, gap_edges(WINDOW, RING))


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


def delays(truth: Sequence[Track], entries: Entries) -> dict[str, list[int]]:
    """Frames from the beginning of a sound to its first mask, and from its end to the last one's going; -1: never."""
    shown = [{t for t, m in enumerate(e["segmentations"]) if m is not None} for e in entries]
    found: dict[str, list[int]] = {"onset": [], "offset": []}
    for track in truth:
        masks = track.segmentations
        for t in range(1, len(masks)):
            if masks[t] is not None and masks[t - 1] is None:
                found["onset"].append(_until(masks, entries, shown, t, covered=True))
            elif masks[t] is None and masks[t - 1] is not None and track.visible and track.visible[t] is not None:
                found["offset"].append(_until(track.visible, entries, shown, t, covered=False))
    return found


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


def _overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@torch.no_grad()
def kept_by_sinks(model: AVISM, looks: Sequence[Look], at: Sequence[int]) -> dict[str, dict[int, float]]:
    """Relative error of the mask embeddings against the offline model on everything so far."""
    found: dict[str, dict[int, float]] = {}
    for sinks in ("per_query", "first", "none"):
        online = OnlineSegmenter(model, OnlineConfig(sinks=sinks))  # type: ignore[arg-type]
        state, own = online.init_state(), {}
        for t, look in enumerate(looks):
            answer, state = online.step_features(look.queries, look.features.float(), look.audio, state)
            if t + 1 in at:
                past = looks[: t + 1]
                whole = model.track(torch.stack([p.queries for p in past]), torch.stack([p.audio for p in past]))
                difference = (answer.pred_mask_embed - whole.mask_embed).norm()
                own[t + 1] = round(float(difference / whole.mask_embed.norm()), 4)
        found[sinks] = own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, help="folder that holds the set `streams`")
    parser.add_argument("--clips", type=Path, help="a set of short videos, compared with offline alone")
    parser.add_argument("--videos", type=int, help="the first so many of each set (default: all)")
    parser.add_argument("--latency", type=float, nargs="+", metavar="SECONDS", help="of steps (default: measured here)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", type=Path, help="default: those that come with the package")
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
            report[name] = results(model, split, videos, options.latency, memory=name == "streams")
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def results(
    model: AVISM, split: DataSplit, videos: Sequence[Video], latencies: Sequence[float] | None, *, memory: bool
) -> dict[str, Any]:
    """All figures of some videos.

    Args:
        model: Prepared for inference.
        split: That holds the videos.
        videos: Of it.
        latencies: Seconds that a step takes; None: measured on the first video.
        memory: Also who comes back, switches, and what sinks keep.
    """
    truth = of_videos(split.annotations, videos)
    report: dict[str, Any] = {"videos": len(videos), "minutes": round(sum(v.length for v in videos) / 60, 1)}
    if memory:
        report["protocol"] = Protocol.load(STREAMS).digest
    comebacks: dict[str, Reappearance] = {}
    switches: dict[str, int] = {}
    shown: dict[str, Entries] = {"offline": [], **{name: [] for name in SHOWN}}
    waits: dict[str, list[int]] = {"onset": [], "offset": []}
    sinks = []
    for video in videos:
        looks = look_at_all(model, split, video)
        shown["offline"] += next(predict(model, split, [video]))
        for name, config in SHOWN.items():
            entries, _ = with_table(model, video, looks, config, linked=True)
            shown[name] += entries
            if name == "gates on":
                own = delays(truth.tracks[video.id], entries)
                waits = {key: waits[key] + own[key] for key in waits}
        if not memory:
            continue
        everything = visible_truth(split.annotations, video)
        for name, entries in _rows(model, video, looks):
            found = returns(everything, entries)
            comebacks[name] = comebacks[name] + found if name in comebacks else found
            switches[name] = switches.get(name, 0) + scores(everything, entries)["IDSW"]
        sinks.append(kept_by_sinks(model, looks, (300, 600, 1200)))
    if memory:
        report["sinks"] = sinks
        report["returns"] = {name: _returns_row(found) for name, found in comebacks.items()}
        report["switches per minute"] = {name: round(n / report["minutes"], 2) for name, n in switches.items()}
    report["as shown"] = against_offline({name: scores(truth, entries) for name, entries in shown.items()})
    found = {name: parse_predictions(Path("rows"), entries, truth) for name, entries in shown.items()}
    report["minus offline by length"] = {
        name: [asdict(own) for own in prefix_curve(truth, found["offline"], found[name], LENGTHS)] for name in SHOWN
    }
    taken = list(latencies or step_seconds(model, split, videos[0]))
    report["step seconds"] = {"p50": round(float(np.quantile(taken, 0.5)), 3), "measured here": latencies is None}
    report["delays"] = {key: wait_seconds(values, taken) for key, values in waits.items()}
    return report


def _rows(model: AVISM, video: Video, looks: Sequence[Look]) -> Iterator[tuple[str, Entries]]:
    for (sinks, table), config in ROWS.items():
        entries = (
            with_table(model, video, looks, config)[0] if table == "on" else without_table(model, video, looks, config)
        )
        yield f"sinks {sinks}, table {table}", entries
    yield "linked frame queries, as shipped", with_table(model, video, looks, LINKED, linked=True)[0]
    yield "frame to frame (MinVIS)", frame_to_frame(video, looks)


def _returns_row(found: Reappearance) -> dict[str, Any]:
    gaps = {
        gap: {"returns": c.returns, "coverage": c.coverage, "same": c.reid}
        for gap, c in zip(GAPS, found.by_gap, strict=True)
    }
    return gaps | {"newcomers": found.newcomers, "false returns": found.false_return_rate}


if __name__ == "__main__":
    main()
