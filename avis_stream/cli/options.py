"""Options that commands share, and what their words mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from avis_stream.errors import ConfigError
from avis_stream.memory import parse_bytes
from avis_stream.presets import PRESETS

if TYPE_CHECKING:
    from avis_stream.models.avism import AVISM

_HOPS = (0.04, 10.0)
"""Seconds between steps of a live stream: each frame of a camera at 25 a second, to so long that people come and go."""

_GIVEN = "_given"
"""Where parsed options keep the names of those that were given."""

_MODEL = "avism_mini"
"""Of every command: the one that has bundled weights."""

Run = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where all options are explained."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")


class Noted(argparse.Action):
    """An option of which `is_given` knows whether it was given, though it has a default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.__dict__.setdefault(_GIVEN, set()).add(self.dest)
        setattr(namespace, self.dest, values)


def is_given(options: argparse.Namespace, name: str) -> bool:
    """Whether a `Noted` option was given."""
    return name in getattr(options, _GIVEN, ())


class _Once(Noted):
    """An option that would silently forget what it was told first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if is_given(namespace, self.dest):
            parser.error(f"argument {option}: must be given once, a command reads one source")
        super().__call__(parser, namespace, values, option)


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")
        self._common = argparse.ArgumentParser(add_help=False)
        self._common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add(self, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        """A command that calls `run` with its options; returns its parser."""
        about = summary[0].upper() + summary[1:] + "."
        parser = self._commands.add_parser(name, parents=[self._common], help=summary, description=about)
        parser.set_defaults(command=run)
        return parser


def add_data_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Of commands about a data set."""
    parser.add_argument("--data", type=Path, required=required, metavar="DIR", help="data set in AVISeg's layout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file, as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them into this file, as a picture")


def add_source_options(parser: argparse.ArgumentParser, *, realtime: bool = False) -> None:
    """Where pictures and sound come from, and what may be dropped; `realtime`: files are played at their own pace."""
    parser.add_argument(
        "--video", default="0", metavar="SOURCE", action=_Once,
        help="where pictures come from: the number of a camera, a file, rtsp:// or another address, gst:PIPELINE, or "
        "synthetic://flashbeep (default 0, the first camera)",
    )  # fmt: skip
    parser.add_argument(
        "--audio", metavar="SOURCE", action=_Once,
        help="where sound comes from: source (the same as the pictures), mic, mic:NAME, a file, or none (default: mic "
        "with a camera, else source)",
    )  # fmt: skip
    parser.add_argument(
        "--policy", choices=["auto", "latest", "every"], default="auto",
        help="which frames get a result when the model is slower than the camera; auto: those that are not too old "
        "(default); latest: only the newest; every: all, however late",
    )  # fmt: skip
    parser.add_argument(
        "--max-latency-ms", type=count, default=500, metavar="N",
        help="with --policy auto, skip a frame that is older than this if there is a newer one (default 500)",
    )  # fmt: skip
    parser.add_argument(
        "--audio-offset-ms", type=int, default=0, metavar="N",
        help="move sound to later by this much, to earlier if negative (default 0); doctor --av-sync measures it",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=["auto", "gstreamer", "ffmpeg"], default="auto",
        help="what reads cameras and addresses (default auto: GStreamer where it is installed, else FFmpeg)",
    )  # fmt: skip
    parser.add_argument(
        "--hop", type=hop, default=1.0, metavar="SECONDS",
        help="time from one step of the tracker, which says who is there, to the next; in between masks and who sounds "
        "follow every frame (default 1, as models were trained)",
    )  # fmt: skip
    parser.add_argument("--fps", type=float, help="segment so many frames of each second of a file (default: all)")
    usual = "at its own pace" if realtime else "as fast as can be"
    parser.add_argument(
        "--realtime", action=argparse.BooleanOptionalAction, default=realtime,
        help=f"play a file at its own pace, or as fast as can be (default: {usual})",
    )  # fmt: skip
    add_threads_option(parser)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Of the CPU."""
    parser.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="CPU threads of the model (default: all cores up to 4, then half of them)",
    )


def add_model_options(parser: argparse.ArgumentParser, *, weights: argparse._ActionsContainer | None = None) -> None:
    """Which model, with which weights, where; read by `load_model`.

    Args:
        parser: Of the command.
        weights: The group that `--weights` belongs to, where a command offers something else instead.
    """
    parser.add_argument(
        "--model", choices=list(PRESETS), default=_MODEL, action=Noted,
        help=f"which model (default {_MODEL}); a .safetensors file says so itself",
    )  # fmt: skip
    add_weights_option(weights or parser, default=weights is None)
    add_audio_weights_option(parser)
    parser.add_argument(
        "--device", default="cpu", action=Noted, help="where to compute, such as cuda or cuda:1 (default cpu)"
    )
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", action=Noted,
        help="of what looks at pixels (default float32); bfloat16 is faster on GPUs and on CPUs that have it",
    )  # fmt: skip
    add_settings_option(parser)


def add_weights_option(parser: argparse._ActionsContainer, *, default: bool = True) -> None:
    """What a model has learnt; `default`: whether it is the bundled weights if nothing is said."""
    bundled = '"bundled" (the default)' if default else '"bundled"'
    parser.add_argument(
        "--weights", metavar="FILE",
        help=f'weights: an official .pth, a .safetensors, a last.pt of train, {bundled}, or "random" for a dry run',
    )  # fmt: skip


def add_audio_weights_option(parser: argparse.ArgumentParser) -> None:
    """For models that hear through VGGish."""
    parser.add_argument(
        "--audio-weights", type=Path, metavar="FILE", help="public VGGish weights, which official models hear with"
    )


def add_settings_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Changes of a configuration, any number of them; `more`: what else can be changed."""
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings",
        help=f"change settings of the model{more}, such as postprocess.score_threshold=0.4",
    )  # fmt: skip


def load_model(options: argparse.Namespace) -> AVISM:
    """The model that the options of `add_model_options` ask for."""
    from avis_stream.weights import load

    return load(
        options.model, options.weights, options.device, audio_weights=options.audio_weights, settings=options.settings,
        precision=options.precision,
    )  # fmt: skip


def count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A time that passes."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, got {text!r}")
    return value


def hop(text: str) -> float:
    """Seconds between two steps of a live stream."""
    least, most = _HOPS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(
            f"must be from {least:g} to {most:g} seconds, got {text!r}: in a shorter hop no new frame comes, and "
            "in a longer one people come and go unseen"
        )
    return seconds


def height_width(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, such as 384x640, got {text!r}")
    return int(height), int(width)


def size(text: str) -> int:
    """Bytes, such as 2G."""
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
