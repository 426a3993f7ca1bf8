"""Where the rows of a picture lie in a buffer of GStreamer. Import it where `gi` is known to be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GstVideo  # noqa: E402


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of an RGB picture lie in a buffer."""

    width: int
    height: int
    stride: int
    """Bytes from one row to the next: padded to 4, or whatever whoever made the buffer likes."""
    offset: int = 0

    @staticmethod
    def of_caps(caps: Any) -> Layout:
        """What caps alone say."""
        info = GstVideo.VideoInfo.new_from_caps(caps)
        return Layout(info.width, info.height, info.stride[0], info.offset[0])

    def of(self, buffer: Any) -> Layout:
        """This layout, unless the buffer says otherwise: cameras and GPUs have strides of their own."""
        meta = GstVideo.buffer_get_video_meta(buffer)
        return self if meta is None else Layout(meta.width, meta.height, meta.stride[0], meta.offset[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    def check(self, length: int) -> None:
        """Checks that a buffer of so many bytes holds the whole picture.

        The last row need not be padded, and more may follow it: buffers of pools are as long as their pool likes.

        Raises:
            ValueError: It ends before the last row does, or rows overlap or lie before its beginning.
        """
        row = 3 * self.width
        needed = self.offset + self.stride * (self.height - 1) + row
        if length < needed or self.stride < row or self.offset < 0:
            raise ValueError(
                f"a video buffer must hold {max(needed, row * self.height)} bytes for {self.width}x{self.height} RGB "
                f"in rows {self.stride} bytes apart from byte {self.offset} on, got {length}; whoever makes it must "
                "pad its rows to 4 bytes, or say how they lie in a GstVideoMeta"
            )

    def packed(self, data: Any) -> bytes | memoryview:
        """The picture's bytes, [H, W, 3] and nothing between, out of those of a mapped buffer; copied if they must be.

        Raises:
            ValueError: As `check`.
        """
        row, whole = 3 * self.width, memoryview(data)
        self.check(whole.nbytes)
        if self.stride == row:
            return whole[self.offset : self.offset + row * self.height]
        starts = (self.offset + y * self.stride for y in range(self.height))
        return b"".join(whole[start : start + row] for start in starts)
