"""Picture and sound stay together, whatever the container does to their stamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import RATE, Media, clicks, regular, seconds_shown, tone, write_media
from numpy.typing import NDArray

from avis_stream.sources.clip import Clip
from avis_stream.sources.file import open_clip
from avis_stream.types import SAMPLE_RATE

EVENTS = (0.6, 1.4, 2.2)
WITHIN_SECONDS = 0.005


def flash(events: tuple[float, ...] = EVENTS, length: float = 0.1):
    def picture(seconds: float) -> NDArray[np.uint8]:
        on = any(event - 1e-6 <= seconds < event + length for event in events)
        return np.full((48, 64, 3), 255 if on else 0, np.uint8)

    return picture


def flashes_seen(clip: Clip) -> list[float]:
    """Seconds at which the picture turns bright."""
    bright = [(pair.frame.pts_seconds, bool(pair.frame.image.float().mean() > 128)) for pair in clip]
    return [time for (time, now), (_, before) in zip(bright[1:], bright[:-1], strict=True) if now and not before]


def heard_stream(clip: Clip) -> NDArray[np.float32]:
    """The sound as the pairs hand it out, put together again; its index 0 is the clip clock's 0."""
    step = round(SAMPLE_RATE / clip.fps)
    return np.concatenate([pair.audio[-step:].numpy() for pair in clip])


