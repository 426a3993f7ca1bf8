"""`train`, `convert` and `export`: how weights come about, and where they go."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avis_stream.checks import refuse
from avis_stream.cli.options import (
    Commands,
    Noted,
    add_audio_weights_option,
    add_settings_option,
    add_weights_option,
    count,
    height_width,
    is_given,
    load_model,
)
from avis_stream.presets import PRESETS


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    train = commands.add("train", _train, "train a model")
    train.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help='folder with train.json; or "synth", "synth:ASSETS", or "synth:ASSETS:MORE" with more recordings',
    )
    train.add_argument(
        "--model",
        choices=list(PRESETS),
        default="avism_mini",
        action=Noted,
        help="which model (default avism_mini)",
    )
    train.add_argument("--init", metavar="FILE", help='weights to begin with, as far as they fit; or "bundled"')
    train.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with the run in this folder, its model and schedule"
    )
    train.add_argument(
        "--out",
        type=Path,
        default=Path("out/train"),
        action=Noted,
        help="folder for checkpoints, log and weights (default out/train)",
    )
    train.add_argument("--force", action="store_true", help="begin anew in a folder that holds a run")
    add_audio_weights_option(train)
    train.add_argument("--device", default="cpu", help="cpu (default) or cuda; torchrun gives each process its own")
    train.add_argument("--val", type=Path, metavar="DIR", help="folder with val.json (default: that of --data)")
    add_settings_option(train, " or, with train. before them, of the training")

    convert = commands.add(
        "convert", _convert, "make a .safetensors of an official checkpoint, or of ours with other settings"
    )
    convert.add_argument(
        "source", type=Path, metavar="OFFICIAL.pth", help="official checkpoint, or a .safetensors to change settings of"
    )
    convert.add_argument("target", type=Path, metavar="OUT.safetensors", help="file to write")
    add_audio_weights_option(convert)
    convert.add_argument("--half", action="store_true", help="store as float16")
    add_settings_option(convert)

    export = commands.add("export", _export, "write a model as programs that need no Python code of ours")
    export.add_argument("model", choices=list(PRESETS), metavar="MODEL", help=", ".join(PRESETS))
    export.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add_weights_option(export)
    add_audio_weights_option(export)
    export.add_argument(
        "--size", type=height_width, metavar="HxW", help="size of the padded picture (default: that of a 16:9 video)"
    )
    export.add_argument("--no-compile", action="store_true", help="torch.export only, without AOTInductor")
    export.add_argument(
        "--phases",
        type=count,
        metavar="N",
        help="export only the first N phases of the tracker's window, of which it has as many as frames (default: all)",
    )
    add_settings_option(export)
    export.set_defaults(device="cpu", precision="float32")
    export.add_argument("--force", action="store_true", help="replace what is there")


def _train(options: argparse.Namespace) -> None:
    from avis_stream.commands.train import run_training

    if options.resume is not None:
        _refuse_beside_resume(options)
    written = run_training(
        options.data,
        options.model,
        options.out,
        init=options.init,
        resume=options.resume,
        settings=options.settings,
        validation=options.val,
        audio_weights=options.audio_weights,
        device=options.device,
        force=options.force,
    )
    sys.stderr.write(f"trained: {written}\n")


def _refuse_beside_resume(options: argparse.Namespace) -> None:
    """Refuses what a run that goes on would pass over."""
    given = {
        "--init": options.init,
        "--force": options.force,
        "--audio-weights": options.audio_weights,
        "--model": is_given(options, "model"),
        "--out": is_given(options, "out"),
    }
    refuse(given, "--resume goes on with a run as it is, in its folder")


def _convert(options: argparse.Namespace) -> None:
    from avis_stream.commands.convert import convert

    line = convert(options.source, options.target, options.audio_weights, half=options.half, settings=options.settings)
    sys.stdout.write(line + "\n")


def _export(options: argparse.Namespace) -> None:
    from avis_stream.commands.export import export_model
    from avis_stream.commands.output import output_folder
    from avis_stream.models.preprocess import network_size

    model = load_model(options)
    size = options.size
    if size is None:
        divisor = model.config.input.size_divisor
        height, width = network_size(720, 1280, model.config.input)
        size = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    with output_folder(options.out, force=options.force) as folder:
        export_model(
            model,
            folder,
            size,
            lambda line: sys.stderr.write(line + "\n"),
            compiled=not options.no_compile,
            phases=options.phases,
        )
    sys.stderr.write(f"exported {options.model} for {size[0]}x{size[1]}: {options.out}\n")
