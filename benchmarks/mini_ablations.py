#!/usr/bin/env python3
"""The paper's ablations in small: what each part of `avism_mini` is worth, every variant trained alike.

    python benchmarks/mini_ablations.py --assets ASSETS --sets SETS --out out/ablations [--steps 120] [--videos 30]

Every variant begins with the bundled weights (or `--init`), loses or changes its part, and learns for as many steps on
clips (only variants that change the localizer, and the one they are compared with) and on streams (all of them).
`SETS/disjoint` is made as for `mini_results.py`. Scores are `mode="fixed"`, in percent, on test. Under two hours on one
core; finished variants are kept, so it can be run again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from tqdm import tqdm

from avis_stream.commands.train import run_training
from avis_stream.data.annotations import parse_predictions
from avis_stream.data.dataset import open_split
from avis_stream.metrics import evaluation
from avis_stream.models.predict import predict_video
from avis_stream.weights import load
from avis_stream.weights.bundled import bundled_weights

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COLUMNS = ("FA", "FAs", "FAm", "HOTA", "AP_all")


@dataclass(frozen=True)
class Variant:
    """A row of a table."""

    name: str
    settings: tuple[str, ...] = ()
    localizer: bool = False
    """The localizer changes, so it learns on clips first. Backbone and pixel decoder, half of the time, stay as they
    are in all rows."""


_ASKED = "tracker.objects=video"  # as in the paper; linked frame queries ask nothing of the tracker's decoder
TABLES: dict[str, tuple[Variant, ...]] = {
    "frame-level fusion": (
        Variant("the sounding head hears alone (as shipped)", localizer=True),
        Variant("the fusion hears too", ("localizer.fusion_hears=true",), localizer=True),
        Variant("no fusion", ("localizer.audio_fusion=false",), localizer=True),
        Variant("deaf (the VITA row)", ("audio.encoder=deaf",), localizer=True),
    ),
    "video-level fusion": (Variant("with", (_ASKED,)), Variant("without", (_ASKED, "tracker.audio_fusion=false"))),
    "token window": (
        Variant("3 frames", (_ASKED, "tracker.token_window=3")),
        Variant("6 frames (as shipped)", (_ASKED,)),
        Variant("12 frames", (_ASKED, "tracker.token_window=12")),
    ),
    "similarity loss": (
        Variant("with", (_ASKED,)),
        Variant("without", (_ASKED, "train.losses.similarity_weight=0", "train.losses.presence_weight=0")),
    ),
}


def trained(variant: Variant, options: argparse.Namespace) -> Path:
    """Weights of a variant; made if they are not there. What was begun and not finished begins anew."""
    settings = [*variant.settings, "train.milestones=" + str(options.steps * 5 // 6)]
    folder = options.out / _slug(variant)
    done = folder / "streams" / "weights.safetensors"
    if done.exists():
        return done
    data, init = f"synth:{options.assets}", options.init
    if variant.localizer:
        clips = ["train.frames=1", "train.clips=16", f"train.steps={options.steps}", "train.learning_rate=2e-4"]
        clips.append("train.frozen=backbone.,pixel_decoder.")
        init = run_training(
            data, "avism_mini", folder / "clips", init=init, resume=None, settings=settings + clips, force=True
        )
    streams = [f"train.streams.count={options.streams}", "train.frames=60", "train.clips=4"]
    streams += [f"train.steps={options.steps}", "train.learning_rate=3e-4"]
    run_training(
        data, "avism_mini", folder / "streams", init=init, resume=None, settings=settings + streams, force=True
    )
    (folder / "streams" / "streams.pt").unlink()
    return done


def scored(weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of a variant; kept beside its weights."""
    kept = weights.parent / "scores.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    model = load("avism_mini", weights)
    split = open_split(options.sets / "disjoint", "test", model.classes)
    videos = split.annotations.videos[: options.videos]
    found = [e for v in tqdm(videos, desc=weights.parts[-3]) for e in predict_video(model, split, v).to_aviseg(v.id)]
    wanted = {video.id for video in videos}
    tracks = {key: value for key, value in split.annotations.tracks.items() if key in wanted}
    truth = type(split.annotations)(split.annotations.path, tuple(videos), split.annotations.categories, tracks)
    summary = evaluation(truth, parse_predictions(weights, found, truth), "fixed").summary()
    row = {key: summary[key] for key in _COLUMNS}
    kept.write_text(json.dumps(row) + "\n")
    return row


def _slug(variant: Variant) -> str:
    return (
        "_".join(["localizer" if variant.localizer else "tracker", *variant.settings])
        .replace("=", "-")
        .replace(".", "-")
    )


def draw(report: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel a table, two bars a row."""
    figure, panels = plt.subplots(
        len(report), 1, figsize=(8, 0.55 * sum(len(rows) + 1 for rows in report.values())), squeeze=False,
        height_ratios=[len(rows) + 0.5 for rows in report.values()], sharex=True, layout="constrained",
    )  # fmt: skip
    for panel, (table, rows) in zip(panels[:, 0], report.items(), strict=True):
        for offset, (key, name, colour) in enumerate((("FA", "FSLA", "tab:blue"), ("HOTA", "HOTA", "tab:orange"))):
            places = [n + 0.36 * offset for n in range(len(rows))]
            bars = panel.barh(places, [row[key] for row in rows.values()], 0.34, color=colour, label=name)
            panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        panel.set_yticks([n + 0.18 for n in range(len(rows))], list(rows))
        panel.invert_yaxis()
        panel.set_title(table, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    parser.add_argument("--init", type=Path, default=bundled_weights("avism_mini"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--videos", type=int, default=30)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, dict[str, Any]] = {}
    for table, variants in TABLES.items():
        report[table] = {}
        print(f"\n{table}: {', '.join(_COLUMNS)}")
        for variant in variants:
            weights = trained(variant, options)
            report[table][variant.name] = row = scored(weights, options)
            print(f"  {variant.name}: {', '.join(str(row[key]) for key in _COLUMNS)}")
            (options.out / "ablations.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "ablations.png")


if __name__ == "__main__":
    main()
