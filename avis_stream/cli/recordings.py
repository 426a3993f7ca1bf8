"""`demo` and `run`: a recording, from a file to a folder of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avis_stream.cli.options import Commands, add_model_options, size
from avis_stream.errors import ConfigError, MediaError


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    demo = commands.add("demo", _demo, "segment the clip that comes with the package")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="output folder (default out/demo), replaced")

    run = commands.add("run", _run, "segment a recording")
    run.add_argument("input", type=Path, metavar="INPUT", help="media file, folder of images, or AVISeg video folder")
    run.add_argument("--audio", type=Path, metavar="PATH", help="sound, if it is in a file of its own")
    run.add_argument("--fps", type=float, default=1.0, help="frames a second to look at (default 1, as trained)")
    run.add_argument(
        "--mode", choices=["offline", "online"], default="offline",
        help="offline: the recording as a whole (default); online: frame by frame, as if it were live",
    )  # fmt: skip
    run.add_argument("--save-masks", choices=["png", "rle", "none"], default="none")
    run.add_argument("--no-video", action="store_true", help="do not write overlay.mp4")
    run.add_argument(
        "--overlay", choices=["auto", "camera", "sampled"], default="auto",
        help="rate of overlay.mp4: the camera's, or that of the sampled frames (default: the camera's for avism_mini)",
    )  # fmt: skip
    run.add_argument("--memory-budget", type=size, metavar="SIZE", help="for mask features, e.g. 2G (default: half)")
    run.add_argument("--out", type=Path, help="output folder (default out/NAME)")
    run.add_argument("--force", action="store_true", help="replace results that are there")
    add_model_options(run, default="avism_r50_coco")


def _demo(options: argparse.Namespace) -> None:
    from avis_stream.commands.demo import run_demo
    from avis_stream.commands.output import output_folder

    with output_folder(options.out, force=True) as folder:
        result = run_demo(folder)
    _report(len(result), result.frames, options.out)


def _run(options: argparse.Namespace) -> None:
    from avis_stream.commands.output import output_folder
    from avis_stream.commands.run import RunOptions, run_offline
    from avis_stream.commands.run_online import run_online
    from avis_stream.sources.file import open_clip
    from avis_stream.weights import load

    if options.mode == "online" and options.memory_budget is not None:
        raise ConfigError("--memory-budget has no meaning with --mode online, whose memory is constant; leave it out")
    model = load(
        options.model,
        options.weights,
        options.device,
        audio_weights=options.audio_weights,
        settings=options.settings,
    )
    clip = open_clip(options.input, audio=options.audio, fps=options.fps, previous=model.wants_previous)
    out = options.out or Path("out") / clip.name
    wanted = RunOptions(
        save_masks=options.save_masks,
        video=not options.no_video,
        overlay=options.overlay,
        memory_bytes=options.memory_budget,
    )
    with output_folder(out, force=options.force) as folder:
        if options.mode == "online":
            stream = run_online(model, clip, folder, wanted)
            found, frames = stream.identities, stream.frames
        else:
            result = run_offline(model, clip, folder, wanted)
            found, frames = len(result), result.frames
    if clip.broken is not None:
        raise MediaError(f"{clip.broken}; the results up to there are in {out}")
    _report(found, frames, out)


def _report(objects: int, frames: int, out: Path) -> None:
    sys.stderr.write(f"{objects} sounding objects in {frames} frames; results are in {out}\n")
