"""Opens media files for reading, and words what can be wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Stream

from avis_stream.errors import MediaError
from avis_stream.files import as_file

# A playlist may name other files and addresses: reading a file that was handed over never leaves this machine.
_OPTIONS = {"protocol_whitelist": "file,crypto,data"}
_GIVE = "give a video such as MP4, MKV, MOV, WebM or AVI"


class BrokenMedia(MediaError):
    """Reading worked up to a point and then stopped; `str()` says where and why. Ends a clip, never a run."""


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Opens a media file for the length of a `with` block.

    Raises:
        MediaError: The file is missing, empty, cut short before its index, or no media file at all.
    """
    try:
        container = av.open(as_file(path), options=_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: {why_unreadable(path, error)}") from error
    try:
        yield container
    finally:
        container.close()


def why_unreadable(path: Path, error: Exception) -> str:
    """One sentence on why FFmpeg could not open `path`, and what to do."""
    if not path.exists():
        return "no such file; check the path"
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as reason:
        return f"cannot be read ({reason.strerror}); check its permissions"
    if not head:
        return "the file is empty; record or copy it again"
    if head[4:8] == b"ftyp":
        return "an MP4 or MOV without its index (moov): the recording was cut off; repair it or record it again"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\r\f\x1b" for byte in head):
        return f"a text file, not a media file; {_GIVE}"
    return (
        f"not a media file that FFmpeg can read ({reason_of(error)}); give a video such as MP4, MKV, MOV, WebM or AVI"
    )


def reason_of(error: BaseException) -> str:
    """FFmpeg's own words for an error, without number and file name."""
    return str(getattr(error, "strerror", None) or error)


def time_of(frame: av.VideoFrame | av.AudioFrame) -> Fraction | None:
    """A decoded frame's own stamp in seconds of the file's time; None without one."""
    # AVI stores only the order of decoding, which for what it may hold is the order of presentation.
    stamp = frame.pts if frame.pts is not None else frame.dts
    return None if stamp is None else stamp * Fraction(frame.time_base or 0)


def announced_end(container: InputContainer) -> Fraction | None:
    """The file's own time, in seconds, at which it says that its longest stream ends; None where it does not say."""
    if container.duration is None or container.duration <= 0:
        return None
    # What FFmpeg hands on of Matroska's header is when the last stream ends; elsewhere it is how long the file lasts.
    begin = 0 if "matroska" in container.format.name else container.start_time or 0
    return Fraction(container.duration + begin, av.time_base)


def first_frame(container: InputContainer, stream: Stream) -> tuple[av.VideoFrame | av.AudioFrame | None, str]:
    """Decodes up to the first frame of a stream; None and the reason where there is none.

    Packets that cannot be decoded are passed over: a stream cut out of a longer one begins with some.
    """
    reason = "it holds none"
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame) or (isinstance(frame, av.AudioFrame) and frame.samples):
                        return frame, ""
            except av.FFmpegError as error:
                reason = reason_of(error)
    except av.FFmpegError as error:
        reason = reason_of(error)
    return None, reason
