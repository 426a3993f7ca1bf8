"""`open_clip`: the door for recordings. What cannot be segmented is refused here, with one sentence."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from avis_stream.checks import require
from avis_stream.data.aviseg import video_folder
from avis_stream.errors import MediaError
from avis_stream.sources.clip import Clip
from avis_stream.sources.container import announced_end, first_frame, opened, time_of
from avis_stream.sources.folder import FolderPictures, read_picture
from avis_stream.sources.orientation import orientation_of
from avis_stream.sources.pictures import MediaPictures
from avis_stream.sources.sound import SoundTrack
from avis_stream.sources.worker.tracks import default_first

logger = logging.getLogger(__name__)


def open_clip(
    path: str | Path, *, audio: str | Path | None = None, fps: float | Fraction = 1.0, previous: bool = True
) -> Clip:
    """Opens a recording and checks that it can be read.

    Args:
        path: A media file, a folder of numbered images, or an AVISeg video folder
            (`<split>/JPEGImages/<video>`, whose `<split>/WAVAudios/<video>.wav` is found by itself).
        audio: A file with the sound; for a media file it takes the place of its own.
        fps: Frames a second to hand out; for a folder, the rate at which its images were taken.
        previous: Also hand out the picture about 100 ms before each frame.
    Raises:
        MediaError: There is nothing to segment: no such file, no pictures, or not readable.
        ConfigError: `fps` makes no sense.
    """
    require(0 < fps <= 1000, "fps", fps, "more than 0 and at most 1000 frames a second")
    # 29.97 means 30000/1001 to no one but a broadcaster; to us it is 2997/100, the same frame for nine hours.
    rate = Fraction(fps).limit_denominator(1001)
    require(rate > 0, "fps", fps, "at least one frame in 1000 s")
    path = Path(path)
    if not path.exists():
        raise MediaError(f"{path}: no such file or folder; check the path")
    track = None if audio is None else sound_track(Path(audio))
    return _folder_clip(path, track, rate, previous) if path.is_dir() else _media_clip(path, track, rate, previous)


def _folder_clip(path: Path, track: SoundTrack | None, fps: Fraction, previous: bool) -> Clip:
    folder = video_folder(path)
    if not folder.images:
        raise MediaError(f"{path}: a folder without numbered images; name them like 0001.jpg, 0002.jpg")
    _, height, width = read_picture(folder.images[0]).shape
    if track is None and folder.wav is not None:
        track = sound_track(folder.wav)
    if track is None:
        logger.warning("%s: no sound given (--audio FILE); going on with silence", path)
    pictures = FolderPictures(folder.images, folder.previous, width, height, fps)
    return Clip(folder.name, pictures, track, fps, previous=previous)


def _media_clip(path: Path, track: SoundTrack | None, fps: Fraction, previous: bool) -> Clip:
    stream_index, start, end, rate, aspect, frame = _first_picture(path)
    orientation = orientation_of(frame)
    width, height = orientation.size(frame.width, frame.height)
    if track is None:
        track = _track_in(path)
        if track is None:
            logger.warning("%s: no audio track; going on with silence", path)
        else:
            # One origin for both: subtracting each stream's own first stamp would shift them against each other.
            start = min(start, track.origin)
            track = replace(track, origin=start)
    duration = None if end is None else float(end - start)
    pictures = MediaPictures(
        path, stream_index, start, width, height, orientation, duration, rate,
        1 / aspect if orientation.swap else aspect,
    )  # fmt: skip
    return Clip(path.stem, pictures, track, fps, previous=previous)


def _first_picture(path: Path) -> tuple[int, Fraction, Fraction | None, Fraction | None, Fraction, av.VideoFrame]:
    """Index of the video stream, file time of its first picture, announced end and rate (or None), the aspect of a
    stored pixel, and that picture.
    """
    with opened(path) as container:
        stream = _video_in(container)
        if stream is None:
            what = "only sound" if container.streams.audio else "no video track"
            raise MediaError(f"{path}: {what}, nothing to segment; give a file with pictures")
        frame, reason = first_frame(container, stream)
        if not isinstance(frame, av.VideoFrame):
            raise MediaError(f"{path}: not one picture can be decoded ({reason}); record or convert it again")
        start = time_of(frame) or Fraction(0)
        end = _pictures_end(container, stream)
        return stream.index, start, end, stream.average_rate, stream.sample_aspect_ratio or Fraction(1), frame


def _pictures_end(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """File time at which the pictures end, as far as the headers tell."""
    if stream.duration and stream.time_base:
        return (stream.duration + (stream.start_time or 0)) * stream.time_base
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "").strip()):
        hours, minutes, seconds = match.groups()  # Matroska's own tag: the stamp at which the track ends
        return Fraction(int(hours) * 3600 + int(minutes) * 60) + Fraction(seconds)
    return announced_end(container)


def _video_in(container: InputContainer) -> VideoStream | None:
    """The video of a file: a cover is a picture of the sound."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def sound_track(path: Path) -> SoundTrack:
    """The sound of a file that holds nothing but sound for us.

    Its clock is its own, and begins with the file: with its first picture, where it has some and sound comes later.

    Raises:
        MediaError: There is no sound in it.
    """
    track = _track_in(path)
    if track is None:
        raise MediaError(f"{path}: no sound in it; give an audio file such as WAV, or leave audio out for silence")
    with opened(path) as container:
        video = _video_in(container)
        frame = None if video is None else first_frame(container, video)[0]
    start = None if frame is None else time_of(frame)
    return track if start is None else replace(track, origin=min(track.origin, start))


def _track_in(path: Path) -> SoundTrack | None:
    """A file's default sound, else the first that can be decoded, with its first stamp as origin; None without any."""
    with opened(path) as container:
        streams = default_first(container.streams.audio)
        for stream in streams:
            frame, reason = first_frame(container, stream)
            if isinstance(frame, av.AudioFrame):
                if len(streams) > 1:
                    number = container.streams.audio.index(stream) + 1
                    logger.warning("%s: has %d audio tracks; number %d is taken", path, len(streams), number)
                start = time_of(frame) or Fraction(0)
                return SoundTrack(path, stream.index, start, frame.sample_rate, len(frame.layout.channels))
            logger.warning("%s: the audio track cannot be decoded (%s)", path, reason)
    return None
