"""Pixels in GStreamer's buffers: read by the model, drawn into for an overlay, made for masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import gi
import numpy as np
from numpy.typing import NDArray

from avis_stream.sources.worker.layout import Layout

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402


def view(layout: Layout, data: Any) -> NDArray[np.uint8]:
    """The picture uint8 [H, W, 3] in the bytes of a mapped buffer; must not outlive the mapping.

    Raises:
        ValueError: The buffer is shorter than its picture.
    """
    layout.check(memoryview(data).nbytes)
    # By strides: a reshaped copy would be drawn into in vain. The last row need not be padded.
    return np.ndarray((layout.height, layout.width, 3), np.uint8, data, layout.offset, (layout.stride, 3, 1))


class BufferPicture(NamedTuple):
    """A picture that stays in its buffer until it is wanted. The buffer is held: nobody may write to it meanwhile.

    One is made for each frame in the stream's own thread, so of the cheapest kind.
    """

    buffer: Any
    layout: Layout
    """By the caps."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.layout.size

    def pixels(self) -> NDArray[np.uint8]:
        """A copy, uint8 [H, W, 3].

        Raises:
            RuntimeError: The buffer cannot be read.
            ValueError: It is shorter than its picture.
        """
        good, info = self.buffer.map(Gst.MapFlags.READ)
        if not good:
            raise RuntimeError("a video buffer cannot be read")
        try:
            return view(self.layout.of(self.buffer), info.data).copy()
        finally:
            self.buffer.unmap(info)


def draw_into(buffer: Any, layer: Any, layout: Layout) -> None:
    """Blends a `Layer` into a buffer that may be written to.

    Raises:
        ValueError: The buffer is shorter than its picture.
    """
    layout = layout.of(buffer)
    good, info = buffer.map(Gst.MapFlags.READ | Gst.MapFlags.WRITE)
    if good:
        try:
            layer.blend(view(layout, info.data))
        finally:
            buffer.unmap(info)


def mask_buffer(ids: NDArray[Any] | None, size: tuple[int, int]) -> Any:
    """A map of ids [H, W], GRAY8 or GRAY16_LE by its dtype, as a buffer; None: zeros.

    Rows are padded to four bytes, as GStreamer takes for granted.
    """
    width, height = size
    if ids is None:
        ids = np.zeros((height, width), np.uint8)
    row = (width * ids.itemsize + 3) // 4 * 4
    padded = np.zeros((height, row // ids.itemsize), ids.dtype.newbyteorder("<"))
    padded[:, :width] = ids
    return Gst.Buffer.new_wrapped(padded.tobytes())
