"""`synth`, `import`, `labels` and `eval`: sets of labelled videos, and what answers on them are worth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avis_stream.cli.options import Commands, add_data_options, count
from avis_stream.presets import PRESETS


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    synth = commands.add("synth", _synth, "make a data set whose truth is known")
    synth.add_argument("out", type=Path, metavar="OUT")
    synth.add_argument("--split", choices=["train", "val", "test"], default="train")
    synth.add_argument("--videos", type=count, default=20, metavar="N")
    synth.add_argument("--seed", type=int, default=0, metavar="N")
    synth.add_argument("--assets", type=Path, metavar="DIR", help="cut-outs and sounds; without: drawn by the program")
    synth.add_argument("--protocol", type=Path, metavar="FILE", help="instead of the frozen protocol_v1.json")
    synth.add_argument("--streams", action="store_true", help="minutes long, by the frozen streams_v1.json")
    synth.add_argument("--photographs", action="store_true", help="only real labelled photographs as scenes")
    synth.add_argument("--classes", metavar="NAMES", help="with commas, or disjoint: those that splits do not share")
    synth.add_argument("--films", action="store_true", help="also an MP4 of each scene at camera rate")
    synth.add_argument("--force", action="store_true", help="replace a split that is there")

    score = commands.add("eval", _eval, "score predictions")
    add_data_options(score, required=True)
    score.add_argument("--split", required=True, metavar="NAME", help="DIR/NAME.json holds the truth")
    answers = score.add_mutually_exclusive_group(required=True)
    answers.add_argument("--predictions", type=Path, metavar="FILE", help="of run, or others' answers")
    answers.add_argument("--weights", metavar="FILE", help='let a model answer: a weight file, or "bundled"')
    score.add_argument("--model", choices=list(PRESETS), default="avism_mini", help="of --weights that do not say")
    score.add_argument("--device", default="cpu")
    score.add_argument("--mode", choices=["offline", "online"], default="offline", help="of --weights, as for run")
    score.add_argument("--save", type=Path, metavar="FILE", help="keep the model's answers (default: forget them)")
    score.add_argument("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    score.add_argument("--metrics", choices=["official", "fixed", "paper"], default="official")
    score.add_argument(
        "--as-live", type=Path, metavar="FILE",
        help="score what had been delivered at each instant, with the latencies of these live results (JSON lines)",
    )  # fmt: skip
    score.add_argument("--semantic", action="store_true", help="also mIoU and F-score of pixels")

    importer = commands.add("import", _import, "labels of another tool to a data set")
    importer.add_argument("source", type=Path, metavar="SRC", help="the tool's file or folder")
    importer.add_argument("out", type=Path, metavar="OUT", help="folder of the set")
    importer.add_argument("--from", choices=["coco", "ytvis", "isat", "cvat"], required=True, dest="kind")
    importer.add_argument("--split", default="train", metavar="NAME")
    importer.add_argument("--images", type=Path, metavar="DIR", help="where the images lie, if not beside the labels")
    importer.add_argument("--audio", type=Path, metavar="DIR", help="recordings named like the videos")
    importer.add_argument("--force", action="store_true", help="replace a split that is there")

    labels = commands.add("labels", _labels, "answers or truth to where people correct them")
    labels.add_argument("out", type=Path, metavar="OUT")
    labels.add_argument("--to", choices=["ytvis", "isat", "cvat"], required=True, dest="kind")
    labels.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in AVISeg's layout")
    labels.add_argument("--split", required=True, metavar="NAME")
    labels.add_argument("--predictions", type=Path, metavar="FILE", help="answers (default: the truth)")
    labels.add_argument("--force", action="store_true", help="write into a folder that holds files")


def _synth(options: argparse.Namespace) -> None:
    from avis_stream.commands.synth import make_set
    from avis_stream.synth.protocol import STREAMS

    written = make_set(
        options.out,
        split=options.split,
        videos=options.videos,
        seed=options.seed,
        assets=options.assets,
        protocol_file=STREAMS if options.streams else options.protocol,
        photographs=options.photographs,
        films=options.films,
        classes=options.classes,
        force=options.force,
    )
    sys.stderr.write(f"{options.videos} videos: {written}\n")


def _eval(options: argparse.Namespace) -> None:
    from avis_stream.commands.evaluate import EvalOptions, evaluate_model, evaluate_predictions
    from avis_stream.metrics import read_latencies

    wanted = EvalOptions(
        mode=options.metrics,
        semantic=options.semantic,
        json_file=options.json,
        plot_file=options.plot,
        latencies=tuple(read_latencies(options.as_live)) if options.as_live else (),
    )
    if options.predictions is not None:
        text = evaluate_predictions(options.data, options.split, options.predictions, wanted)
    else:
        from avis_stream.online import OnlineConfig
        from avis_stream.weights import load

        weights = None if options.weights == "bundled" else options.weights
        model = load(options.model, weights, options.device, settings=options.settings)
        online = OnlineConfig() if options.mode == "online" else None
        text = evaluate_model(model, options.data, options.split, wanted, keep=options.save, online=online)
    sys.stdout.write(text + "\n")


def _import(options: argparse.Namespace) -> None:
    from avis_stream.commands.labels import import_labels

    line = import_labels(
        options.kind,
        options.source,
        options.out,
        split=options.split,
        images=options.images,
        audio=options.audio,
        force=options.force,
    )
    sys.stdout.write(line + "\n")


def _labels(options: argparse.Namespace) -> None:
    from avis_stream.commands.labels import export_labels

    line = export_labels(
        options.kind, options.data, options.split, options.out, predictions=options.predictions, force=options.force
    )
    sys.stdout.write(line + "\n")
