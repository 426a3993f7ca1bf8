"""`demo` and `run`: a recording, from a file to a folder of results."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from avis_stream.cli.options import Commands, add_model_options, add_threads_option, load_model, size
from avis_stream.errors import ConfigError, MediaError


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    demo = commands.add("demo", _demo, "segment the clip that comes with the package")
    demo.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="output folder, replaced if there (default out/demo)"
    )

    add_threads_option(demo)

    run = commands.add("run", _run, "segment a recording")
    run.add_argument(
        "input", type=Path, metavar="INPUT", help="media file, folder of images, or video of an AVISeg set"
    )
    run.add_argument(
        "--audio", type=Path, metavar="PATH", help="file with the sound, if the recording has none of its own"
    )
    run.add_argument(
        "--fps", type=float, default=1.0, help="segment so many frames a second (default 1, as in training)"
    )
    run.add_argument(
        "--mode", choices=["offline", "online"], default="offline",
        help="offline: segment the recording as a whole (default); online: segment each frame when it comes, knowing "
        "nothing of later ones, as live does",
    )  # fmt: skip
    run.add_argument(
        "--save-masks", choices=["png", "rle", "none"], default="none",
        help="also write all masks: png, pictures of ids; rle, run lengths in masks.json (default none)",
    )  # fmt: skip
    run.add_argument("--no-video", action="store_true", help="do not write overlay.mp4")
    run.add_argument(
        "--overlay", choices=["auto", "camera", "sampled"], default="auto",
        help="frames in overlay.mp4: all that the camera took, or only those of --fps (default auto: all with "
        "avism_mini, else those of --fps)",
    )  # fmt: skip
    run.add_argument(
        "--memory-budget",
        type=size,
        metavar="SIZE",
        help="memory for mask features, such as 2G (default: half of what is free)",
    )
    run.add_argument("--out", type=Path, help="output folder (default out/NAME, NAME being the recording's)")
    run.add_argument("--force", action="store_true", help="replace results that are there")
    add_threads_option(run)
    add_model_options(run)


def _demo(options: argparse.Namespace) -> None:
    from avis_stream.commands.demo import run_demo
    from avis_stream.commands.output import output_folder

    with output_folder(options.out, force=True) as folder, _threads(options):
        result = run_demo(folder)
    _report(len(result), result.frames, options.out)


def _run(options: argparse.Namespace) -> None:
    from avis_stream.commands.output import output_folder
    from avis_stream.commands.run import RunOptions, run_offline
    from avis_stream.commands.run_online import run_online
    from avis_stream.sources.file import open_clip

    if options.mode == "online" and options.memory_budget is not None:
        raise ConfigError("--memory-budget has no meaning with --mode online, whose memory is constant; leave it out")
    if options.mode == "online" and options.overlay == "camera":
        raise ConfigError("--overlay camera is not for --mode online, which draws what it was shown; leave it out")
    model = load_model(options)
    clip = open_clip(options.input, audio=options.audio, fps=options.fps, previous=model.wants_previous)
    out = options.out or Path("out") / clip.name
    wanted = RunOptions(
        save_masks=options.save_masks,
        video=not options.no_video,
        overlay=options.overlay,
        memory_bytes=options.memory_budget,
    )
    with output_folder(out, force=options.force) as folder, _threads(options):
        if options.mode == "online":
            stream = run_online(model, clip, folder, wanted)
            found, frames = stream.sounding, stream.frames
        else:
            result = run_offline(model, clip, folder, wanted)
            found, frames = len(result), result.frames
    if clip.broken is not None:
        raise MediaError(f"{clip.broken}; the results up to there are in {out}")
    _report(found, frames, out)


def _threads(options: argparse.Namespace) -> AbstractContextManager[None]:
    """The model's threads, which leave the cores to decoders and encoders while they wait for each other."""
    from avis_stream.stream.cores import model_threads, usual_threads

    return model_threads(options.threads or usual_threads())


def _report(objects: int, frames: int, out: Path) -> None:
    sys.stderr.write(f"{objects} sounding objects in {frames} frames; results are in {out}\n")
