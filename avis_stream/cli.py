"""`avis-stream`, the command: reads arguments, calls `commands/`, turns errors into one sentence and an exit status.

Exit status: 0 done, 2 wrong use, 1 any other error. Results go to files or stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avis_stream._version import __version__
from avis_stream.errors import AvisStreamError, ConfigError, MediaError
from avis_stream.memory import parse_bytes
from avis_stream.presets import PRESETS

if TYPE_CHECKING:
    from avis_stream.stream.session import Session


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        options.command(options)
    except ConfigError as error:
        return _fail(error, options.debug, status=2)
    except (AvisStreamError, OSError) as error:
        return _fail(error, options.debug, status=1)
    except KeyboardInterrupt:
        sys.stderr.write("avis-stream: interrupted; nothing was written\n")
        return 1
    return 0


def _fail(error: Exception, debug: bool, status: int) -> int:
    if debug:
        raise error
    sys.stderr.write(f"avis-stream: {error}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="avis-stream", description="Which objects are making sound, where, and who.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(debug=False)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", parents=[common], help="segment the clip that comes with the package")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="output folder (default out/demo), replaced")
    demo.set_defaults(command=_demo)

    run = commands.add_parser("run", parents=[common], help="segment a recording")
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
    run.add_argument("--memory-budget", type=_size, metavar="SIZE", help="for mask features, e.g. 2G (default: half)")
    run.add_argument("--out", type=Path, help="output folder (default out/NAME)")
    run.add_argument("--force", action="store_true", help="replace results that are there")
    _add_model_options(run, default="avism_r50_coco")
    run.set_defaults(command=_run)

    synth = commands.add_parser("synth", parents=[common], help="make a data set whose truth is known")
    synth.add_argument("out", type=Path, metavar="OUT")
    synth.add_argument("--split", choices=["train", "val", "test"], default="train")
    synth.add_argument("--videos", type=_count, default=20, metavar="N")
    synth.add_argument("--seed", type=int, default=0, metavar="N")
    synth.add_argument("--assets", type=Path, metavar="DIR", help="cut-outs and sounds; without: drawn by the program")
    synth.add_argument("--protocol", type=Path, metavar="FILE", help="instead of the frozen protocol_v1.json")
    synth.add_argument("--streams", action="store_true", help="minutes long, by the frozen streams_v1.json")
    synth.add_argument("--photographs", action="store_true", help="only real labelled photographs as scenes")
    synth.add_argument("--classes", metavar="NAMES", help="with commas, or disjoint: those that splits do not share")
    synth.add_argument("--films", action="store_true", help="also an MP4 of each scene at camera rate")
    synth.add_argument("--force", action="store_true", help="replace a split that is there")
    synth.set_defaults(command=_synth)

    score = commands.add_parser("eval", parents=[common], help="score predictions")
    _add_data_options(score, required=True)
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
    score.set_defaults(command=_eval)

    train = commands.add_parser("train", parents=[common], help="train a model")
    train.add_argument("--data", required=True, metavar="DIR", help='folder with train.json, "synth" or "synth:ASSETS"')
    train.add_argument("--model", choices=list(PRESETS), default="avism_mini")
    train.add_argument("--init", type=Path, metavar="FILE", help="weights to begin with; what fits is taken")
    train.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    train.add_argument("--out", type=Path, default=Path("out/train"), help="for checkpoints, log and weights")
    train.add_argument("--val", type=Path, metavar="DIR", help="folder with val.json (default: that of --data)")
    train.add_argument("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    train.set_defaults(command=_train)

    convert = commands.add_parser("convert", parents=[common], help="official checkpoint, or ours, to .safetensors")
    convert.add_argument("source", type=Path, metavar="OFFICIAL.pth", help="or a .safetensors whose settings change")
    convert.add_argument("target", type=Path, metavar="OUT.safetensors")
    convert.add_argument("--audio-weights", type=Path, metavar="FILE", help="VGGish weights to put in as well")
    convert.add_argument("--half", action="store_true", help="store as float16")
    convert.add_argument("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    convert.set_defaults(command=_convert)

    export = commands.add_parser(
        "export", parents=[common], help="a model as programs that need no Python code of ours"
    )
    export.add_argument("model", choices=list(PRESETS), metavar="MODEL", help=", ".join(PRESETS))
    export.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    export.add_argument("--weights", metavar="FILE", help='an official .pth or a .safetensors; "random" for a dry run')
    export.add_argument("--audio-weights", metavar="FILE", help="VGGish weights, for official checkpoints")
    export.add_argument("--size", type=_height_width, metavar="HxW", help="padded picture (default: of a 16:9 video)")
    export.add_argument("--no-compile", action="store_true", help="torch.export only, without AOTInductor")
    export.add_argument("--phases", type=_count, metavar="N", help="of the tracker's window (default: all)")
    export.add_argument("--set", action="extend", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings")
    export.add_argument("--force", action="store_true", help="replace what is there")
    export.set_defaults(command=_export)

    bench = commands.add_parser("bench", parents=[common], help="measure this machine and this code, from a clone")
    bench.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="for the JSON")
    bench.add_argument("--docs", type=Path, metavar="FILE", help="Markdown file for the table (default: stdout alone)")
    bench.add_argument("-k", dest="select", metavar="EXPRESSION", help="only benchmarks with such names")
    bench.add_argument("--rounds", type=int, default=0, metavar="N", help="at most N each, to see that they run")
    bench.set_defaults(command=_bench)

    importer = commands.add_parser("import", parents=[common], help="labels of another tool to a data set")
    importer.add_argument("source", type=Path, metavar="SRC", help="the tool's file or folder")
    importer.add_argument("out", type=Path, metavar="OUT", help="folder of the set")
    importer.add_argument("--from", choices=["coco", "ytvis", "isat", "cvat"], required=True, dest="kind")
    importer.add_argument("--split", default="train", metavar="NAME")
    importer.add_argument("--images", type=Path, metavar="DIR", help="where the images lie, if not beside the labels")
    importer.add_argument("--audio", type=Path, metavar="DIR", help="recordings named like the videos")
    importer.add_argument("--force", action="store_true", help="replace a split that is there")
    importer.set_defaults(command=_import)

    labels = commands.add_parser("labels", parents=[common], help="answers or truth to where people correct them")
    labels.add_argument("out", type=Path, metavar="OUT")
    labels.add_argument("--to", choices=["ytvis", "isat", "cvat"], required=True, dest="kind")
    labels.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in AVISeg's layout")
    labels.add_argument("--split", required=True, metavar="NAME")
    labels.add_argument("--predictions", type=Path, metavar="FILE", help="answers (default: the truth)")
    labels.add_argument("--force", action="store_true", help="write into a folder that holds files")
    labels.set_defaults(command=_labels)

    live = commands.add_parser("live", parents=[common], help="segment what a camera and a microphone get")
    _add_source_options(live)
    live.add_argument("--json", metavar="FILE", help='JSON lines; "-" for standard output')
    live.add_argument("--save", type=Path, metavar="FILE", help="a film (MP4) with masks and sound")
    live.add_argument("--summary", type=Path, metavar="FILE", help="all statistics at the end, as JSON")
    live.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds")
    _add_model_options(live, default="avism_mini")
    live.set_defaults(command=_live)

    serve = commands.add_parser("serve", parents=[common], help="the same on a page, for people and programs")
    _add_source_options(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=_count, default=8080)
    serve.add_argument("--token", help="asked of every visitor (default: none on loopback, else one is made up)")
    _add_model_options(serve, default="avism_mini")
    serve.set_defaults(command=_serve)

    devices = commands.add_parser("devices", parents=[common], help="list cameras and microphones")
    devices.set_defaults(command=_devices)

    doctor = commands.add_parser("doctor", parents=[common], help="what is missing here, or wrong with a data set")
    doctor.add_argument("--data", type=Path, metavar="DIR", help="check a data set instead")
    doctor.add_argument(
        "--av-sync", metavar="VIDEO", help="measure a source that looks at the flash-and-beep clip (--clip)"
    )
    doctor.add_argument("--audio", default="source", metavar="SOURCE", help="with --av-sync: source, mic, mic:NAME")
    doctor.add_argument("--clip", type=Path, metavar="FILE", help="only write the flash-and-beep clip (MP4)")
    doctor.set_defaults(command=_doctor)

    gst = commands.add_parser("gst", parents=[common], help="what GStreamer needs to find the element avisseg")
    gst.add_argument("what", choices=["env"], help='use: eval "$(avis-stream gst env)"')
    gst.set_defaults(command=_gst)

    info = commands.add_parser("info", parents=[common], help="what is installed, or what is in a data set")
    _add_data_options(info, required=False)
    info.set_defaults(command=_info)
    return parser


def _add_data_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--data", type=Path, required=required, metavar="DIR", help="data set in AVISeg's layout")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything, as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as a picture")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--video", default="0", metavar="SOURCE",
        help="camera (0), file, rtsp:// or another address, gst:PIPELINE, synthetic://flashbeep (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--audio", metavar="SOURCE",
        help="source (comes with the video), mic, mic:NAME, a file, or none (default: mic with a camera, else source)",
    )  # fmt: skip
    parser.add_argument("--policy", choices=["auto", "latest", "every"], default="auto", help="what may be dropped")
    parser.add_argument("--max-latency-ms", type=_count, default=500, metavar="N")
    parser.add_argument("--audio-offset-ms", type=int, default=0, metavar="N", help="added to the time of sound")
    parser.add_argument("--backend", choices=["auto", "gstreamer", "ffmpeg"], default="auto", help="reads addresses")
    parser.add_argument("--fps", type=float, help="of a file: frames a second to look at (default: all)")
    parser.add_argument("--realtime", action="store_true", help="of a file: at its own pace")
    parser.add_argument("--threads", type=_count, metavar="N", help="of the model (default: half of the cores)")


def _add_model_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--model", choices=list(PRESETS), default=default)
    parser.add_argument("--weights", metavar="FILE", help='an official .pth or a .safetensors; "random" for a dry run')
    parser.add_argument("--audio-weights", metavar="FILE", help="VGGish weights, for official checkpoints")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, got {text!r}")
    return int(text)


def _height_width(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, such as 384x640, got {text!r}")
    return int(height), int(width)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# The commands import what they need themselves: `--help` and wrong use answer at once.


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


def _train(options: argparse.Namespace) -> None:
    from avis_stream.commands.train import run_training

    written = run_training(
        options.data,
        options.model,
        options.out,
        init=options.init,
        resume=options.resume,
        settings=options.settings,
        validation=options.val,
    )
    sys.stderr.write(f"trained: {written}\n")


def _convert(options: argparse.Namespace) -> None:
    from avis_stream.commands.convert import convert

    line = convert(options.source, options.target, options.audio_weights, half=options.half, settings=options.settings)
    sys.stdout.write(line + "\n")


def _export(options: argparse.Namespace) -> None:
    from avis_stream.commands.export import export_model
    from avis_stream.commands.output import output_folder
    from avis_stream.models.preprocess import network_size
    from avis_stream.weights import load

    model = load(options.model, options.weights, audio_weights=options.audio_weights, settings=options.settings)
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


def _bench(options: argparse.Namespace) -> None:
    from avis_stream.commands.bench import run_bench

    sys.stdout.write(run_bench(options.out, options.docs, select=options.select, rounds=options.rounds))


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


def _live(options: argparse.Namespace) -> None:
    from avis_stream.commands.live import LiveOptions, run_live

    session, classes = _session(options)
    wanted = LiveOptions(
        json=options.json, save=options.save, summary=options.summary, duration_seconds=options.duration
    )
    run_live(session, classes, wanted)


def _session(options: argparse.Namespace) -> tuple[Session, tuple[str, ...]]:
    """A session as asked for, and the model's class names."""
    from avis_stream.sources.address import video_address
    from avis_stream.stream.session import Session, SessionConfig
    from avis_stream.weights import load

    # Addresses are checked before a model is loaded.
    camera = video_address(options.video).kind == "camera"
    audio = options.audio or ("mic" if camera else "source")
    config = SessionConfig(
        policy=options.policy, max_latency_ms=options.max_latency_ms, audio_offset_ms=options.audio_offset_ms,
        num_threads=options.threads,
    )  # fmt: skip
    model = load(
        options.model,
        options.weights,
        options.device,
        audio_weights=options.audio_weights,
        settings=options.settings,
    )
    session = Session(
        model, options.video, None if audio == "none" else audio, config=config, fps=options.fps,
        realtime=True if options.realtime else None, backend=options.backend,
    )  # fmt: skip
    return session, tuple(model.classes)


