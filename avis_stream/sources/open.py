"""From what people write to sources: `open_sources("rtsp://...", "source")`."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch

from avis_stream.checks import require
from avis_stream.errors import ConfigError, MediaError, SourceError
from avis_stream.needs import required
from avis_stream.sources.address import Address, audio_address, redacted, video_address
from avis_stream.sources.child import list_microphones
from avis_stream.sources.clip import Clip
from avis_stream.sources.container import opened
from avis_stream.sources.file import open_clip, sound_track
from avis_stream.sources.items import Item, ItemSource, Source, interleaved
from avis_stream.sources.live import LiveSource
from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.sources.synthetic import FlashBeep
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AudioChunk, AVPair, Event, VideoFrame

Backend = Literal["auto", "gstreamer", "ffmpeg"]
Video = str | int | Path | Iterable[VideoFrame | AVPair]
Audio = str | Path | Iterable[AudioChunk] | None

_RTSP = {"rtsp_transport": "tcp", "fflags": "nobuffer", "flags": "low_delay"}
_PROBE = {"probesize": "500000", "analyzeduration": "500000"}
# "synced" keeps sound and pictures together: rtspsrc's default is 40 ms off for as long as one looks.
_RTSPSRC = {"latency": 100, "protocols": "tcp", "buffer-mode": "synced", "tcp-timeout": 3_000_000}
_UDPSRC = {"buffer-size": 2_000_000}
_PART = SAMPLE_RATE // 10


def open_sources(
    video: Video, audio: Audio = "source", *, realtime: bool | None = None, fps: float | None = None,
    backend: Backend = "auto", previous: bool = True, supervision: SupervisorConfig | None = None,
) -> list[Source]:  # fmt: skip
    """The sources of a session; nothing live is opened yet, files are looked at.

    Args:
        video: Camera (`0`, `/dev/video0`), file, `rtsp://` and other addresses, `gst:` and a pipeline with appsinks
            named video and audio, `synthetic://flashbeep?fps=25`, or frames or pairs of the caller's own.
        audio: `source` (that of the video), `mic`, `mic:NAME`, a file, blocks of the caller's own, or None for silence.
        realtime: Hand out files and the caller's frames at the pace at which they happened; None: what is right for the
            kind of source.
        fps: Frames a second of a file to look at; None: all.
        backend: Reads addresses and cameras; auto: GStreamer where its Python bindings are, else FFmpeg.
        previous: Also hand out the picture 100 ms earlier, where the reader of a file can.
        supervision: Of live sources.
    Raises:
        ConfigError: An address that means nothing, or two that do not go together.
        MediaError: A file that cannot be read.
        SourceError: `AVIS_STREAM_REQUIRE` lists `gst` or `mic`, it would be needed, and is not there.
    """
    require(backend in ("auto", "gstreamer", "ffmpeg"), "backend", backend, "auto, gstreamer or ffmpeg")
    if not isinstance(video, (str, int, Path)):
        return _of_caller(video, audio, bool(realtime))
    where = video_address(video)
    sound = audio_address(audio) if audio is None or isinstance(audio, (str, Path)) else audio
    if where.kind == "file":
        return _of_file(where, sound, realtime, fps, previous, supervision)
    require(fps is None, "fps", fps, "left out unless the video is a file")
    if where.kind == "synthetic":
        scene = FlashBeep.from_options(where.options)
        wanted = where.options.get("realtime", "1") != "0" if realtime is None else realtime
        shown = where.shown.partition("?")[0]
        with_sound = sound == "source"
        main: Source = ItemSource(
            shown, _without_sound(scene.items(shown), with_sound), realtime=wanted,
            gives_pictures=True, gives_sound=with_sound,
        )  # fmt: skip
    else:
        require(realtime in (None, True), "realtime", realtime, "True or None for a live source")
        request = video_request(where, backend)
        main = LiveSource(where.shown, request, gives_pictures=True, gives_sound=sound == "source", config=supervision)
    return [main, *_sound_source(sound, supervision)]


def video_request(where: Address, backend: Backend) -> dict[str, Any]:
    """What the worker is to read for a camera, an address or a pipeline."""
    if where.kind == "pipeline":
        return {"reader": "gstreamer", "pipeline": where.text}
    if backend == "auto":
        backend = "gstreamer" if has_gstreamer() else "ffmpeg"
        if backend == "ffmpeg" and required("gst"):
            raise SourceError(
                "AVIS_STREAM_REQUIRE=gst, but GStreamer's Python bindings are not there, so FFmpeg would read this; "
                "avis-stream doctor says what to install"
            )
    if where.kind == "camera":
        return _camera_request(where.text, backend)
    if backend == "gstreamer":
        return {"reader": "gstreamer", "url": where.text, "properties": _RTSPSRC | _UDPSRC}
    rtsp = where.text.startswith("rtsp")
    return {"reader": "ffmpeg", "url": where.text, "options": (_RTSP | _PROBE) if rtsp else _PROBE}


def _camera_request(text: str, backend: Backend) -> dict[str, Any]:
    device = f"/dev/video{text}" if text.isdigit() else text
    if sys.platform.startswith("linux"):
        if backend == "ffmpeg":
            return {"reader": "ffmpeg", "url": device, "format": "v4l2"}
        source = f"v4l2src device={device}"
    else:
        element = "mfvideosrc device-index" if sys.platform == "win32" else "avfvideosrc device-index"
        source = f"{element}={text}"
        if backend == "ffmpeg":
            name = {"win32": "dshow", "darwin": "avfoundation"}.get(sys.platform, "v4l2")
            return {"reader": "ffmpeg", "url": text, "format": name}
    # decodebin: many cameras give large pictures as JPEG only.
    return {"reader": "gstreamer", "pipeline": f"{source} ! decodebin ! videoconvert ! appsink name=video"}


def has_gstreamer() -> bool:
    """Whether GStreamer's Python bindings are there."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
    except (ImportError, ValueError):
        return False
    return True


