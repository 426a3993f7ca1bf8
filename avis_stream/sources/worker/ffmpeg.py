"""Addresses and devices that FFmpeg opens, by PyAV."""

from __future__ import annotations

import json
from typing import Any

from .tracks import default_first
from .wire import AUDIO, NO_STAMP, OPENED, SAMPLE_RATE, VIDEO, Ended, Hopeless, Outlet, words_of


def read_ffmpeg(wanted: dict[str, Any], out: Outlet) -> None:
    """An address or a device that FFmpeg opens."""
    try:
        import av
    except ImportError as error:
        raise Hopeless(f"PyAV cannot be imported ({error}); pip install av") from error
    av.logging.set_level(av.logging.PANIC)
    try:
        container = av.open(
            wanted["url"],
            format=wanted.get("format"),
            options=wanted.get("options", {}),
            timeout=(wanted["open_seconds"], wanted["stall_seconds"]),
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise Ended(words_of(error)) from error
    with container:
        video = next(iter(container.streams.video), None)
        sound = next(iter(default_first(container.streams.audio)), None) if wanted["audio"] else None
        if video is None and wanted["video"]:
            raise Ended("no video in it")
        finite = not wanted["url"].startswith(("rtsp", "/dev/")) and (
            (container.duration or 0) > 0 or (wanted["url"].startswith("http") and container.size > 0)
        )
        out.send(OPENED, json.dumps({"audio": sound is not None, "finite": finite}).encode())
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        streams = [s for s in (video if wanted["video"] else None, sound) if s is not None]
        try:
            for packet in container.demux(streams):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    out.lost += packet.stream.type == "video"  # damaged; the next one may be whole
                    continue
                for frame in frames:
                    _send_decoded(frame, resampler, out)
        except (av.FFmpegError, OSError) as error:
            silent = f"nothing came for {wanted['stall_seconds']:g} s"
            raise Ended(silent if type(error).__name__ == "ExitError" else words_of(error)) from error
    raise Ended("finished" if finite else "end of stream")


def _send_decoded(frame: Any, resampler: Any, out: Outlet) -> None:
    stamp = NO_STAMP if frame.time is None else round(frame.time * 1e9)
    if hasattr(frame, "samples"):
        for part in resampler.resample(frame):
            time_ns = stamp if part.time is None else round(part.time * 1e9)
            out.send(AUDIO, part.to_ndarray().reshape(-1).tobytes(), time_ns, SAMPLE_RATE)
    else:
        picture = frame.to_ndarray(format="rgb24")
        out.send(VIDEO, picture.tobytes(), stamp, frame.width, frame.height)
