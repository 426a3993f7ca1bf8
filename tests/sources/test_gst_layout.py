"""Rows of pictures lie in GStreamer's buffers as whoever made them likes; what a worker sends is the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from live_tools import need_gstreamer

from avis_stream.sources.worker.wire import VIDEO

WIDTH, HEIGHT = 5, 4
OWN = 16
"""A row of 15 bytes, padded to 4 as caps alone have it."""


class Noted:
    """Takes what the worker would write into its pipe."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []

    def send(self, kind: bytes, payload: Any, _stamp: int = 0, width: int = 0, height: int = 0) -> None:
        if kind == VIDEO:  # before the first, it says what the source has
            self.pictures.append(np.frombuffer(bytes(payload), np.uint8).reshape(height, width, 3))


@pytest.mark.parametrize(
    ("offset", "stride", "beyond"),
    [(0, OWN, 0), (0, OWN, -1), (0, OWN, 100), (0, 32, 0), (24, 15, 0), (24, 20, 7)],
    ids=["plain", "last_row_not_padded", "longer_than_its_picture", "wide_stride", "offset_and_packed", "all_of_it"],
)
def test_a_picture_comes_out_as_its_buffer_says(offset: int, stride: int, beyond: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    data = np.full(offset + HEIGHT * stride + max(0, beyond), 9, np.uint8)
    data[offset : offset + HEIGHT * stride].reshape(HEIGHT, stride)[:, : 3 * WIDTH] = pixels.reshape(HEIGHT, -1)
    lying = None if (offset, stride) == (0, OWN) else (offset, stride)
    (seen,) = sent(data[: len(data) + min(0, beyond)].tobytes(), lying)
    assert np.array_equal(seen, pixels)


@pytest.mark.parametrize(
    ("length", "lying", "needed"),
    [
        (HEIGHT * 15, None, 63),
        (HEIGHT * OWN - 2, None, 63),
        (0, None, 63),
        (24 + HEIGHT * 20 - 6, (24, 20), 99),
        (1000, (0, 12), 60),
    ],
    ids=["not_padded", "one_byte_short", "empty", "by_its_meta", "rows_overlap"],
)
def test_a_buffer_shorter_than_its_picture_ends_the_source(
    length: int, lying: tuple[int, int] | None, needed: int
) -> None:
    from avis_stream.sources.worker.wire import Ended

    with pytest.raises(Ended, match=rf"a video buffer must hold {needed} bytes for 5x4 RGB .*, got {length}; whoever"):
        sent(bytes(length), lying)


def sent(data: bytes, lying: tuple[int, int] | None) -> list[np.ndarray]:
    """What the worker sends of a buffer; `lying`: the offset and the stride that the buffer itself tells."""
    need_gstreamer()
    import gi

    gi.require_version("GstApp", "1.0")
    from gi.repository import Gst, GstApp, GstVideo  # noqa: F401 (GstApp gives appsinks their methods)

    Gst.init(None)
    from avis_stream.sources.worker.gstreamer import _GStreamerReader
    from avis_stream.sources.worker.layout import Layout

    buffer = Gst.Buffer.new_wrapped(data)
    if lying is not None:
        offset, stride = lying
        GstVideo.buffer_add_video_meta_full(
            buffer, GstVideo.VideoFrameFlags.NONE, GstVideo.VideoFormat.RGB, WIDTH, HEIGHT, 1,
            [offset, 0, 0, 0], [stride, 0, 0, 0],
        )  # fmt: skip
    caps = Gst.Caps.from_string(f"video/x-raw,format=RGB,width={WIDTH},height={HEIGHT},framerate=1/1")
    segment = Gst.Segment()
    segment.init(Gst.Format.TIME)
    noted = Noted()
    reader = _GStreamerReader(Gst, Layout.of_caps, {"pipeline": "fakesrc ! appsink name=video"}, noted)  # type: ignore[arg-type]
    reader._send_picture(Gst.Sample.new(buffer, caps, segment, None))
    return noted.pictures
