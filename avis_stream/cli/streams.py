"""`live` and `serve`: what a camera and a microphone get, for files, programs and people."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avis_stream.cli.options import Commands, add_model_options, add_source_options, count, load_model, seconds

if TYPE_CHECKING:
    from avis_stream.stream.session import Session


def add_commands(commands: Commands) -> None:
    """Adds them to the program."""
    live = commands.add("live", _live, "segment what a camera and a microphone get")
    add_source_options(live)
    live.add_argument("--json", metavar="FILE", help='add JSON lines to this file; "-": standard output')
    live.add_argument("--save", type=Path, metavar="FILE", help="a film (MP4) with masks and sound, replaced if there")
    live.add_argument("--summary", type=Path, metavar="FILE", help="write all statistics at the end, as JSON")
    live.add_argument(
        "--duration", type=seconds, metavar="S",
        help="stop after so many seconds (default: never); of a file that is not played at its own pace: of it",
    )  # fmt: skip
    add_model_options(live)

    serve = commands.add("serve", _serve, "segment it and show it on a page, for people and programs")
    add_source_options(serve, realtime=True)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=count, default=8080, help="port to listen on (default 8080)")
    serve.add_argument(
        "--token", help="word that every visitor must know (default: none for this machine only, else one is made up)"
    )
    add_model_options(serve)


def _live(options: argparse.Namespace) -> None:
    from avis_stream.commands.live import LiveOptions, run_live

    wanted = LiveOptions(
        json=options.json, save=options.save, summary=options.summary, duration_seconds=options.duration
    )
    wanted.check(options.video, _audio(options))
    watch, classes = _watch(options)
    session = watch(options.video, _audio(options))
    run_live(session, classes, wanted)


def _serve(options: argparse.Namespace) -> None:
    from avis_stream.commands.serve import serve
    from avis_stream.serve.app import ServeConfig
    from avis_stream.serve.sources import Sources

    config = ServeConfig(host=options.host, port=options.port, token=options.token)
    sources = Sources(*_watch(options))
    sources.open(options.video, _audio(options))
    serve(sources, config)


def _audio(options: argparse.Namespace) -> str | None:
    from avis_stream.sources.address import video_address

    usual = "mic" if video_address(options.video).kind == "camera" else "source"
    audio: str = options.audio or usual
    return None if audio == "none" else audio


def _watch(options: argparse.Namespace) -> tuple[Callable[[str, str | None], Session], tuple[str, ...]]:
    """What makes sessions as asked for, of a source of pictures and one of sound; and the model's class names."""
    from avis_stream.online import OnlineConfig
    from avis_stream.stream.session import Session, SessionConfig

    _audio(options)  # addresses are checked before a model is loaded
    config = SessionConfig(
        policy=options.policy, max_latency_ms=options.max_latency_ms, audio_offset_ms=options.audio_offset_ms,
        num_threads=options.threads,
    )  # fmt: skip
    model = load_model(options)
    online = OnlineConfig.of(model.config, hop_seconds=options.hop)

    def watch(video: str, audio: str | None) -> Session:
        return Session(
            model, video, audio, config=config, online=online,
            fps=options.fps if video == options.video else None,  # of that file; what visitors of `serve` add is none
            realtime=True if options.realtime else None, backend=options.backend,
        )  # fmt: skip

    return watch, tuple(model.classes)
