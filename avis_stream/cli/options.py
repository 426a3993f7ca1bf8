"""Options that commands share, and what their words mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from avis_stream.errors import ConfigError
from avis_stream.memory import parse_bytes
from avis_stream.presets import PRESETS

Run = Callable[[argparse.Namespace], None]


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")
        self._common = argparse.ArgumentParser(add_help=False)
        self._common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add(self, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        """A command that calls `run` with its options; returns its parser."""
        parser = self._commands.add_parser(name, parents=[self._common], help=summary)
        parser.set_defaults(command=run)
        return parser


def add_data_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Of commands about a data set."""
    parser.add_argument("--data", type=Path, required=required, metavar="DIR", help="data set in AVISeg's layout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as a picture")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Where pictures and sound come from, and what may be dropped."""
    parser.add_argument(
        "--video", default="0", metavar="SOURCE",
        help="camera (0), file, rtsp:// or another address, gst:PIPELINE, synthetic://flashbeep (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--audio", metavar="SOURCE",
        help="source (comes with the video), mic, mic:NAME, a file, or none (default: mic with a camera, else source)",
    )  # fmt: skip
    parser.add_argument("--policy", choices=["auto", "latest", "every"], default="auto", help="what may be dropped")
    parser.add_argument("--max-latency-ms", type=count, default=500, metavar="N")
    parser.add_argument("--audio-offset-ms", type=int, default=0, metavar="N", help="added to the time of sound")
    parser.add_argument("--backend", choices=["auto", "gstreamer", "ffmpeg"], default="auto", help="reads addresses")
    parser.add_argument("--fps", type=float, help="of a file: frames a second to look at (default: all)")
    parser.add_argument("--realtime", action="store_true", help="of a file: at its own pace")
    parser.add_argument("--threads", type=count, metavar="N", help="of the model (default: half of the cores)")


def add_model_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Which model, with which weights, where."""
    parser.add_argument("--model", choices=list(PRESETS), default=default)
    parser.add_argument("--weights", metavar="FILE", help='an official .pth or a .safetensors; "random" for a dry run')
    parser.add_argument("--audio-weights", metavar="FILE", help="VGGish weights, for official checkpoints")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings")


def count(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


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