def beeps_heard(clip: Clip) -> list[float]:
    loud = np.flatnonzero(np.abs(heard_stream(clip)) > 0.2)
    starts = loud[np.concatenate([[True], np.diff(loud) > SAMPLE_RATE // 10])]
    return [float(start) / SAMPLE_RATE for start in starts]


FORMATS = {
    "mp4-h264-aac": ("a.mp4", "libx264", "aac", "fltp"),
    "mov-h264-aac": ("a.mov", "libx264", "aac", "fltp"),
    "mkv-vp9-opus": ("a.mkv", "libvpx-vp9", "libopus", "flt"),
    "webm-vp9-opus": ("a.webm", "libvpx-vp9", "libopus", "flt"),
    "ts-h264-aac": ("a.ts", "libx264", "aac", "fltp"),
    "avi-mpeg4-pcm": ("a.avi", "mpeg4", "pcm_s16le", "s16"),
}


@pytest.mark.parametrize(("name", "video", "audio", "form"), FORMATS.values(), ids=FORMATS.keys())
def test_flash_and_beep_come_together(tmp_path: Path, name: str, video: str, audio: str, form: str) -> None:
    sound = clicks(3, EVENTS)
    if form == "s16":
        sound = (sound * 32767).astype(np.int16)
    quick = {"deadline": "realtime"} if "vp9" in video else {}
    media = Media(regular(3), flash(), video, sound=sound, sound_codec=audio, sound_format=form, video_options=quick)
    path = write_media(tmp_path / name, media)
    clip = open_clip(path, fps=400)  # a grid of 2.5 ms for the flash
    seen, heard = flashes_seen(clip), beeps_heard(clip)
    assert len(seen) == len(heard) == 3
    assert np.abs(np.array(seen) - np.array(heard)).max() <= WITHIN_SECONDS
    assert clip.broken is None


@pytest.mark.parametrize(("video_start", "sound_start"), [(0.0, 0.5), (0.4, 0.0), (10.0, 10.2)])
def test_a_late_start_of_one_stream_is_kept(tmp_path: Path, video_start: float, sound_start: float) -> None:
    """Only the earliest stamp of the file is subtracted: the later stream starts later on the clip clock too."""
    origin = min(video_start, sound_start)
    events = tuple(origin + t for t in (0.8, 1.6))
    sound = clicks(2.5, [t - sound_start for t in events])
    media = Media(regular(2.4, start=video_start), flash(events), sound=sound, sound_start=sound_start)
    clip = open_clip(write_media(tmp_path / "late.mkv", media), fps=100)
    assert flashes_seen(clip) == pytest.approx([0.8, 1.6], abs=0.011)
    assert beeps_heard(clip) == pytest.approx([0.8, 1.6], abs=WITHIN_SECONDS)


def test_an_edit_list_that_delays_the_picture_is_respected(tmp_path: Path) -> None:
    """MP4 says by an empty edit that its picture starts later than its sound."""
    media = Media(regular(2, start=0.6), flash((1.2,)), sound=clicks(2.6, [1.2]))
    clip = open_clip(write_media(tmp_path / "edit.mp4", media), fps=100)
    assert flashes_seen(clip) == pytest.approx([1.2], abs=0.011)
    assert beeps_heard(clip) == pytest.approx([1.2], abs=WITHIN_SECONDS)
    assert clip.duration_seconds == pytest.approx(2.6, abs=0.03)


def test_the_sound_of_a_frame_is_the_second_that_ends_with_its_interval(tmp_path: Path) -> None:
    """At 1 fps frame k has [k, k + 1): one level per second tells which second came."""
    levels = (0.1, 0.3, 0.5, 0.7)
    sound = np.concatenate([tone(1, level=level) for level in levels], axis=1)
    media = Media(regular(4), sound=sound, sound_codec="pcm_f32le", sound_format="flt")
    clip = open_clip(write_media(tmp_path / "levels.mkv", media))
    assert [float(pair.audio.abs().max()) for pair in clip] == pytest.approx(levels, abs=0.02)


@pytest.mark.parametrize("fps", [4.0, Fraction(1, 2)])
def test_the_second_of_sound_follows_other_rates(tmp_path: Path, fps: float | Fraction) -> None:
    rate = SAMPLE_RATE
    ramp = (np.arange(4 * rate) / (4 * rate))[None].astype(np.float32)  # its value tells its time
    media = Media(regular(4), sound=ramp, sound_rate=rate, sound_codec="pcm_f32le", sound_format="flt")
    clip = open_clip(write_media(tmp_path / "ramp.mkv", media), fps=fps)
    pairs = list(clip)
    assert len(pairs) == clip.expected_frames == round(4 * fps)
    for k, pair in enumerate(pairs):
        end = (k + 1) / float(fps)
        expected = np.clip((np.arange(rate) / rate + end - 1) / 4, 0, None)  # before the clip: silence
        assert np.abs(pair.audio.numpy() - expected).max() < 1e-4
        assert pair.audio_valid == pytest.approx(min(1.0, end), abs=1e-3)


def test_a_hole_in_the_sound_is_silent_and_marked(tmp_path: Path) -> None:
    """What follows the hole stays in its place."""
    sound = clicks(4, (0.5, 3.5))
    media = Media(
        regular(4),
        flash((0.5, 3.5)),
        sound=sound,
        sound_holes=[(1.0, 2.5)],
        sound_codec="pcm_f32le",
        sound_format="flt",
    )
    clip = open_clip(write_media(tmp_path / "hole.mkv", media), fps=25)
    assert beeps_heard(clip) == pytest.approx([0.5, 3.5], abs=WITHIN_SECONDS)
    at_one = open_clip(tmp_path / "hole.mkv")
    assert [round(pair.audio_valid, 1) for pair in at_one] == [1.0, 0.0, 0.5, 1.0]


def test_sound_that_ends_early_leaves_silence(tmp_path: Path) -> None:
    media = Media(regular(3), sound=tone(1.5), sound_codec="pcm_f32le", sound_format="flt")
    pairs = list(open_clip(write_media(tmp_path / "short.mkv", media)))
    assert [round(pair.audio_valid, 2) for pair in pairs] == [1.0, 0.5, 0.0]
    assert pairs[2].audio.abs().max() == 0
    assert [pair.valid_samples for pair in pairs] == [16_000, 8000, 0]


def test_sound_that_begins_late_or_has_a_hole_is_there_to_its_end(tmp_path: Path) -> None:
    """As in a waveform with zeros in front: only what lacks at the end of a second is missing to an encoder."""
    media = Media(regular(3), sound=tone(2.5), sound_start=0.5, sound_codec="pcm_f32le", sound_format="flt")
    late, *_ = open_clip(write_media(tmp_path / "late.mkv", media))
    assert late.audio_valid == pytest.approx(0.5, abs=0.01)
    assert late.valid_samples == 16_000
    media = Media(regular(4), sound=tone(4.0), sound_holes=[(1.0, 2.5)], sound_codec="pcm_f32le", sound_format="flt")
    assert [pair.valid_samples for pair in open_clip(write_media(tmp_path / "hole.mkv", media))] == [16_000] * 4


def test_sound_that_is_quiet_is_sound(tmp_path: Path) -> None:
    """Zeros in a recording are no less there than others."""
    quiet = np.concatenate([tone(0.5), np.zeros_like(tone(2.46))], axis=1)
    media = Media(regular(3), sound=quiet, sound_start=0.04, sound_codec="pcm_f32le", sound_format="flt")
    pairs = list(open_clip(write_media(tmp_path / "quiet.mkv", media)))
    assert [pair.valid_samples for pair in pairs] == [16_000] * 3
    assert [round(pair.audio_valid, 2) for pair in pairs] == [0.96, 1.0, 1.0]


@pytest.mark.parametrize("fps", [1, 4, 60])
def test_a_film_without_sound_has_none(tmp_path: Path, fps: float) -> None:
    """Not even in the time before its begin, which belongs to the first frames."""
    path = write_media(tmp_path / "mute.mkv", Media(regular(2)))
    assert {pair.valid_samples for pair in open_clip(path, fps=fps)} == {0}
    assert {pair.valid_samples for pair in open_clip(path).every_picture()} == {0}


def test_the_sound_itself_is_on_the_same_clock(tmp_path: Path) -> None:
    """What the overlay copies: native rate, and a late start filled."""
    media = Media(regular(2), sound=clicks(1.5, [0.5]), sound_start=0.5, sound_codec="pcm_f32le", sound_format="flt")
    clip = open_clip(write_media(tmp_path / "native.mkv", media))
    assert (clip.sound_rate, clip.sound_channels) == (RATE, 1)
    blocks = list(clip.sound())
    assert [blocks[0].heard, blocks[-1].heard] == [False, True]
    samples = np.concatenate([block.samples for block in blocks], axis=1)
    assert samples.shape[1] == pytest.approx(2 * RATE, abs=RATE // 500)
    assert int(np.flatnonzero(np.abs(samples[0]) > 0.2)[0]) / RATE == pytest.approx(1.0, abs=WITHIN_SECONDS)


def test_a_second_pass_equals_the_first(tmp_path: Path) -> None:
    media = Media(regular(3), sound=tone(3, rate=44_100), sound_rate=44_100)
    clip = open_clip(write_media(tmp_path / "twice.mp4", media), fps=2)
    first, second = list(clip), list(clip)
    assert len(first) == len(second) == 6
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.frame.image, b.frame.image)
        assert torch.equal(a.audio, b.audio)
        assert (a.frame.previous is None) == (b.frame.previous is None)
        assert a.frame.pts_ns == b.frame.pts_ns
    assert seconds_shown(first[4].frame.image) == pytest.approx(2.0, abs=0.05)
