"""Whatever is handed over either works or is refused with one sentence: what was wanted, what came, what to do."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import RATE, Media, regular, seconds_shown, tone, write_media
from PIL import Image

from avis_stream.errors import MediaError
from avis_stream.sources.address import Address
from avis_stream.sources.file import open_clip

SHORT = regular(1, 10)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(MediaError) as caught:
        open_clip(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path)) or "audio" in options
    return message


def test_no_audio_track_means_silence_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_media(tmp_path / "silent.mp4", Media(regular(2)))
    with caplog.at_level(logging.WARNING):
        clip = open_clip(path)
        pairs = list(clip) + list(clip)
    assert not clip.has_audio
    assert all(pair.audio_valid == 0 and not pair.audio.any() for pair in pairs)
    assert [record.message for record in caplog.records] == [f"{path}: no audio track; going on with silence"]


def test_only_sound(tmp_path: Path) -> None:
    path = write_media(tmp_path / "song.mp4", Media(sound=tone(1)))
    assert "only sound, nothing to segment" in refused(path)


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    """An M4A or MP3 with a picture of its sleeve."""
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("libmp3lame", rate=RATE, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        frame.sample_rate = RATE
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    assert "only sound" in refused(path)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"Dear diary,\ntoday I was a video.\n" * 40, "a text file"),
        (b"#EXTM3U\nhttp://example.invalid/stream.ts\n", "."),
        (bytes(range(256)) * 64, "not a media file that FFmpeg can read"),
    ],
    ids=["empty", "text", "playlist", "bytes"],
)
def test_not_media(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    assert words in refused(path)


def test_a_recording_cut_off_before_its_index(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "whole.mp4", Media(SHORT)).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: whole.index(b"moov") - 4])
    assert "without its index (moov)" in refused(path)


def test_a_video_track_without_a_picture(tmp_path: Path) -> None:
    """The header promises a track, nothing follows."""
    whole = write_media(tmp_path / "whole.mkv", Media(SHORT, sound=tone(1))).read_bytes()
    path = tmp_path / "headers.mkv"
    path.write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")])  # the first cluster
    assert "not one picture can be decoded" in refused(path) or "not a media file" in refused(path)


@pytest.mark.parametrize(
    ("width", "height", "codec", "pix_fmt"),
    [
        (1, 1, "ffv1", "yuv444p"),
        (1, 7, "png", "rgb24"),
        (37, 53, "ffv1", "yuv420p"),
        (641, 3, "ffv1", "yuv444p"),
        (100, 50, "libx264", "yuv420p10le"),
        (64, 64, "ffv1", "yuv422p12le"),
        (64, 64, "ffv1", "gray"),
        (64, 64, "ffv1", "bgra"),
        (64, 64, "png", "rgb48be"),
        (50, 40, "libx264", "yuv444p"),
    ],
)
def test_odd_pictures(tmp_path: Path, width: int, height: int, codec: str, pix_fmt: str) -> None:
    level = np.full((height, width, 3), 120, np.uint8)
    name = "odd.mov" if codec == "png" else "odd.mkv"
    path = write_media(tmp_path / name, Media(SHORT, lambda t: level, codec, pix_fmt))
    clip = open_clip(path, fps=5)
    pairs = list(clip)
    assert (clip.width, clip.height, len(pairs)) == (width, height, 5)
    for pair in pairs:
        assert tuple(pair.frame.image.shape) == (3, height, width)
        assert pair.frame.image.is_contiguous()
        assert abs(float(pair.frame.image.float().mean()) - 120) < 3


def test_8k(tmp_path: Path) -> None:
    level = np.full((4320, 7680, 3), 90, np.uint8)
    path = write_media(tmp_path / "8k.mkv", Media([0.0], lambda t: level, "mjpeg", "yuvj420p"))
    clip = open_clip(path)
    assert [tuple(pair.frame.image.shape) for pair in clip] == [(3, 4320, 7680)]


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000, 192_000])
def test_any_sample_rate(tmp_path: Path, rate: int) -> None:
    pcm = {"sound_codec": "pcm_f32le", "sound_format": "flt", "sound_rate": rate}
    path = write_media(tmp_path / "a.mkv", Media(SHORT, sound=tone(1, rate), **pcm))
    (pair,) = open_clip(path)
    spectrum = np.abs(np.fft.rfft(pair.audio.numpy()))
    assert int(spectrum.argmax()) == 440
    assert float(pair.audio.abs().max()) == pytest.approx(0.5, abs=0.02)
    assert pair.audio_valid > 0.998


@pytest.mark.parametrize(("layout", "loud"), [("stereo", 0.25), ("5.1", 0.293), ("7.1", 0.226), ("quad", 0.293)])
def test_many_channels_are_mixed_and_never_clip(tmp_path: Path, layout: str, loud: float) -> None:
    """Only the left one sounds, at 0.5; then all do, at full scale."""
    count = len(av.AudioLayout(layout).channels)
    left = np.zeros((count, RATE), np.float32)
    left[0] = tone(1)[0]
    for sound, expected in ((left, None), (tone(1, level=0.99, channels=count), 0.99)):
        media = Media(SHORT, sound=sound, layout=layout, sound_codec="pcm_f32le", sound_format="flt")
        (pair,) = open_clip(write_media(tmp_path / "a.mkv", media))
        peak = float(pair.audio.abs().max())
        if expected is None:
            assert 0.05 < peak <= loud + 0.01
        else:
            assert peak == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("codec", "form", "scale"),
    [("pcm_u8", "u8", 127), ("pcm_s16le", "s16", 32767), ("pcm_s32le", "s32", 2**31 - 256), ("flac", "s16", 32767)],
)
def test_integer_sound(tmp_path: Path, codec: str, form: str, scale: int) -> None:
    kind = {"u8": np.uint8, "s16": np.int16, "s32": np.int32}[form]
    sound = (tone(1).astype(np.float64) * scale + (128 if form == "u8" else 0)).astype(kind)
    path = write_media(tmp_path / "a.mkv", Media(SHORT, sound=sound, sound_codec=codec, sound_format=form))
    (pair,) = open_clip(path)
    assert float(pair.audio.abs().max()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(pair.audio.mean())) < 0.01


def test_sound_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    pcm = {"sound_codec": "pcm_f32le", "sound_format": "flt"}
    (pair,) = open_clip(write_media(tmp_path / "a.mkv", Media(SHORT, sound=tone(1, level=3.0), **pcm)))
    assert float(pair.audio.max()) == 1.0
    assert float(pair.audio.min()) == -1.0


def test_sound_that_is_no_number_is_silent(tmp_path: Path) -> None:
    sound = tone(1)
    sound[:, 10_000:12_000] = np.nan
    sound[:, 30_000] = np.inf
    media = Media(SHORT, sound=sound, sound_codec="pcm_f32le", sound_format="flt")
    (pair,) = open_clip(write_media(tmp_path / "a.mkv", media))
    assert bool(pair.audio.isfinite().all())
    assert float(pair.audio[3500:3900].abs().max()) < 0.01
    assert float(pair.audio[6000:9000].abs().max()) == pytest.approx(0.5, abs=0.02)


def cut_short(whole: bytes) -> bytes:
    return whole[: len(whole) * 6 // 10]


def zeros_inside(whole: bytes) -> bytes:
    begin, end = len(whole) * 6 // 10, len(whole) * 7 // 10
    return whole[:begin] + bytes(end - begin) + whole[end:]


def noise(path: Path) -> Path:
    """Noise fills the pictures evenly, so 60 % of the bytes are about 60 % of the clip."""
    rng = np.random.default_rng(1)
    media = Media(
        regular(5, 10),
        lambda t: rng.integers(0, 255, (48, 64, 3), np.uint8),
        sound=tone(5),
        video_options={"g": "10", "bf": "0"},
        options={"movflags": "+faststart"} if path.suffix == ".mp4" else {},
    )
    return write_media(path, media)


@pytest.mark.parametrize(("name", "damage"), [("a.mp4", cut_short), ("a.mkv", cut_short), ("a.mp4", zeros_inside)])
def test_a_file_that_breaks_in_the_middle(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = noise(tmp_path / name)
    path.write_bytes(damage(path.read_bytes()))
    clip = open_clip(path)
    for _ in range(2):  # the second pass breaks at the same place
        pairs = list(clip)
        assert 2 <= len(pairs) <= 4
        assert clip.broken is not None
        assert "breaks off at" in clip.broken
        assert "\n" not in clip.broken


def test_a_hole_that_the_container_gets_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Matroska finds its feet again after the damage: the clip goes on, and the lost sound is said once."""
    path = noise(tmp_path / "a.mkv")
    path.write_bytes(zeros_inside(path.read_bytes()))
    clip = open_clip(path)
    with caplog.at_level(logging.WARNING):
        pairs = list(clip)
    assert len(pairs) == 5
    assert min(pair.audio_valid for pair in pairs) < 1
    assert caplog.text.count("sound is damaged") == 1


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.h264", "libx264")])
def test_formats_that_say_little_about_time(tmp_path: Path, name: str, codec: str) -> None:
    clip = open_clip(write_media(tmp_path / name, Media(regular(2), video_codec=codec)))
    assert len(list(clip)) == 2
    assert clip.broken is None


