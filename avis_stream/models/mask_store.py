"""Keeps the mask features of a clip of any length within a memory budget, until its masks are drawn.

The class scores and mask embeddings of a clip are known after its last frame only, so the mask features of all frames
(15.7 MB a frame at 384 x 640) have to be kept, or made again. Frames find their home in this order:

    memory, float32 ---> memory, float16 ---> disk, float16 ---> nowhere: recomputed when read
    (all frames, while     (all frames, once     (later frames,      (later frames, once
     the budget lasts)      it is passed)         up to a bound)      that is passed too)
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from avis_stream.errors import AvisStreamError

logger = logging.getLogger(__name__)

Recompute = Callable[[int], Iterator[Tensor]]
"""From a frame index to the mask features [t, Cm, h, w] of that frame and all later ones, in chunks of any size."""


class MaskStore:
    """Append-only store of mask features [t, Cm, h, w], read back once or more in the order they came.

    Use it as a context manager: leaving it frees the disk. The spool file has no name from the start, so that not even
    a killed process leaves it behind.
    """

    def __init__(
        self,
        memory_bytes: int,
        disk_bytes: int = 0,
        *,
        recompute: Recompute | None = None,
        spool_folder: Path | None = None,
    ) -> None:
        """Sets the bounds.

        Args:
            memory_bytes: Most that frames in memory may take, >= 0.
            disk_bytes: Most that the spool file may take, >= 0.
            recompute: Makes the features of frames that found no home; None: appending those raises.
            spool_folder: Where to spool; None: the system's folder for temporary files.
        """
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.frames = 0
        self._recompute = recompute
        self._spool_folder = spool_folder
        self._in_memory: list[Tensor] = []
        self._dtype = torch.float32
        self._spool: IO[bytes] | None = None
        self._spooled: list[torch.Size] = []
        self._lost = 0

    def __enter__(self) -> MaskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees memory and disk; the store is empty afterwards."""
        self._in_memory.clear()
        self._spooled.clear()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self.frames = self._lost = 0

    @property
    def homes(self) -> dict[str, int]:
        """Number of frames by where they are: `memory float32`, `memory float16`, `disk`, `recomputed`."""
        kind = "memory float32" if self._dtype == torch.float32 else "memory float16"
        counts = {
            kind: sum(len(part) for part in self._in_memory),
            "disk": sum(shape[0] for shape in self._spooled),
            "recomputed": self._lost,
        }
        return {home: count for home, count in counts.items() if count}

    def append(self, features: Tensor) -> None:
        """Takes the next frames' features, float [t, Cm, h, w].

        Raises:
            AvisStreamError: No budget is left and nothing can recompute; the message names the remedy.
        """
        self.frames += len(features)
        if not self._spooled and not self._lost and self._fits_in_memory(features):
            self._in_memory.append(features.to("cpu", self._dtype, copy=True))
        elif not self._lost and self._fits_on_disk(features):
            self._write(features)
        elif self._recompute is not None:
            if not self._lost:
                logger.info("mask features from frame %d on will be computed twice", self.frames - len(features))
            self._lost += len(features)
        else:
            raise AvisStreamError(
                f"mask features of {self.frames} frames need more than the {self.memory_bytes / 2**30:.2f} GiB of "
                f"memory and {self.disk_bytes / 2**30:.2f} GiB of disk allowed; raise --memory-budget"
            )

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yields (index of the first frame, float32 [t, Cm, h, w]) for all frames, in order."""
        start = 0
        for features in itertools.chain(self._in_memory, self._read_spool(), self._read_lost()):
            yield start, features.float()
            start += len(features)

    def _fits_in_memory(self, features: Tensor) -> bool:
        held = sum(part.numel() for part in self._in_memory) + features.numel()
        if self._dtype == torch.float32 and 4 * held > self.memory_bytes and 2 * held <= self.memory_bytes:
            logger.info("mask features go on in float16: the memory budget is reached")
            self._dtype = torch.float16
            for i, part in enumerate(self._in_memory):  # one at a time, so that both copies never stand side by side
                self._in_memory[i] = part.half()
        return held * self._dtype.itemsize <= self.memory_bytes

    def _fits_on_disk(self, features: Tensor) -> bool:
        held = sum(shape.numel() for shape in self._spooled) + features.numel()
        return 2 * held <= self.disk_bytes

    def _write(self, features: Tensor) -> None:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=self._spool_folder)  # noqa: SIM115 - closed by close()
            logger.info("mask features go on in a spool file: the memory budget is reached")
        self._spool.write(features.to("cpu", torch.float16).contiguous().numpy().data)
        self._spooled.append(features.shape)

    def _read_spool(self) -> Iterator[Tensor]:
        if self._spool is None:
            return
        self._spool.seek(0)
        for shape in self._spooled:
            values = np.frombuffer(bytearray(self._spool.read(2 * shape.numel())), np.float16)
            yield torch.from_numpy(values).view(shape)

    def _read_lost(self) -> Iterator[Tensor]:
        if self._lost:
            assert self._recompute is not None
            left = self._lost
            for features in self._recompute(self.frames - self._lost):
                yield features[:left]
                left -= len(features[:left])
                if not left:
                    return
            raise AvisStreamError(f"the second pass over the clip ended {left} frames early; has the file changed?")
