"""Pictures, sound and masks on a GPU: the kernels, run on the emulator."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from avis_stream import gpu
from avis_stream.audio.logmel import LogMel
from avis_stream.config import InputConfig
from avis_stream.errors import ShapeError
from avis_stream.gpu import media
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "ops"))
import emulated  # noqa: E402

needs_compiler = pytest.mark.skipif(emulated.compiler() is None, reason="the emulator needs g++")


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulated.build(ROOT / "tests" / "ops" / "media_kernels.cpp")))


@pytest.fixture(params=[0, 1], ids=["in order", "shuffled"])
def _seed(request: pytest.FixtureRequest, kernels: ctypes.CDLL) -> Iterator[None]:
    kernels.emu_seed(request.param)
    yield
    kernels.emu_seed(0)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_seed")
@needs_compiler
@pytest.mark.parametrize("form", ["rgb", "bgr"])
@pytest.mark.parametrize("size", [(36, 64), (75, 53), (20, 20), (47, 91)], ids=str)
def test_pictures_are_pillows_byte_for_byte(
    kernels: ctypes.CDLL, size: tuple[int, int], form: media.FrameFormat
) -> None:
    """Smaller, larger, both, and the same size; the padding is zero."""
    torch.manual_seed(0)
    frame = torch.randint(256, (47, 91, 3), dtype=torch.uint8)
    config = InputConfig()
    given = frame if form == "rgb" else frame.flip(-1).contiguous()
    args, out, _kept = media.frame_arguments(given, size, config, form, "bt709")
    assert kernels.network_input_(ctypes.byref(args)) == 0
    want = normalise_and_pad(resize_images(frame.permute(2, 0, 1)[None], size), config)[0]
    assert out.shape == want.shape
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)  # a byte more would be 0.017


@needs_compiler
def test_rows_may_be_longer_than_the_picture(kernels: ctypes.CDLL) -> None:
    """Decoders pad rows."""
    wide = torch.randint(256, (40, 80, 3), dtype=torch.uint8)
    config, frame = InputConfig(), wide[:, :64]
    args, out, _kept = media.frame_arguments(frame, (24, 32), config, "rgb", "bt709")
    assert args.row_bytes == 240
    assert kernels.network_input_(ctypes.byref(args)) == 0
    want = normalise_and_pad(resize_images(frame.permute(2, 0, 1)[None].contiguous(), (24, 32)), config)[0]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(("colours", "kr", "kb"), [("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722)])
def test_nv12_becomes_the_colours_it_was_made_of(kernels: ctypes.CDLL, colours: str, kr: float, kb: float) -> None:
    """Flat patches of colour, encoded by the standard's own formula, come back within the rounding of 8 bits."""
    torch.manual_seed(1)
    rgb = torch.randint(256, (6, 8, 3)).double()
    red, green, blue = rgb.unbind(-1)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    y = (16 + luma * 219 / 255).round().repeat_interleave(2, 0).repeat_interleave(2, 1)
    chroma = torch.stack([128 + cb * 224 / 255, 128 + cr * 224 / 255], -1).round().flatten(1)
    frame = torch.cat([y, chroma]).to(torch.uint8)  # [12 + 6, 16]
    config = InputConfig(pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), size_divisor=1)
    args, out, _kept = media.frame_arguments(frame, (12, 16), config, "nv12", colours)
    assert kernels.network_input_(ctypes.byref(args)) == 0
    want = rgb.permute(2, 0, 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (out.double() - want).abs().max() <= 2.0


def test_frames_of_another_shape_are_refused() -> None:
    config = InputConfig()
    with pytest.raises(ShapeError, match="nv12, got"):
        media.frame_arguments(torch.zeros(10, 16, dtype=torch.uint8), (8, 8), config, "nv12", "bt709")
    with pytest.raises(ShapeError, match="frame"):
        media.frame_arguments(torch.zeros(3, 10, 16, dtype=torch.uint8), (8, 8), config, "rgb", "bt709")
    assert network_size(720, 1280, config) == (360, 640)


# --- sound ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_seed")
@needs_compiler
def test_log_mel_is_the_cpus(kernels: ctypes.CDLL) -> None:
    """Noise, a loud tone whose neighbours are quiet, and silence; one second is cut off."""
    torch.manual_seed(0)
    time = torch.arange(16_000) / 16_000
    sound = torch.stack([torch.randn(16_000).clamp(-1, 1), torch.sin(2764.6 * time), torch.zeros(16_000)])
    valid = torch.tensor([16_000, 15_600, 15_599])
    args, out, _kept = media.logmel_arguments(sound, 0.001, valid)
    assert kernels.log_mel_(ctypes.byref(args), 3) == 0
    want = LogMel(0.001)(sound, valid)
    torch.testing.assert_close(out, want, rtol=0, atol=2e-6)
    assert not out[2].any()
    args, out, _kept = media.logmel_arguments(sound, 0.001, None)
    assert kernels.log_mel_(ctypes.byref(args), 3) == 0
    torch.testing.assert_close(out, LogMel(0.001)(sound), rtol=0, atol=2e-6)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_seed")
@needs_compiler
@pytest.mark.parametrize("size", [(3, 5), (16, 16), (40, 77)], ids=str)
def test_masks_come_back_from_their_bits(kernels: ctypes.CDLL, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, *size)
    logits[1] = -1
    logits[2, 0, 0] = torch.nan  # belongs to nothing
    args, bits, area, _kept = media.mask_arguments(logits)
    assert kernels.pack_masks_(ctypes.byref(args)) == 0
    want = logits > 0
    assert torch.equal(gpu.media.unpack_masks(bits, *size), want)
    assert torch.equal(area, want.sum((1, 2), dtype=torch.int32))
    assert np.array_equal(bits.numpy(), np.packbits(want.flatten(1).numpy(), axis=1))


# --- where there is no GPU --------------------------------------------------------------------------------------------


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"logits must be on a GPU, got .* on cpu; move it there"):
        media.tensor_of(torch.zeros(1, 2, 2), "logits")
