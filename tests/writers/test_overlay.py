"""`overlay.mp4` opened again: as long as the clip, in sync, and with every identity in its colour."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fake_results import CLASSES, pair_at, result_for
from media_files import Media, clicks, regular, tone, write_media
from numpy.typing import NDArray

from avis_stream.sources.file import open_clip
from avis_stream.writers.colors import PALETTE, identity_color, text_color
from avis_stream.writers.draw import draw_result
from avis_stream.writers.overlay import OverlayWriter


def overlaid(path: Path, out: Path, fps: float | Fraction) -> Path:
    clip = open_clip(path, fps=fps)
    writer = OverlayWriter(out, CLASSES, fps=clip.fps, sound=clip)
    for pair in clip:
        writer.write(pair, result_for(pair, [(1, 1, 0.9, (4, 4, 40, 40))]))
    writer.close()
    return out


def film(path: Path) -> tuple[list[float], list[NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [float(frame.time or 0) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize("fps", [1, 2.5, 10, Fraction(30000, 1001)])
def test_frames_and_length(tmp_path: Path, fps: float | Fraction) -> None:
    path = write_media(tmp_path / "in.mp4", Media(regular(4), sound=tone(4, channels=2), layout="stereo"))
    out = overlaid(path, tmp_path / "overlay.mp4", fps)
    times, _ = film(out)
    assert len(times) == open_clip(path, fps=fps).expected_frames
    assert times == pytest.approx([k / float(fps) for k in range(len(times))], abs=1e-3)
    with av.open(str(out)) as container:
        video, sound = container.streams
        assert (video.type, video.codec_context.name, video.codec_context.pix_fmt) == ("video", "h264", "yuv420p")
        assert (sound.type, sound.codec_context.name, sound.codec_context.layout.name) == ("audio", "aac", "stereo")
        length = len(times) / float(fps)
        assert float(video.duration * video.time_base) == pytest.approx(length, abs=1e-3)
        assert float(sound.duration * sound.time_base) == pytest.approx(min(4.0, length), abs=0.03)


def test_the_sound_is_kept_in_sync(tmp_path: Path) -> None:
    """Also where it starts late, and at its own rate."""
    beeps = (0.7, 1.9)
    media = Media(
        regular(3), sound=clicks(2.5, [t - 0.5 for t in beeps], rate=22_050), sound_rate=22_050, sound_start=0.5
    )
    out = overlaid(write_media(tmp_path / "in.mkv", media), tmp_path / "overlay.mp4", 1)
    samples = np.concatenate([block.samples[0] for block in open_clip(out).sound()])
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    starts = loud[np.concatenate([[True], np.diff(loud) > 2205])] / 22_050
    assert starts == pytest.approx(beeps, abs=0.005)


def test_a_silent_clip_makes_a_silent_film(tmp_path: Path) -> None:
    out = overlaid(write_media(tmp_path / "in.mp4", Media(regular(2))), tmp_path / "overlay.mp4", 1)
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (37, 53), (640, 3), (2500, 100)])
def test_any_size(tmp_path: Path, width: int, height: int) -> None:
    writer = OverlayWriter(tmp_path / "o.mp4", CLASSES, fps=5)
    for index in range(3):
        pair = pair_at(index, fps=5, width=width, height=height)
        writer.write(pair, result_for(pair, [(1, 1, 0.9, (0, 0, width, height))]))
    writer.close()
    _, pictures = film(tmp_path / "o.mp4")
    shape = pictures[0].shape[:2]
    assert len(pictures) == 3
    assert max(shape) <= 1920
    if width <= 1920:
        assert shape == (height + height % 2, width + width % 2)


def test_an_identity_keeps_its_colour(tmp_path: Path) -> None:
    """Whatever its rank, its score and whoever is beside it."""
    pair = pair_at(0, width=320, height=240)
    image = pair.frame.image.permute(1, 2, 0).numpy()
    alone = draw_result(image, result_for(pair, [(3, 1, 0.9, (100, 100, 200, 200))]), CLASSES)
    other = [(8, 0, 0.95, (220, 100, 300, 200)), (3, 2, 0.4, (100, 100, 200, 200))]
    together = draw_result(image, result_for(pair, other), CLASSES)
    assert (alone[180, 150] == together[180, 150]).all()
    assert (together[180, 150] != together[180, 260]).any()


def test_only_sounding_objects_are_drawn() -> None:
    pair = pair_at(0, width=320, height=240)
    image = pair.frame.image.permute(1, 2, 0).numpy()
    assert (draw_result(image, result_for(pair, [(1, 1, 0.9, None)]), CLASSES) == image).all()
    drawn = draw_result(image, result_for(pair, [(1, 1, 0.9, (100, 120, 200, 220))]), CLASSES)
    changed = (drawn != image).any(axis=2)
    assert changed[120:220, 100:200].all()
    assert not changed[225:].any()  # nothing beyond the outline
    assert not changed[:, 260:].any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_outline_and_label_stand_out(level: int) -> None:
    """On black, gray and white: WCAG asks for 3:1 between graphics and what is around them."""
    pair = pair_at(0, width=320, height=240, level=level)
    image = pair.frame.image.permute(1, 2, 0).numpy()
    for track_id in range(1, len(PALETTE) + 1):
        drawn = draw_result(image, result_for(pair, [(track_id, 1, 0.9, (100, 120, 200, 220))]), CLASSES)
        edge = drawn[170, 92:108]  # across the left outline
        contrasts = [_contrast(a, b) for a in edge for b in edge]
        assert max(contrasts) >= 3
        assert _contrast(np.array(identity_color(track_id)), np.array(text_color(identity_color(track_id)))) >= 4.5


def _contrast(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    bright, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(color: NDArray[np.uint8]) -> float:
    c = color.astype(float) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_labels_do_not_cover_each_other() -> None:
    """Three objects in the same place: three chips, each in its own colour."""
    pair = pair_at(0, width=320, height=240)
    image = pair.frame.image.permute(1, 2, 0).numpy()
    tracks = [(k, 1, 0.9, (100, 100, 160, 160)) for k in (1, 2, 5)]
    drawn = draw_result(image, result_for(pair, tracks), CLASSES)
    for track_id in (1, 2, 5):
        assert (drawn == np.array(identity_color(track_id))).all(axis=2).sum() > 300


def test_colours_depend_on_the_id_alone() -> None:
    assert [identity_color(k) for k in (1, 2, 17, 16)] == [PALETTE[0], PALETTE[1], PALETTE[0], PALETTE[15]]
    assert len(set(PALETTE)) == len(PALETTE)


def test_masks_of_a_scaled_picture_are_scaled_too(tmp_path: Path) -> None:
    writer = OverlayWriter(tmp_path / "o.mp4", CLASSES, fps=1)
    pair = pair_at(0, width=3840, height=400)
    writer.write(pair, result_for(pair, [(1, 1, 0.9, (0, 0, 1920, 400))]))
    writer.close()
    _, (picture,) = film(tmp_path / "o.mp4")
    assert picture.shape == (200, 1920, 3)
    tint = torch.tensor(picture.astype(float))[150].sub(128).abs().sum(1)
    assert bool((tint[50:900] > 30).all())
    assert bool((tint[1000:] < 12).all())


def test_a_film_of_wide_pixels_is_played_as_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may have a name with a colon in it."""
    monkeypatch.chdir(tmp_path)
    clip = open_clip(write_media(Path("in.mp4"), Media(regular(1), pixel_aspect=Fraction(4, 3))))
    writer = OverlayWriter("12:30.mp4", CLASSES, fps=clip.fps, pixel_aspect=clip.pixel_aspect)
    for pair in clip:
        writer.write(pair, result_for(pair, []))
    writer.close()
    with av.open("file:12:30.mp4") as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
