#!/usr/bin/env python3
"""What the online path of `avism_mini` reaches on long made streams, and what its memory is good for.

    avis-stream synth SETS/streams --split test --videos 4 --streams --assets ASSETS --classes disjoint
    python benchmarks/online_results.py --sets SETS [--split test] [--weights FILE] [--json FILE]

Each stream is localized once; every row then runs the tracker and the identities anew on the same frames:

- who comes back under the same name, by length of absence: all that is visible is followed (gate open), sinks {none,
  first, per query} x identity table {off: the video query's number, on}, and frame queries linked by the table;
- identity switches a minute, against frame-to-frame matching of the same frame queries (MinVIS, NeurIPS 2022);
- scores as shown, online with its gates, and how long after a sound begins or ends its mask comes or goes;
- what the sinks alone keep: mask embeddings against those with all of the past.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Track, Video, parse_predictions
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.metrics import evaluation, reappearance
from avis_stream.metrics.alignment import assign
from avis_stream.metrics.pairs import pair_videos
from avis_stream.metrics.reid import Reappearance, gap_edges
from avis_stream.models.avism import AVISM
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


class Replay(Eye):
    """An eye that has seen the stream before.

    Args:
        model: That localized it.
        looks: By frame number.
        linked: Frame queries are the objects, as `avism_mini` ships; False: video queries are, which sinks are about.
    """

    def __init__(self, model: AVISM, looks: Sequence[Look], *, linked: bool = False) -> None:
        super().__init__(model, None)
        self._looks, self._linked = looks, linked

    def look_at(self, given: Sequence[FrameInput]) -> list[Seen]:
        return [self._seen_before(own) for own in given]

    def _seen_before(self, given: FrameInput) -> Seen:
        look = self._looks[given.frame_id]
        thing = 1 - look.logits.softmax(-1)[:, -1]
        arrival = Arrival(look.queries[None], look.audio[None], thing.max()[None])
        logits = look.logits if self._linked else None
        answer = FrameAnswer(look.features.float(), look.chance, look.mask_embed, logits)
        return Seen(arrival, answer, self.sizes(given.size), silent=False)


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
        audio = model.hear(split.seconds(video, [t]))
        pixels = model.pixel_decoder(model.backbone(images))
        answer = model.localizer(pixels, audio, motion).heads[-1]
        assert answer.sounding is not None
        score = answer.logits[0].softmax(-1)[:, :-1].amax(-1)
        likely = (score > 0.3).nonzero()[:, 0]
        masks, _ = draw(answer.mask_embed[0, likely], pixels.mask_features[0], sizes)
        looks.append(
            Look(answer.queries[0], answer.logits[0], audio[0], pixels.mask_features[0].half(), answer.mask_embed[0],
                 answer.sounding[0].sigmoid(), [rle.encode(m) for m in masks], likely)
        )  # fmt: skip
    return looks


# --- rows ---------------------------------------------------------------------------------------------------------


def with_table(
    model: AVISM, video: Video, looks: Sequence[Look], config: OnlineConfig, *, linked: bool = False
) -> tuple[Entries, list[Any]]:
    """Entries by public id, and the events of every frame."""
    online = OnlineSegmenter(model, config)
    online._eye = Replay(model, looks, linked=linked)
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


def of_video(truth: Annotations, video: Video) -> Annotations:
    return replace(truth, videos=(video,), tracks={video.id: truth.tracks[video.id]}, silent={})


def returns(truth: Annotations, entries: Entries) -> Reappearance:
    (pair,) = pair_videos(truth, parse_predictions(Path("rows"), entries, truth))
    return reappearance(pair, gap_edges(WINDOW, RING))


def scores(truth: Annotations, entries: Entries) -> dict[str, Any]:
    summary = evaluation(truth, parse_predictions(Path("rows"), entries, truth), "fixed").summary()
    return {key: summary[key] for key in ("FA", "FAn", "FAs", "FAm", "HOTA", "AssA", "IDF1", "IDSW")}


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
    for t in range(start, min(start + 10, len(masks))):
        if masks[t] is None:
            break
        wanted = rle.decode(masks[t])
        overlaps = [_overlap(rle.decode(e["segmentations"][t]), wanted) for e, s in zip(entries, shown, strict=True)
                    if t in s]  # fmt: skip
        if (max(overlaps, default=0.0) >= 0.3) == covered:
            return t - start
    return -1


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
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", type=Path, help="default: those that come with the package")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    split = open_split(options.sets / "streams", options.split, model.classes)
    truth = split.annotations
    report: dict[str, Any] = {"protocol": Protocol.load(STREAMS).digest, "videos": len(truth.videos)}
    comebacks: dict[str, Reappearance] = {}
    switches: dict[str, int] = {}
    shown: dict[str, list[dict[str, Any]]] = {"gates on": [], "parity": []}
    waits: dict[str, list[int]] = {"onset": [], "offset": []}
    report["minutes"] = round(sum(v.length for v in truth.videos) / 60, 1)
    report["sinks"] = []
    for video in truth.videos:
        looks = look_at_all(model, split, video)
        everything = visible_truth(truth, video)
        for name, entries in _rows(model, video, looks):
            found = returns(everything, entries)
            comebacks[name] = comebacks[name] + found if name in comebacks else found
            switches[name] = switches.get(name, 0) + scores(everything, entries)["IDSW"]
        for name, config in (("gates on", OnlineConfig(silence_dbfs=None)), ("parity", OnlineConfig.parity())):
            entries, _ = with_table(model, video, looks, config, linked=True)
            shown[name].append(scores(of_video(truth, video), entries))
            if name == "gates on":
                own = delays(truth.tracks[video.id], entries)
                waits = {key: waits[key] + own[key] for key in waits}
        report["sinks"].append(kept_by_sinks(model, looks, (300, 600, 1200)))
    report["returns"] = {name: _returns_row(found) for name, found in comebacks.items()}
    report["switches per minute"] = {name: round(n / report["minutes"], 2) for name, n in switches.items()}
    report["as shown"] = {name: _mean(rows) for name, rows in shown.items()}
    report["delays"] = {key: _quantiles(values) for key, values in waits.items()}
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


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


def _mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        key: round(float(np.mean([row[key] for row in rows if row[key] is not None])), 2)
        for key in rows[0]
        if any(row[key] is not None for row in rows)
    }


def _quantiles(values: list[int]) -> dict[str, Any]:
    there = [v for v in values if v >= 0]
    return {
        "count": len(values),
        "never": len(values) - len(there),
        "p50 steps": float(np.quantile(there, 0.5)) if there else None,
        "p95 steps": float(np.quantile(there, 0.95)) if there else None,
    }


if __name__ == "__main__":
    main()
