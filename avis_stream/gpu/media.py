"""Pictures to the network's input, sound to log-mel, masks to bits: on the GPU, the same numbers as on the CPU.

Tensors of torch and arrays of cupy are taken alike (DLPack, nothing is copied); results are tensors, made on torch's
current stream of their device. The kernels are csrc/gpu/{frames,logmel,mask_bits}.cuh, compiled when first used.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_double, c_float, c_int, c_longlong, c_void_p
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from avis_stream.audio.logmel import PATCH_SAMPLES, mel_matrix
from avis_stream.checks import check_shape, describe, require
from avis_stream.config import InputConfig
from avis_stream.errors import ShapeError
from avis_stream.gpu.runtime import MEDIA_SOURCES, Kernels
from avis_stream.types import SAMPLE_RATE

FrameFormat = Literal["rgb", "bgr", "nv12"]
_FORMATS: tuple[FrameFormat, ...] = ("rgb", "bgr", "nv12")
WEIGHT_BITS = 22

_COLOURS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""What red and blue give to luma."""


class FrameArgs(ctypes.Structure):
    """`FrameArgs` of frames.cuh."""

    _fields_ = [
        *((name, c_void_p) for name in ("data", "chroma")),
        *((name, c_longlong) for name in ("row_bytes", "chroma_row_bytes")),
        *((name, c_int) for name in ("height", "width", "format")),
        *((name, c_int) for name in ("out_height", "out_width", "padded_height", "padded_width")),
        *((name, c_void_p) for name in ("x_first", "x_weights", "y_first", "y_weights")),
        *((name, c_int) for name in ("x_taps", "y_taps")),
        *((name, c_float) for name in ("luma_scale", "red_cr", "green_cb", "green_cr", "blue_cb")),
        *((name, c_float * 3) for name in ("mean", "deviation")),
        ("out", c_void_p),
    ]


class LogMelArgs(ctypes.Structure):
    """`LogMelArgs` of logmel.cuh."""

    _fields_ = [
        *((name, c_void_p) for name in ("seconds", "hann", "twiddle", "mel", "valid")),
        *((name, c_longlong) for name in ("samples", "least")),
        ("offset", c_double),
        ("out", c_void_p),
    ]


class MaskArgs(ctypes.Structure):
    """`MaskArgs` of mask_bits.cuh."""

    _fields_ = [
        ("logits", c_void_p),
        *((name, c_longlong) for name in ("masks", "pixels")),
        *((name, c_void_p) for name in ("bits", "area")),
    ]


# --- public ----------------------------------------------------------------------------------------------------------


