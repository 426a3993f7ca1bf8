"""`synth`, `import`, `labels` and `eval`: sets of labelled videos, and what answers on them are worth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avis_stream.checks import refuse
from avis_stream.cli.options import (
    Commands,
    Noted,
    add_data_options,
    add_model_options,
    count,
    is_given,
    load_model,
)


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    synth = commands.add("synth", _synth, "make a data set whose truth is known")
    synth.add_argument("out", type=Path, metavar="OUT", help="folder of the set; other splits in it stay")
    synth.add_argument(
        "--split", choices=["train", "val", "test"], default="train", help="which to make (default train)"
    )
    synth.add_argument("--videos", type=count, default=20, metavar="N", help="how many videos (default 20)")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="another one makes other videos (default 0)")
    synth.add_argument(
        "--assets", type=Path, metavar="DIR", help="folder of cut-outs and sounds (default: the program draws its own)"
    )
    synth.add_argument("--protocol", type=Path, metavar="FILE", help="how to make scenes (default: protocol_v1.json)")
    synth.add_argument("--streams", action="store_true", help="make videos of minutes, by streams_v1.json")
    synth.add_argument("--photographs", action="store_true", help="use only real, labelled photographs as scenes")
    synth.add_argument(
        "--classes", metavar="NAMES",
        help='only these, with commas between; or "disjoint": those that no other split has (default: all)',
    )  # fmt: skip
    synth.add_argument("--films", action="store_true", help="also write an MP4 of each scene at camera rate")
    synth.add_argument("--force", action="store_true", help="replace a split that is there")

    score = commands.add("eval", _eval, "score predictions")
    add_data_options(score, required=True)
    score.add_argument("--split", required=True, metavar="NAME", help="DIR/NAME.json holds the truth")
    answers = score.add_mutually_exclusive_group(required=True)
    answers.add_argument("--predictions", type=Path, metavar="FILE", help="score these answers, in AVISeg's form")
    add_model_options(score, weights=answers)
    score.add_argument(
        "--mode", choices=["offline", "online"], default="offline", action=Noted,
        help="with --weights, offline: each video as a whole (default); online: each frame when it comes",
    )  # fmt: skip
    score.add_argument("--save", type=Path, metavar="FILE", help="with --weights, also write the model's answers")
    score.add_argument(
        "--metrics", choices=["official", "fixed", "paper"],
        help="as the official program computes them (default), without its mistakes, or as the paper defines them",
    )  # fmt: skip
    score.add_argument(
        "--as-live", type=Path, metavar="FILE",
        help="score what had been delivered at each instant, with the latencies of these live results (JSON "
        "lines; recordings need --realtime to have any)",
    )  # fmt: skip
    score.add_argument("--semantic", action="store_true", help="also print mIoU and F-score of pixels")

    importer = commands.add("import", _import, "make a data set of another tool's labels")
    importer.add_argument("source", type=Path, metavar="SRC", help="the tool's file or folder")
    importer.add_argument("out", type=Path, metavar="OUT", help="folder of the set")
    importer.add_argument(
        "--from",
        choices=["coco", "ytvis", "isat", "cvat"],
        required=True,
        dest="kind",
        help="whose form the labels have",
    )
    importer.add_argument("--split", default="train", metavar="NAME", help="which split of the set (default train)")
    importer.add_argument("--images", type=Path, metavar="DIR", help="where the images lie, if not beside the labels")
    importer.add_argument("--audio", type=Path, metavar="DIR", help="folder of recordings, named like the videos")
    importer.add_argument("--force", action="store_true", help="replace a split that is there")

    labels = commands.add("labels", _labels, "write answers or truth as labels that people correct with a tool")
    labels.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    labels.add_argument("--to", choices=["ytvis", "isat", "cvat"], required=True, dest="kind", help="for which tool")
    labels.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in AVISeg's layout")
    labels.add_argument("--split", required=True, metavar="NAME", help="which split of it")
    labels.add_argument("--predictions", type=Path, metavar="FILE", help="write these answers (default: the truth)")
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

    if options.predictions is not None:
        _refuse_beside_predictions(options)
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

        model = load_model(options)
        online = OnlineConfig.of(model.config) if options.mode == "online" else None
        text = evaluate_model(model, options.data, options.split, wanted, keep=options.save, online=online)
    sys.stdout.write(text + "\n")


def _refuse_beside_predictions(options: argparse.Namespace) -> None:
    """Refuses what is about a model, where none is asked."""
    given = {
        "--save": options.save,
        "--mode": is_given(options, "mode"),
        "--model": is_given(options, "model"),
        "--audio-weights": options.audio_weights,
        "--device": is_given(options, "device"),
        "--precision": is_given(options, "precision"),
        "--set": options.settings,
    }
    refuse(given, "--predictions are scored as they are, no model is asked")


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
