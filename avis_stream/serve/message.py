"""What a viewer gets for each result: JSON, the picture as JPEG, who is where as PNG. Pure.

[length of JSON | of JPEG | of PNG, each 4 bytes, big-endian][JSON][JPEG][PNG]

The browser blends, so that a viewer can hide an identity without asking for another picture.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avis_stream.stream.stats import SessionStats
from avis_stream.types import SAMPLE_RATE, LiveResult
from avis_stream.writers.colors import identity_color
from avis_stream.writers.draw import draw_result
from avis_stream.writers.jsonl import result_record

MAX_SIDE = 960
"""Larger pictures are scaled down for the page."""
_JPEG_QUALITY = 80
_LEVEL_SECONDS = 0.25
_QUIET_DB = -60.0


def packed(record: Mapping[str, Any], picture: bytes, ids: bytes) -> bytes:
    """One message of the websocket."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return struct.pack(">III", len(text), len(picture), len(ids)) + text + picture + ids


def is_text(message: bytes) -> bool:
    """Whether it is JSON alone, not one with a picture."""
    return message.startswith(b"{")


def viewer_record(result: LiveResult, classes: Sequence[str], stats: SessionStats) -> dict[str, Any]:
    """The JSON part: the record of `docs/formats.md` without masks, colours, the level of the sound, and figures."""
    record = result_record(
        result.pair, result, classes, latency_ms=result.latency_ms, dropped=result.dropped_since_last
    )
    for n, track in enumerate(record["tracks"], 1):
        del track["segmentation"]
        track["index"] = n  # in the picture of ids
        track["color"] = identity_color(track["id"])
    record["level"] = level_of(result)
    record["refreshed"] = result.refreshed
    record["stats"] = {
        "fps_in": stats.fps_in, "masks_hz": stats.masks_hz, "steps_hz": stats.steps_hz,
        "latency_p95_ms": stats.latency.p95, "dropped": stats.dropped_frames, "reconnects": stats.reconnects,
    }  # fmt: skip
    return record


def level_of(result: LiveResult) -> float:
    """Loudness of the last quarter of a second, from 0 (-60 dB below full scale, or less) to 1."""
    samples = result.pair.audio[-round(_LEVEL_SECONDS * SAMPLE_RATE) :]
    power = float(samples.double().square().mean())
    decibels = _QUIET_DB if power <= 0 else 10 * float(np.log10(power))
    return round(min(1.0, max(0.0, 1 - decibels / _QUIET_DB)), 3)


def picture_of(result: LiveResult) -> bytes:
    """The frame as JPEG, no side longer than MAX_SIDE."""
    return _jpeg(Image.fromarray(_pixels(result)))


def drawn_picture_of(result: LiveResult, classes: Sequence[str]) -> bytes:
    """The same with everything drawn in, for viewers that cannot blend."""
    return _jpeg(Image.fromarray(draw_result(_pixels(result), result, classes)))


def ids_of(result: LiveResult) -> bytes:
    """PNG of 8 bits at the size of the picture: 0, or the number of the row in `tracks`, from 1."""
    height, width = result.pair.frame.image.shape[1:]
    ids = np.zeros((height, width), np.uint8)
    for row in reversed(range(min(len(result), 255))):  # best last, so on top
        ids[result.mask[row].numpy()] = row + 1
    out = io.BytesIO()
    image = Image.fromarray(ids)
    image.resize(_fitted(width, height), Image.Resampling.NEAREST).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _pixels(result: LiveResult) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = result.pair.frame.image.permute(1, 2, 0).contiguous().numpy()
    return array


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    size = _fitted(*image.size)
    (image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)).save(
        out, "JPEG", quality=_JPEG_QUALITY
    )
    return out.getvalue()


def _fitted(width: int, height: int) -> tuple[int, int]:
    factor = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))
