#!/usr/bin/env python3
"""Who comes back under the same name on long made streams, and what sinks and the identity table have to do with it.

    avis-stream synth SETS/streams --split test --videos 4 --streams --assets ASSETS --classes disjoint
    python benchmarks/online_returns.py SETS/streams [--looks FOLDER] [--split test] [--weights FILE] [--json FILE]
        [--splice 0 6 36 72 300] [--filler other] [--plot FILE.png]

Each stream is localized once, or was before (`online_looks.py`, `--looks`); every row then runs the tracker and the
identities anew on the same frames. All that is visible is followed (gate open):

- who comes back under the same name, by length of absence: sinks {none, first, per query} x identity table {off: the
  video query's number, on}, and frame queries linked by the table, where these are the model's objects (ADR 0010), with
  their colours and without (ADR 0202). Such a model's video queries are asked all the same in the rows about sinks,
  though none of its streams does so;
- identity switches a minute, against frame-to-frame matching of the same frame queries (MinVIS, NeurIPS 2022);
- what the sinks alone keep: mask embeddings against those with all of the past;
- the splice test: the first half of a stream, then so many seconds of something else, then its second half, and who of
  all that is there in both halves is known again. In between comes the next video of the set from its beginning, seen
  and heard, whose objects are followed like any (`--filler other`), or a black picture with digital silence
  (`--filler black`). Nobody is told of the cuts: they are no `gap` of the source.

Each number of `--splice` runs the stream anew for each row; `--splice` without numbers leaves that out.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from online_looks import Entries, Look, Replay, look_at_black, looks_of, with_table
from torch import Tensor

from avis_stream.commands.output import aligned
from avis_stream.data import rle
from avis_stream.data.annotations import Annotations, Video, parse_predictions
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.files import atomic_path
from avis_stream.metrics import across_cut, evaluation, reappearance
from avis_stream.metrics.alignment import assign
from avis_stream.metrics.pairs import VideoPair, pair_videos
from avis_stream.metrics.reid import Reappearance, ReturnCounts, gap_edges
from avis_stream.metrics.splice import spliced, without_filler
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.online.seeing import draw, observe
from avis_stream.synth.protocol import STREAMS, Protocol
from avis_stream.weights import load

RING = 36
WINDOW = 6
GAPS = ("1 to 5 s", "6 to 35 s", "36 to 71 s", "72 to 143 s", "144 s and more")
OPEN: dict[str, Any] = {"presence_threshold": -1.0, "silence_dbfs": None}
"""Settings with which everything visible is shown: what comes back under the same name is asked."""
ROWS = {
    (sinks, table): OnlineConfig(sinks=sinks, **OPEN)
    for sinks in ("none", "first", "per_query")
    for table in ("off", "on")
}
"""Of the rows that ask video queries."""
SPLICES = (0, 6, 36, 72, 300)
"""Seconds in between: nothing, a window, a ring, two rings, minutes."""
KEPT_AT = (300, 600, 1200)
"""Frames after which sinks are compared with all of the past."""

Row = Callable[[Video, Sequence[Look]], Entries]
"""Entries of a stream of these looks, which may be longer than the video whose size it has."""


def rows_of(model: AVISM) -> dict[str, Row]:
    """What is compared: sinks and table, asked of video queries, and what the model ships with if that is another."""
    asked, run = asking(model), {"on": with_table, "off": without_table}
    found: dict[str, Row] = {
        f"sinks {sinks}, table {table}": partial(run[table], asked, config=config)
        for (sinks, table), config in ROWS.items()
    }
    if model.config.tracker.objects == "frame":
        # The table links frame queries (ADR 0010), by the model's own thresholds; what sinks keep is not asked for.
        shipped = OnlineConfig.of(model.config, sinks="none", **OPEN)
        found["linked frame queries, as shipped"] = partial(with_table, model, config=shipped)
        by_looks = replace(shipped, match_colour=None)
        found["linked frame queries, by looks alone"] = partial(with_table, model, config=by_looks)
    return found


def asking(model: AVISM) -> AVISM:
    """The same weights, with video queries for objects."""
    asked = copy.copy(model)
    asked.config = replace(model.config, tracker=replace(model.config.tracker, objects="video"))
    return asked


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
    return _entries(video, len(looks), masks, votes)


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
    return _entries(video, len(looks), masks, votes)


def _entries(video: Video, frames: int, masks: dict[int, dict[int, rle.Rle]], votes: dict[int, Tensor]) -> Entries:
    return [
        {
            "video_id": video.id,
            "score": 0.9,
            "category_id": int(votes[key].argmax()) + 1,
            "segmentations": [own.get(t) for t in range(frames)],
        }
        for key, own in sorted(masks.items())
    ]


def visible_truth(truth: Annotations, video: Video) -> Annotations:
    """One video, every object with a mask wherever it can be seen."""
    tracks = truth.tracks[video.id] + tuple(truth.silent.get(video.id, ()))
    shown = tuple(replace(t, segmentations=t.visible or t.segmentations, areas=None, visible=None) for t in tracks)
    return replace(truth, videos=(video,), tracks={video.id: shown}, silent={})


@torch.no_grad()
def kept_by_sinks(model: AVISM, looks: Sequence[Look], at: Sequence[int]) -> dict[str, dict[int, float]]:
    """Relative error of the mask embeddings against the offline model on everything so far."""
    found: dict[str, dict[int, float]] = {}
    for sinks in ("per_query", "first", "none"):
        online = OnlineSegmenter(model, OnlineConfig(sinks=sinks))
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


# --- figures ------------------------------------------------------------------------------------------------------


def pair_of(truth: Annotations, entries: Entries) -> VideoPair:
    """One video's truth and entries as numbers."""
    (pair,) = pair_videos(truth, parse_predictions(Path("rows"), entries, truth))
    return pair