def _serve(options: argparse.Namespace) -> None:
    from avis_stream.commands.serve import serve
    from avis_stream.serve.app import ServeConfig

    config = ServeConfig(host=options.host, port=options.port, token=options.token)
    serve(*_session(options), config)


def _devices(options: argparse.Namespace) -> None:
    from avis_stream.commands.devices import print_devices

    print_devices(sys.stdout)


def _gst(options: argparse.Namespace) -> None:
    from avis_stream.commands.gst import print_environment

    sys.stdout.write(print_environment() + "\n")


def _doctor(options: argparse.Namespace) -> None:
    if options.data is not None:
        from avis_stream.commands.data import check_data

        check_data(options.data, sys.stdout)
        return
    from avis_stream.commands.doctor import examine, write_flash_and_beep

    if options.clip is not None:
        write_flash_and_beep(options.clip, 60.0)
        sys.stderr.write(f"{options.clip}: show it to the camera, near the microphone\n")
        return
    examine(sys.stdout, skew_of_source=None if options.av_sync is None else (options.av_sync, options.audio))


def _info(options: argparse.Namespace) -> None:
    if options.data is None:
        from avis_stream.commands.info import print_info

        print_info(sys.stdout)
    else:
        from avis_stream.commands.data import describe_data

        describe_data(options.data, sys.stdout, json_file=options.json, plot_file=options.plot)