def _sound_source(sound: Any, supervision: SupervisorConfig | None) -> list[Source]:
    """The source beside that of the pictures, if sound comes from elsewhere."""
    if sound is None or sound == "source":
        return []
    if not isinstance(sound, Address):
        parts = _in_parts(sound)
        return [ItemSource("audio", parts, realtime=True, gives_pictures=False, gives_sound=True, own_clock=True)]
    if sound.kind == "microphone":
        if required("mic"):
            _need_microphone()
        request = {"reader": "microphone", "name": sound.text}
        return [LiveSource(sound.shown, request, gives_pictures=False, gives_sound=True, config=supervision)]
    chunks = chunks_of(Path(sound.text))
    return [ItemSource(sound.shown, chunks, realtime=True, gives_pictures=False, gives_sound=True)]


def _need_microphone() -> None:
    """Raises SourceError where a session would hear silence until there is a microphone."""
    try:
        found = list_microphones()
    except SourceError as error:
        raise SourceError(f"AVIS_STREAM_REQUIRE=mic, but microphones cannot be listed: {error}") from error
    if not found:
        raise SourceError(
            "AVIS_STREAM_REQUIRE=mic, but there is no microphone; avis-stream doctor says what to install or start"
        )


def _of_caller(video: Iterable[VideoFrame | AVPair], audio: Audio, realtime: bool) -> list[Source]:
    video = _pictures(video)
    if isinstance(audio, (str, Path)) and audio != "source":
        where = audio_address(audio)
        require(realtime, "realtime", realtime, f"True with audio={str(audio)!r}, which happens now")
        main = ItemSource("video", video, realtime=True, gives_pictures=True, gives_sound=False, own_clock=True)
        return [main, *_sound_source(where, None)]
    chunks = None if audio is None or isinstance(audio, (str, Path)) else audio
    if realtime and chunks is not None:  # both may wait in next(), so each has a thread
        pictures = ItemSource("video", video, realtime=True, gives_pictures=True, gives_sound=False, own_clock=True)
        return [pictures, *_sound_source(chunks, None)]
    items = interleaved(video, None if chunks is None else _in_parts(chunks))
    return [
        ItemSource(
            "video", items, realtime=realtime, gives_pictures=True, gives_sound=chunks is not None, own_clock=realtime
        )
    ]


def _pictures(items: Iterable[Any]) -> Iterator[VideoFrame | AVPair]:
    try:
        for n, item in enumerate(items):
            if not isinstance(item, (VideoFrame, AVPair)):
                got = redacted(repr(item))[:80]
                raise ConfigError(
                    f"video must be one source, or give VideoFrame or AVPair, got {got} as item {n}; "
                    "of two sources each has a Session of its own, on one model if you like"
                )
            if isinstance(item, AVPair):
                yield replace(item, frame=_copied(item.frame), audio=item.audio.clone())
            else:
                yield _copied(item)
    finally:
        _close(items)