def switches(truth: Annotations, entries: Entries) -> int:
    """Identity switches in one video."""
    return int(evaluation(truth, parse_predictions(Path("rows"), entries, truth), "fixed").summary()["IDSW"] or 0)


def returns(
    model: AVISM,
    split: DataSplit,
    videos: Sequence[Video],
    *,
    looks: Path | None = None,
    splices: Sequence[int] = SPLICES,
    filler: str = "other",
) -> dict[str, Any]:
    """All figures of some streams.

    Args:
        model: Prepared for inference.
        split: That holds the videos.
        videos: Of it.
        looks: Folder in which looks are kept; None: nowhere.
        splices: Seconds of something else in the middle.
        filler: What that is: `other` or `black`.
    """
    rows = rows_of(model)
    minutes = sum(v.length for v in videos) / 60
    comebacks: dict[str, Reappearance] = {}
    switched: dict[str, int] = {}
    across: dict[str, dict[int, ReturnCounts]] = {name: {n: ReturnCounts() for n in splices} for name in rows}
    sinks = []
    for video in videos:
        seen, truth = looks_of(model, split, video, looks), visible_truth(split.annotations, video)
        whole = {name: row(video, seen) for name, row in rows.items()}
        for name, entries in (whole | {"frame to frame (MinVIS)": frame_to_frame(video, seen)}).items():
            found = reappearance(pair_of(truth, entries), gap_edges(WINDOW, RING))
            comebacks[name] = comebacks[name] + found if name in comebacks else found
            switched[name] = switched.get(name, 0) + switches(truth, entries)
        sinks.append(kept_by_sinks(asking(model), seen, KEPT_AT))
        if splices:
            between = filler_of(filler, model, split, video, looks)
            for name, row in rows.items():
                for n in splices:
                    entries = whole[name] if n == 0 else entries_across(row, video, seen, between, n)
                    across[name][n] += across_cut(pair_of(truth, entries), video.length // 2)
    return {
        "videos": len(videos),
        "minutes": round(minutes, 1),
        "protocol": Protocol.load(STREAMS).digest,
        "sinks": sinks,
        "returns": {name: _returns_row(found) for name, found in comebacks.items()},
        "switches per minute": {name: round(n / minutes, 2) for name, n in switched.items()},
        "splice": {
            "filler": filler,
            "rows": {
                name: {str(n): _counts(found) for n, found in own.items()} for name, own in across.items() if splices
            },
        },
    }


def filler_of(kind: str, model: AVISM, split: DataSplit, video: Video, looks: Path | None) -> list[Look]:
    """Looks that come in the middle of a stream: of the next video of its size, or of nothing at all."""
    if kind == "black":
        return [look_at_black(model, video.height, video.width)]
    all_videos = split.annotations.videos
    first = [v.id for v in all_videos].index(video.id)
    others = [v for v in (*all_videos[first + 1 :], *all_videos[:first])
              if (v.height, v.width) == (video.height, video.width)]  # fmt: skip
    if not others:
        raise SystemExit(f"the set has no other video of the size of {video.name}; use --filler black")
    return looks_of(model, split, others[0], looks)


def entries_across(row: Row, video: Video, looks: Sequence[Look], filler: Sequence[Look], frames: int) -> Entries:
    """Entries of a video whose halves were so many frames of something else apart."""
    cut = video.length // 2
    return without_filler(row(video, spliced(looks, filler, cut, frames)), cut, frames)


def _returns_row(found: Reappearance) -> dict[str, Any]:
    gaps = {gap: _counts(own) for gap, own in zip(GAPS, found.by_gap, strict=True)}
    return gaps | {"newcomers": found.newcomers, "false returns": found.false_return_rate}


def _counts(found: ReturnCounts) -> dict[str, Any]:
    return {"returns": found.returns, "coverage": found.coverage, "same": found.reid}


# --- for people ---------------------------------------------------------------------------------------------------


def splice_table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Share of those known again / share of those with an answer on both sides, by seconds in between."""
    lengths = list(next(iter(rows.values())))
    cells = [["known again / covered", *(f"{n} s" for n in lengths)]]
    cells += [[name, *(f"{_percent(own['same'])} / {_percent(own['coverage'])}" for own in by_length.values())]
              for name, by_length in rows.items()]  # fmt: skip
    return aligned(cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def plot_splice(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], filler: str, target: Path) -> None:
    """Draws who is known again against the seconds in between; table off is dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, (name, by_length) in enumerate(rows.items()):
        points = [(int(n), own["same"]) for n, own in by_length.items() if own["same"] is not None]
        style = "--" if name.endswith("off") else "-"
        across, known = [n for n, _ in points], [100 * share for _, share in points]
        size = 3 * (len(rows) - row)  # rings within each other, where rows agree
        axes.plot(across, known, style, marker="o", fillstyle="none", markersize=size, label=name)
    axes.set_xscale("symlog", linthresh=6)
    lengths = [int(n) for n in next(iter(rows.values()))]
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.set_xlabel(f"seconds of something else in the middle ({filler})")
    axes.set_ylabel("known again, %")
    axes.set_ylim(0, 105)
    axes.legend(fontsize="small")
    with atomic_path(target) as path:
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a set of long streams")
    parser.add_argument("--looks", type=Path, metavar="FOLDER", help="what the localizer made is kept there")
    parser.add_argument("--videos", type=int, help="the first so many (default: all)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", help='default: those that come with the package; "random": for a dry run')
    parser.add_argument("--splice", type=int, nargs="*", default=SPLICES, metavar="SECONDS", help="in the middle")
    parser.add_argument("--filler", choices=["other", "black"], default="other", help="what comes in the middle")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="of the splice test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    split = open_split(options.set, options.split, model.classes)
    videos = split.annotations.videos[: options.videos]
    report = returns(model, split, videos, looks=options.looks, splices=options.splice, filler=options.filler)
    print(json.dumps(report, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if rows := report["splice"]["rows"]:
        print(splice_table(rows))
        if options.plot is not None:
            plot_splice(rows, options.filler, options.plot)


if __name__ == "__main__":
    main()