def test_a_whole_file_is_not_called_broken(tmp_path: Path) -> None:
    clip = open_clip(write_media(tmp_path / "a.mkv", Media(regular(2), sound=tone(6))), fps=4)
    assert len(list(clip)) == 8
    assert clip.broken is None


def test_a_whole_part_of_a_longer_recording_is_not_called_broken(tmp_path: Path) -> None:
    """As `-f segment` cuts it: stamps go on, and Matroska's header says when it ends, not how long it lasts."""
    path = write_media(tmp_path / "b.mkv", Media(regular(3, start=6), sound=tone(3), sound_start=6))
    clip = open_clip(path, fps=4)
    assert clip.duration_seconds == pytest.approx(3, abs=0.05)
    assert len(list(clip)) == 12
    assert clip.broken is None


# --- folders ----------------------------------------------------------------------------------------------------------


def images(folder: Path, count: int = 3, *, size: tuple[int, int] = (32, 24), first: int = 1) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", size, (20 + 40 * k,) * 3).save(folder / f"{first + k}.png")
    return folder


def wav(path: Path, seconds: float, level: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = (tone(seconds, level=level, channels=2) * 32767).astype(np.int16)
    media = Media(sound=sound, layout="stereo", sound_codec="pcm_s16le", sound_format="s16")
    return write_media(path, media)


def test_a_folder_of_images_and_a_wav(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", 12)
    clip = open_clip(folder, audio=wav(tmp_path / "clip.wav", 12))
    pairs = list(clip)
    assert (clip.name, clip.expected_frames, clip.duration_seconds, clip.has_audio) == ("clip", 12, 12.0, True)
    levels = [int(pair.frame.image[0, 0, 0]) for pair in pairs]
    assert levels == [min(255, 20 + 40 * k) for k in range(12)]  # 2.png before 10.png
    assert all(pair.audio_valid == 1.0 for pair in pairs)
    assert all(pair.frame.previous is None for pair in pairs)  # a second earlier says nothing about motion


def test_a_folder_at_camera_rate_has_previous_pictures(tmp_path: Path) -> None:
    pairs = list(open_clip(images(tmp_path / "clip", 4), audio=wav(tmp_path / "a.wav", 1), fps=10))
    assert pairs[0].frame.previous is None
    for before, after in itertools.pairwise(pairs):
        assert after.frame.previous is not None
        assert after.frame.previous.equal(before.frame.image)


def test_an_aviseg_video_folder_finds_its_sound(tmp_path: Path) -> None:
    folder = images(tmp_path / "val" / "JPEGImages" / "street", first=0)
    wav(tmp_path / "val" / "WAVAudios" / "street.wav", 3)
    earlier = images(tmp_path / "val" / "PrevImages" / "street", first=0)
    (earlier / "0.png").unlink()
    clip = open_clip(folder)
    pairs = list(clip)
    assert clip.has_audio
    assert [round(float(pair.audio.abs().max()), 1) for pair in pairs] == [0.5] * 3
    assert [pair.frame.previous is None for pair in pairs] == [True, False, False]


def test_a_folder_without_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pairs = list(open_clip(images(tmp_path / "clip")))
    assert [pair.audio_valid for pair in pairs] == [0.0] * 3
    assert "going on with silence" in caplog.text


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no pictures here")
    assert "without numbered images" in refused(tmp_path / "empty")


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip")
    (folder / "1.png").write_text("not a picture")
    with pytest.raises(MediaError, match=r"1\.png cannot be read as an image"):
        open_clip(folder)


def test_a_folder_that_breaks_in_the_middle(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", 5)
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:40])
    clip = open_clip(folder)
    assert len(list(clip)) == 3
    assert clip.broken is not None
    assert "image 4 of 5" in clip.broken


def test_a_folder_with_two_sizes(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip")
    Image.new("RGB", (16, 16)).save(folder / "3.png")
    clip = open_clip(folder)
    assert len(list(clip)) == 2
    assert clip.broken is not None
    assert "16x16 but the folder began with 32x24" in clip.broken


def test_odd_images(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(np.full((9, 7), 30_000, np.uint16)).save(folder / "1.png")
    Image.fromarray(np.full((9, 7, 4), 117, np.uint8)).save(folder / "2.png")
    Image.fromarray(np.full((9, 7), 117, np.uint8)).convert("P").save(folder / "3.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.full((7, 9, 3), 117, np.uint8)).save(folder / "4.jpg", exif=turned, quality=95)
    pairs = list(open_clip(folder))
    assert [tuple(pair.frame.image.shape) for pair in pairs] == [(3, 9, 7)] * 4
    assert all(abs(float(pair.frame.image.float().mean()) - 117) < 2 for pair in pairs)


def test_sound_of_another_file_takes_the_place_of_its_own(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Media(regular(2), sound=tone(2, level=0.1)))
    clip = open_clip(path, audio=wav(tmp_path / "b.wav", 2, level=0.6))
    assert [round(float(pair.audio.abs().max()), 1) for pair in clip] == [0.6, 0.6]


def test_sound_of_another_film_begins_with_that_film(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Media(regular(3)))
    late = write_media(tmp_path / "late.mkv", Media(regular(3), sound=tone(1.5), sound_start=1.5))
    samples = np.concatenate([pair.audio.numpy() for pair in open_clip(path, audio=late)])
    assert int(np.flatnonzero(np.abs(samples) > 0.2)[0]) / 16_000 == pytest.approx(1.5, abs=0.03)


def two_tracks(path: Path, *, default: int | None) -> Path:
    """Sound of 0.1 and of 0.6, of which one is marked."""
    with av.open(str(path), "w", options={"default_mode": "passthrough"}) as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds = [out.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for number, stream in enumerate(sounds):
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for _ in range(10):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))
        for stream, level in zip(sounds, (0.1, 0.6), strict=True):
            samples = (tone(1, level=level) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = RATE
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "level"), [(None, 0.1), (0, 0.1), (1, 0.6)])
def test_of_several_tracks_of_sound_the_default_is_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, default: int | None, level: float
) -> None:
    path = two_tracks(tmp_path / "two.mkv", default=default)
    clip = open_clip(path)
    assert f"{path}: has 2 audio tracks; number {2 if level == 0.6 else 1} is taken" in caplog.messages
    assert [float(pair.audio.abs().max()) for pair in clip] == pytest.approx([level], abs=0.03)
    written = np.concatenate([block.samples for block in clip.sound()], axis=1)  # as the overlay gets it
    assert np.abs(written).max() == pytest.approx(level, abs=0.03)


def test_a_name_that_is_not_utf_8_can_be_shown(tmp_path: Path) -> None:
    whole = write_media(tmp_path / "a.mp4", Media(SHORT))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    whole.rename(odd)
    clip = open_clip(odd)
    assert clip.name == "caf\N{REPLACEMENT CHARACTER}"
    assert [pair.frame.source_id for pair in clip] == [clip.name]
    assert Address("file", str(odd)).shown == f"{clip.name}.mp4"


def test_no_sound_where_sound_was_promised(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", Media(SHORT))
    assert "no sound in it" in refused(path, audio=path)
    assert "no such file" in refused(path, audio=tmp_path / "none.wav")


def test_pictures_that_change_size_midway_keep_the_first_size(tmp_path: Path) -> None:
    """Two recordings glued together: MPEG-TS carries on with a new size."""
    first = write_media(tmp_path / "1.ts", Media(regular(1), video_options={"g": "5"}))
    second_media = Media(regular(1, start=1.0), lambda t: np.full((96, 128, 3), min(255, round(20 + 40 * t)), np.uint8))
    second = write_media(tmp_path / "2.ts", second_media)
    glued = tmp_path / "glued.ts"
    glued.write_bytes(first.read_bytes() + second.read_bytes())
    clip = open_clip(glued, fps=4)
    shapes = {tuple(pair.frame.image.shape) for pair in clip}
    assert shapes == {(3, 48, 64)}
    assert seconds_shown(list(clip)[-1].frame.image) == pytest.approx(1.75, abs=0.1)