def _copied(frame: VideoFrame) -> VideoFrame:
    """With pixels of its own: whoever films into one buffer writes the next picture there."""
    previous = None if frame.previous is None else frame.previous.clone()
    return replace(frame, image=frame.image.clone(), previous=previous)


def _close(items: Iterable[Any]) -> None:
    if isinstance(items, Generator):  # it may hold a camera, and somebody may hold it
        items.close()


def _of_file(
    where: Address, sound: Any, realtime: bool | None, fps: float | None, previous: bool,
    supervision: SupervisorConfig | None,
) -> list[Source]:  # fmt: skip
    path = Path(where.text)
    own = sound is None or sound == "source"
    as_file = isinstance(sound, Address) and sound.kind == "file"
    clip = open_clip(
        path, audio=Path(sound.text) if as_file and isinstance(sound, Address) else None,
        fps=native_rate(path) if fps is None else fps, previous=previous,
    )  # fmt: skip
    pairs = clip.every_picture() if fps is None else iter(clip)
    if own or as_file:
        pairs = _silent(pairs) if sound is None else pairs
        items = _to_its_end(clip, pairs)
        return [ItemSource(clip.name, items, realtime=bool(realtime), gives_pictures=True, gives_sound=False)]
    require(realtime in (None, True), "realtime", realtime, "True or None with sound that happens now")
    frames = _to_its_end(clip, (pair.frame for pair in pairs))
    main = ItemSource(clip.name, frames, realtime=True, gives_pictures=True, gives_sound=False)
    return [main, *_sound_source(sound, supervision)]


def _to_its_end(clip: Clip, items: Iterable[VideoFrame | AVPair]) -> Iterator[Item]:
    """What comes from a clip; if that breaks off, also the event, and the error at the end."""
    yield from items
    if clip.broken is not None:
        yield Event(kind="broken", detail=clip.broken, source_id=clip.name)
        raise MediaError(f"{clip.broken}; what came before has its results")


def _silent(pairs: Iterable[AVPair]) -> Iterator[AVPair]:
    silence = torch.zeros(SAMPLE_RATE)
    return (replace(pair, audio=silence, audio_valid=0.0, valid_samples=0) for pair in pairs)


def _without_sound(items: Iterable[Any], with_sound: bool) -> Iterator[Any]:
    return (item for item in items if with_sound or not isinstance(item, AudioChunk))


def native_rate(path: Path) -> Fraction:
    """Frames a second of a recording; 1 for a folder of images.

    Raises:
        MediaError: It cannot be read.
    """
    if not path.exists():
        raise MediaError(f"{redacted(str(path))}: no such file or folder; check the path")
    if path.is_dir():
        return Fraction(1)
    with opened(path) as container:
        stream = next(iter(container.streams.video), None)
        rate = None if stream is None else stream.average_rate or stream.guessed_rate
    # Some streams announce 90,000 frames a second; nobody films faster than 240.
    return rate if rate is not None and 0 < rate <= 240 else Fraction(25)


def chunks_of(path: Path) -> Iterator[AudioChunk]:
    """The sound of a file in blocks.

    Raises:
        MediaError: There is none.
    """
    track = sound_track(path)

    def blocks() -> Iterator[AudioChunk]:
        position = 0
        for block in track.blocks(rate=SAMPLE_RATE, channels=1):
            samples = torch.from_numpy(block.samples[0].copy())
            yield AudioChunk(samples=samples, pts_ns=position * NANOSECONDS // SAMPLE_RATE, valid=block.heard)
            position += len(samples)

    return _in_parts(blocks())


def _in_parts(chunks: Iterable[AudioChunk]) -> Iterator[AudioChunk]:
    """The same sound in short blocks: what is kept of it for the frames to come is a few seconds."""
    try:
        for chunk in chunks:
            begin = 0
            for part in chunk.samples.split(_PART):
                pts_ns = chunk.pts_ns + begin * NANOSECONDS // SAMPLE_RATE
                yield replace(
                    chunk, samples=part.clone(), pts_ns=pts_ns, discontinuity=chunk.discontinuity and begin == 0
                )
                begin += len(part)
    finally:
        _close(chunks)


__all__ = ["Backend", "ConfigError", "open_sources"]
