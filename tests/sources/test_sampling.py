"""Which picture is shown when: sampling by presentation time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import Media, gray_clock, regular, seconds_shown, write_media
from PIL import Image, ImageOps

from avis_stream.errors import ConfigError
from avis_stream.sources.clip import Clip
from avis_stream.sources.file import open_clip

LOSSLESS = {"qp": "0"}


def written(path: Path, stamps: list[float], **more: object) -> Path:
    return write_media(path, Media(stamps, video_options=LOSSLESS, pix_fmt="yuv444p", **more))  # type: ignore[arg-type]


def shown(path: Path, fps: float | Fraction = 1.0) -> list[float]:
    """The times that the sampled pictures show."""
    return [seconds_shown(pair.frame.image) for pair in open_clip(path, fps=fps)]


def seconds(*expected: float | None) -> object:
    """Times as gray levels tell them: to about 0.03 s."""
    return pytest.approx(list(expected), abs=0.04)


def test_frame_k_is_the_last_picture_at_or_before_k_over_fps(tmp_path: Path) -> None:
    stamps = [0.0, 0.4, 0.9, 1.0, 1.7, 2.1, 2.9, 3.0]
    assert shown(written(tmp_path / "vfr.mkv", stamps)) == seconds(0.0, 1.0, 1.7, 3.0)
    assert shown(tmp_path / "vfr.mkv", 2) == seconds(0.0, 0.4, 1.0, 1.0, 1.7, 2.1, 3.0)


def test_a_long_still_picture_is_held(tmp_path: Path) -> None:
    path = written(tmp_path / "slides.mkv", [0.0, 0.5, 4.2, 5.0])
    assert shown(path) == seconds(0.0, 0.5, 0.5, 0.5, 0.5, 5.0)


def test_the_session_clock_counts_frames(tmp_path: Path) -> None:
    clip = open_clip(written(tmp_path / "c.mkv", regular(2)), fps=3)
    frames = [pair.frame for pair in clip]
    assert [frame.pts_ns for frame in frames] == [0, 333333333, 666666667, 1000000000, 1333333333, 1666666667]
    assert [frame.frame_id for frame in frames] == list(range(6))
    assert {frame.source_id for frame in frames} == {"c"}


@pytest.mark.parametrize("seconds", [1, 2, 3])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_whole_seconds_give_whole_frames(tmp_path: Path, suffix: str, seconds: int) -> None:
    """Containers round stamps: that must not give a frame too many."""
    path = written(tmp_path / f"a.{suffix}", regular(seconds, 24), rate=Fraction(24))
    clip = open_clip(path)
    assert len(list(clip)) == clip.expected_frames == seconds


def test_the_native_rate_gives_every_picture_once(tmp_path: Path) -> None:
    """Matroska rounds 1/30 s to milliseconds, up and down."""
    media = Media(
        regular(1, 30),
        lambda t: np.full((48, 64, 3), round(t * 240), np.uint8),
        video_options=LOSSLESS,
        pix_fmt="yuv444p",
        rate=Fraction(30),
    )
    levels = [
        float(pair.frame.image.float().mean()) for pair in open_clip(write_media(tmp_path / "a.mkv", media), fps=30)
    ]
    assert len(levels) == 30
    assert (np.diff(levels) > 4).all()


def test_the_picture_100_ms_before(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mkv", regular(3, 25))
    frames = [pair.frame for pair in open_clip(path, fps=2)]
    assert frames[0].previous is None
    for k, frame in enumerate(frames[1:], 1):
        assert frame.previous is not None
        assert seconds_shown(frame.image) - seconds_shown(frame.previous) == pytest.approx(0.12, abs=0.045), k
    assert all(pair.frame.previous is None for pair in open_clip(path, previous=False))


def test_the_picture_100_ms_before_is_the_one_shown_then(tmp_path: Path) -> None:
    """Where pictures stand for longer than that, it is the one that stood."""
    frames = [pair.frame for pair in open_clip(written(tmp_path / "a.mkv", [0.0, 1.0, 1.05, 2.0, 2.5]))]
    assert [None if f.previous is None else seconds_shown(f.previous) for f in frames[1:]] == seconds(0.0, 1.05)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_stand_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """The bright corner is where the note beside the picture puts it."""
    stored = np.full((48, 64, 3), 30, np.uint8)
    stored[:16, :16] = 220  # top left
    media = Media(regular(0.4), lambda t: stored, turn=(degrees, mirrored, False), video_options=LOSSLESS)
    clip = open_clip(write_media(tmp_path / "turned.mp4", media))
    image = next(iter(clip)).frame.image
    expected = np.rot90(stored, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    assert (clip.width, clip.height) == ((64, 48) if degrees % 180 == 0 else (48, 64))
    assert image.is_contiguous()
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).max() < 12


@pytest.mark.parametrize("space", ["bt709", "smpte170m"])
def test_colours_follow_the_tag(tmp_path: Path, space: str) -> None:
    color = (200, 60, 90)
    media = Media(regular(0.2), lambda t: np.full((48, 64, 3), color, np.uint8), color=space, video_options=LOSSLESS)
    image = next(iter(open_clip(write_media(tmp_path / "c.mp4", media)))).frame.image
    assert torch.allclose(image.float().mean((1, 2)), torch.tensor(color).float(), atol=3)


@pytest.mark.parametrize("fps", [0, -1, 2000, float("nan")])
def test_senseless_rates_are_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ConfigError, match="fps must be"):
        open_clip(tmp_path / "a.mp4", fps=fps)


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    """Only the pictures of the last 100 ms or so are held while waiting for the next sample."""
    from avis_stream.sources import pictures

    held: list[int] = []
    forget = pictures._forget

    def counting(window, time):  # type: ignore[no-untyped-def]
        forget(window, time)
        held.append(len(window))

    path = write_media(tmp_path / "a.mp4", Media(regular(4, 50), gray_clock(), rate=Fraction(50)))
    pictures._forget = counting
    try:
        assert len(list(open_clip(path))) == 4
    finally:
        pictures._forget = forget
    assert max(held) <= 8  # 100 ms at 50 pictures a second, and some


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_picture_with_exif_stands_upright(turn: int, tmp_path: Path) -> None:
    """A picture's EXIF comes with it as a kind of note that PyAV has no name for."""
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:8, :8] = 255
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    clip = open_clip(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as file:
        upright = np.asarray(ImageOps.exif_transpose(file).convert("RGB")).astype(float)
    image = next(iter(clip)).frame.image.permute(1, 2, 0).numpy().astype(float)
    assert image.shape == upright.shape
    assert np.abs(image - upright).mean() < 8


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_media(tmp_path / "in.mp4", Media(regular(1)))
    monkeypatch.chdir(tmp_path)
    Path("in.mp4").rename("12:30:05.mp4")
    assert len(list(open_clip("12:30:05.mp4"))) == 1


def test_pixels_that_are_not_square_are_told(tmp_path: Path) -> None:
    path = write_media(tmp_path / "in.mp4", Media(regular(1), pixel_aspect=Fraction(4, 3)))
    assert open_clip(path).pixel_aspect == Fraction(4, 3)
    turned = write_media(
        tmp_path / "turned.mp4", Media(regular(1), pixel_aspect=Fraction(4, 3), turn=(90, False, False))
    )
    assert open_clip(turned).pixel_aspect == Fraction(3, 4)


def test_a_rate_that_no_camera_has_is_none(tmp_path: Path) -> None:
    path = write_media(tmp_path / "in.mp4", Media(regular(1)))
    clip = open_clip(path)
    assert clip.camera_fps == 25
    odd = replace(clip._pictures, rate=Fraction(1000))
    assert Clip("odd", odd, None, Fraction(1)).camera_fps is None
