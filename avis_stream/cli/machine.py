"""`bench`, `devices`, `doctor`, `gst` and `info`: what is here, what is missing, how fast it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avis_stream.checks import refuse
from avis_stream.cli.options import Commands, Noted, add_data_options, is_given
from avis_stream.presets import PRESETS


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    bench = commands.add("bench", _bench, "measure this machine and this code, from a clone")
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("out/bench"),
        metavar="DIR",
        help="folder for the figures, as JSON (default out/bench)",
    )
    bench.add_argument("--docs", type=Path, metavar="FILE", help="also write the table to this Markdown file")
    bench.add_argument(
        "-k", dest="select", metavar="EXPRESSION", help="run only benchmarks whose names match, as pytest -k"
    )
    bench.add_argument(
        "--rounds", type=int, default=0, metavar="N", help="run each at most N times, to see that they run"
    )

    commands.add("devices", _devices, "list cameras and microphones")

    doctor = commands.add("doctor", _doctor, "say what is missing on this machine, or wrong with a data set")
    doctor.add_argument("--data", type=Path, metavar="DIR", help="check this data set instead")
    doctor.add_argument(
        "--av-sync", metavar="VIDEO", help="measure sound against pictures of a source that watches the clip of --clip"
    )
    doctor.add_argument(
        "--audio", default="source", metavar="SOURCE", action=Noted,
        help="with --av-sync: source (default), mic, mic:NAME",
    )  # fmt: skip
    doctor.add_argument(
        "--clip", type=Path, metavar="FILE", help="write the flash-and-beep clip (MP4) to show to a camera"
    )

    gst = commands.add("gst", _gst, "print what GStreamer needs to find the element avisseg")
    gst.add_argument("what", choices=["env"], help='use: eval "$(avis-stream gst env)"')

    info = commands.add("info", _info, "say what is installed, what is in a data set, or what can be set")
    add_data_options(info, required=False)
    info.add_argument(
        "--settings", choices=list(PRESETS), metavar="MODEL",
        help="list everything that --set changes, with the values of this model and of its training",
    )  # fmt: skip


def _bench(options: argparse.Namespace) -> None:
    from avis_stream.commands.bench import run_bench

    sys.stdout.write(run_bench(options.out, options.docs, select=options.select, rounds=options.rounds))


def _devices(options: argparse.Namespace) -> None:
    from avis_stream.commands.devices import print_devices

    print_devices(sys.stdout)


def _doctor(options: argparse.Namespace) -> None:
    measuring = {"--av-sync": options.av_sync is not None, "--audio": is_given(options, "audio")}
    if options.data is not None:
        refuse({"--clip": options.clip} | measuring, "with --data a data set is checked instead of this machine")
        from avis_stream.commands.data import check_data

        check_data(options.data, sys.stdout)
        return
    from avis_stream.commands.doctor import examine, write_flash_and_beep

    if options.clip is not None:
        refuse(measuring, "--clip writes what a source has to see before it can be measured")
        write_flash_and_beep(options.clip, 60.0)
        sys.stderr.write(f"{options.clip}: show it to the camera, near the microphone\n")
        return
    if options.av_sync is None:
        refuse(measuring, "without --av-sync no sound is measured")
    examine(sys.stdout, skew_of_source=None if options.av_sync is None else (options.av_sync, options.audio))


def _gst(options: argparse.Namespace) -> None:
    from avis_stream.commands.gst import print_environment

    sys.stdout.write(print_environment() + "\n")


def _info(options: argparse.Namespace) -> None:
    written = {"--json": options.json, "--plot": options.plot}
    if options.settings is not None:
        refuse({"--data": options.data} | written, "--settings lists what can be set, and nothing else")
        from avis_stream.commands.info import print_settings

        print_settings(options.settings, sys.stdout)
    elif options.data is None:
        refuse(written, "without --data there are no figures to write")
        from avis_stream.commands.info import print_info

        print_info(sys.stdout)
    else:
        from avis_stream.commands.data import describe_data

        describe_data(options.data, sys.stdout, json_file=options.json, plot_file=options.plot)
