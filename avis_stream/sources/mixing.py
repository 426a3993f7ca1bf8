"""Decoded audio frames to float32, and many channels to one or two. Sample rates are `sound.py`'s business."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

# Share of a loudspeaker in (left, right). Surround is 3 dB down as in ITU-R BS.775; the effects channel is left out.
_SHARES = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (0.707, 0.707),
    "LFE": (0.0, 0.0),
    "LFE2": (0.0, 0.0),
    "BL": (0.707, 0.0),
    "BR": (0.0, 0.707),
    "SL": (0.707, 0.0),
    "SR": (0.0, 0.707),
    "BC": (0.5, 0.5),
    "FLC": (0.707, 0.5),
    "FRC": (0.5, 0.707),
}


def samples_of(frame: av.AudioFrame) -> FloatArray:
    """Samples of a decoded frame as float32 [channels, n], full scale 1; NaN and infinity become 0."""
    raw: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        raw = raw.reshape(-1, len(frame.layout.channels)).T  # [n, channels] -> [channels, n]
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) - np.float32(128)) / np.float32(128)
    if raw.dtype.kind == "i":
        whole: FloatArray = raw.astype(np.float32)
        whole *= 2.0 ** (1 - 8 * raw.dtype.itemsize)
        return whole
    # One NaN would spread over the whole length of the resampler's filter.
    finite: FloatArray = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    return finite


def mixed(frame: av.AudioFrame, channels: int) -> FloatArray:
    """Samples of a decoded frame as float32 [channels, n] with `channels` 1 or 2; a mix is never louder than its parts.

    Mono is the plain mean of stereo, as the official AVISM front end has it.
    """
    samples = samples_of(frame)
    count = samples.shape[0]
    if count == channels:
        return samples
    if count == 1:
        return np.repeat(samples, channels, axis=0)
    if count == 2:
        return np.add(samples[:1], samples[1:]) * np.float32(0.5)
    names = [channel.name for channel in frame.layout.channels]
    shares = np.array([_SHARES.get(name, (0.5, 0.5)) for name in names], np.float32).T  # [2, channels]
    if channels == 1:
        shares = shares.sum(axis=0, keepdims=True)
    total = shares.sum(axis=1, keepdims=True)
    if not total.all():  # a layout without a left or a right side: every channel counts the same
        shares, total = np.ones((channels, count), np.float32), np.full((channels, 1), count, np.float32)
    mix: FloatArray = (shares / total) @ samples
    return mix