def network_input(
    frame: Any,
    size: tuple[int, int],
    config: InputConfig,
    *,
    form: FrameFormat = "rgb",
    colours: Literal["bt601", "bt709"] = "bt709",
) -> Tensor:
    """A frame as the network wants it: resized as Pillow does it, byte for byte, normalised, padded.

    Args:
        frame: uint8 on a GPU: [H, W, 3], or for `nv12` [3 * H / 2, W], luma above chroma, as decoders give it.
        size: (height, width) to resize to; `network_size` says which.
        config: Of the model: mean, deviation and padding.
        form: Order of the channels, or planes.
        colours: Of `nv12`: the standard of the video, with a range of 16 to 235.
    Returns:
        float32 [3, Hp, Wp] on the device of `frame`.
    Raises:
        NativeUnavailableError: No cupy, or no usable GPU.
        ShapeError: `frame` has another shape or dtype.
    """
    kernels = _kernels()
    picture = tensor_of(frame, "frame")
    args, out, _kept = frame_arguments(picture, size, config, form, colours)
    _launch(kernels, "network_input", args, (-(-out[0].numel() // 128), 1, 1), 128, out)
    return out


def log_mel(seconds: Any, offset: float, valid_samples: Any = None) -> Tensor:
    """Log-mel patches, as `audio.logmel.LogMel` makes them, in double precision.

    Args:
        seconds: float32 [T, 16000] in [-1, 1] on a GPU.
        offset: Added before the logarithm; `LogMel.offset` of the model's encoder.
        valid_samples: int64 [T], how many of them were really there; None: all.
    Returns:
        float32 [T, 96, 64] on the device of `seconds`.
    Raises:
        NativeUnavailableError: No cupy, or no usable GPU.
        ShapeError: `seconds` has another shape or dtype.
    """
    kernels = _kernels()
    sound = tensor_of(seconds, "seconds")
    valid = None if valid_samples is None else tensor_of(valid_samples, "valid_samples")
    args, out, _kept = logmel_arguments(sound, offset, valid)
    _launch(kernels, "log_mel", args, (96, len(sound), 1), 256, out)
    return out


def pack_masks(logits: Any) -> tuple[Tensor, Tensor]:
    """Masks as bits, for the way to the host; `unpack_masks` is the way back.

    Args:
        logits: float32 [I, H, W] on a GPU; a pixel above 0 belongs to the mask.
    Returns:
        uint8 [I, ceil(H * W / 8)], and the areas int32 [I] in pixels, on the device of `logits`.
    Raises:
        NativeUnavailableError: No cupy, or no usable GPU.
        ShapeError: `logits` has another shape or dtype.
    """
    kernels = _kernels()
    args, bits, area, _kept = mask_arguments(tensor_of(logits, "logits"))
    _launch(kernels, "pack_masks", args, (-(-bits.shape[1] // 128), len(bits), 1), 128, bits)
    return bits, area


def unpack_masks(bits: Tensor, height: int, width: int) -> Tensor:
    """Masks bool [I, H, W] from the bits of `pack_masks`, on any device."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    flat = (bits[..., None] >> places & 1).flatten(1)[:, : height * width]
    return flat.bool().view(-1, height, width)


# --- arguments of the kernels; tests give them to the emulator --------------------------------------------------------


def frame_arguments(
    frame: Tensor, size: tuple[int, int], config: InputConfig, form: FrameFormat, colours: str
) -> tuple[FrameArgs, Tensor, list[Tensor]]:
    """The struct, the result, and what else the struct points to."""
    require(form in _FORMATS, "form", form, f"one of {', '.join(_FORMATS)}")
    height, width = _frame_size(frame, form)
    frame = frame if frame.stride(-1) == 1 and (form == "nv12" or frame.stride(1) == 3) else frame.contiguous()
    tables = [
        *resize_weights(width, size[1], frame.device),
        *resize_weights(height, size[0], frame.device),
    ]  # x first, x weights, y first, y weights
    padded = [side + -side % config.size_divisor for side in size]
    out = torch.empty(3, *padded, device=frame.device)
    red, blue = _COLOURS[colours]
    green = 1 - red - blue
    chroma_scale = 255 / 224
    names = ("x_first", "x_weights", "y_first", "y_weights")
    places = dict(zip(names, (x.data_ptr() for x in tables), strict=True))
    args = FrameArgs(
        data=frame.data_ptr(),
        chroma=frame.data_ptr() + height * frame.stride(0) if form == "nv12" else None,
        row_bytes=frame.stride(0),
        chroma_row_bytes=frame.stride(0),
        height=height,
        width=width,
        format=_FORMATS.index(form),
        out_height=size[0],
        out_width=size[1],
        padded_height=padded[0],
        padded_width=padded[1],
        **places,
        x_taps=tables[1].shape[1],
        y_taps=tables[3].shape[1],
        luma_scale=255 / 219,
        red_cr=2 * (1 - red) * chroma_scale,
        green_cb=-2 * (1 - blue) * blue / green * chroma_scale,
        green_cr=-2 * (1 - red) * red / green * chroma_scale,
        blue_cb=2 * (1 - blue) * chroma_scale,
        mean=(c_float * 3)(*config.pixel_mean),
        deviation=(c_float * 3)(*config.pixel_std),
        out=out.data_ptr(),
    )
    return args, out, [frame, *tables]


def _frame_size(frame: Tensor, form: FrameFormat) -> tuple[int, int]:
    if form == "nv12":
        if frame.dim() != 2 or frame.dtype != torch.uint8 or frame.shape[0] % 3 or frame.shape[1] % 2:
            raise ShapeError(f"frame must be uint8 [3 * H / 2, W] of even H and W for nv12, got {describe(frame)}")
        return frame.shape[0] * 2 // 3, frame.shape[1]
    check_shape(frame, "frame", "H W 3", dtype=torch.uint8)
    return frame.shape[0], frame.shape[1]


@lru_cache(maxsize=32)
def resize_weights(size: int, new_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each pixel of the result: the first source pixel int32 [n], and integer weights int32 [n, taps].

    Source: Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` for the bilinear filter.
    """
    scale = size / new_size
    spread = max(scale, 1.0)
    taps = math.ceil(spread) * 2 + 1
    first = torch.zeros(new_size, dtype=torch.int32)
    weights = torch.zeros(new_size, taps, dtype=torch.int32)
    for i in range(new_size):
        centre = (i + 0.5) * scale
        start = max(int(centre - spread + 0.5), 0)
        stop = min(int(centre + spread + 0.5), size)
        shares = [max(0.0, 1 - abs((x + start - centre + 0.5) / spread)) for x in range(stop - start)]
        total = sum(shares)
        first[i] = start
        weights[i, : stop - start] = torch.tensor(
            [int(0.5 + share / total * (1 << WEIGHT_BITS)) for share in shares], dtype=torch.int32
        )
    return first.to(device), weights.to(device)


def logmel_arguments(sound: Tensor, offset: float, valid: Tensor | None) -> tuple[LogMelArgs, Tensor, list[Tensor]]:
    """The struct, the result, and what else the struct points to."""
    check_shape(sound, "seconds", f"T {SAMPLE_RATE}", dtype=torch.float32)
    if valid is not None:
        check_shape(valid, "valid_samples", "T", dtype=torch.int64, T=len(sound))
    kept = [sound.contiguous(), *_mel_tables(sound.device)]
    if valid is not None:
        kept.append(valid.contiguous())
    out = torch.empty(len(sound), 96, 64, device=sound.device)
    pointers = [x.data_ptr() for x in kept] + ([None] if valid is None else [])
    return LogMelArgs(*pointers, SAMPLE_RATE, PATCH_SAMPLES, offset, out.data_ptr()), out, kept


@lru_cache(maxsize=8)
def _mel_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Window, twiddle factors and mel weights, float64."""
    angle = torch.arange(256, dtype=torch.float64) * (-2 * math.pi / 512)
    twiddle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    hann = torch.hann_window(400, periodic=True, dtype=torch.float64)
    return hann.to(device), twiddle.to(device), mel_matrix().contiguous().to(device)


def mask_arguments(logits: Tensor) -> tuple[MaskArgs, Tensor, Tensor, list[Tensor]]:
    """The struct, the results, and what else the struct points to."""
    check_shape(logits, "logits", "I H W", dtype=torch.float32)
    flat = logits.contiguous()
    masks, pixels = len(flat), flat.shape[1] * flat.shape[2]
    bits = torch.empty(masks, -(-pixels // 8), dtype=torch.uint8, device=flat.device)
    area = torch.zeros(masks, dtype=torch.int32, device=flat.device)
    return MaskArgs(flat.data_ptr(), masks, pixels, bits.data_ptr(), area.data_ptr()), bits, area, [flat]


# --- device -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _kernels() -> Kernels:
    return Kernels(MEDIA_SOURCES)


def tensor_of(array: Any, name: str) -> Tensor:
    """A tensor that shares the memory of an array of cupy, or of whoever speaks DLPack.

    Raises:
        ShapeError: It is not on a GPU.
    """
    x: Tensor = array if isinstance(array, Tensor) else torch.utils.dlpack.from_dlpack(array)
    if not x.is_cuda:
        raise ShapeError(f"{name} must be on a GPU, got {describe(x)} on {x.device}; move it there with .cuda()")
    return x


def _launch(
    kernels: Kernels, name: str, args: ctypes.Structure, grid: tuple[int, int, int], threads: int, on: Tensor
) -> None:
    if 0 in grid:
        return
    with torch.cuda.device(on.device):
        stream = torch.cuda.current_stream(on.device).cuda_stream
        kernels.launch(name, grid, threads, 0, ctypes.addressof(args), stream)
