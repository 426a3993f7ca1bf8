"""What a clip turned out to hold: tracked sounding objects with a mask in every frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avis_stream.data import rle
from avis_stream.data.rle import Rle
from avis_stream.types import NANOSECONDS, OnlineResult


@dataclass(frozen=True, slots=True, eq=False)
class ClipResult:
    """Instances of a clip, best first; I of them over T frames. Silence is an empty mask."""

    score: Tensor
    """float32 [I], class score x mask quality."""
    class_id: Tensor
    """int64 [I], index into the model's `classes`."""
    query_id: Tensor
    """int64 [I], the video query it came from; one query may give two instances of different classes."""
    rles: tuple[tuple[Rle, ...], ...]
    """[I][T]."""
    frames: int
    """T."""
    size: tuple[int, int]
    """(height, width) of the masks."""
    presence: Tensor | None = None
    """float32 [I, T], chance of sounding in each frame; None for models without a sounding head."""
    mask_embed: Tensor | None = None
    """float32 [I, Cm] or [I, T, Cm]: products with mask features of a picture (of frame t) are its mask logits."""

    def __len__(self) -> int:
        return len(self.score)

    def __repr__(self) -> str:
        scores = [round(s, 3) for s in self.score.tolist()]
        return f"ClipResult({len(self)} instances, {self.frames} frames of {self.size}, score={scores})"

    def masks(self, t: int) -> Tensor:
        """Masks of frame t, bool [I, H, W]."""
        if not 0 <= t < self.frames:
            raise IndexError(f"frame {t} of a clip of {self.frames} frames")
        return torch.stack([rle.decode(track[t]) for track in self.rles]) if len(self) else self._nothing()

    def sounding(self, t: int) -> Tensor:
        """Which instances have a mask in frame t, bool [I]."""
        return torch.tensor([rle.area(track[t]) > 0 for track in self.rles], dtype=torch.bool)

    def rle(self, i: int) -> list[Rle]:
        """Masks of instance i as T COCO run-length codes."""
        return list(self.rles[i])

    def to_aviseg(self, video_id: int) -> list[dict[str, Any]]:
        """The instances as entries of an AVISeg predictions file, as the official code writes them.

        Where it is known how likely each sounds in each frame, `frame_scores` [T] is added, the score times that
        chance: what the masks of single frames are ranked by (frame AP50). Other evaluators do not look at it.
        """
        entries: list[dict[str, Any]] = [
            {"video_id": video_id, "score": score, "category_id": class_id + 1, "segmentations": self.rle(i)}
            for i, (score, class_id) in enumerate(zip(self.score.tolist(), self.class_id.tolist(), strict=True))
        ]
        if self.presence is not None:
            for entry, chances in zip(entries, self.presence.tolist(), strict=True):
                entry["frame_scores"] = [round(entry["score"] * chance, 6) for chance in chances]
        return entries

    def to_binary(self, t: int) -> Tensor:
        """Pixels of frame t that belong to any sounding object, bool [H, W]."""
        return self.masks(t).any(dim=0)

    def to_semantic(self, t: int) -> Tensor:
        """Class of each pixel of frame t, int64 [H, W]: 0 for silence, else class id + 1, best score on top."""
        canvas = torch.zeros(self.size, dtype=torch.int64)
        for mask, class_id in zip(reversed(self.masks(t)), reversed(self.class_id.tolist()), strict=True):
            canvas[mask] = class_id + 1
        return canvas

    def results(self, frame_seconds: float = 1.0) -> Iterator[OnlineResult]:
        """One `OnlineResult` a frame, as writers take them; track ids count the instances from 1.

        Args:
            frame_seconds: Time from one frame to the next.
        """
        track_id = torch.arange(1, len(self) + 1)
        for t in range(self.frames):
            sounding = self.sounding(t)
            boxes = [rle.box(track[t]) for track in self.rles]
            yield OnlineResult(
                pts_ns=round(t * frame_seconds * NANOSECONDS),
                frame_id=t,
                track_id=track_id,
                class_id=self.class_id,
                score=self.score,
                sounding=sounding,
                mask=self.masks(t),
                box=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            )

    def _nothing(self) -> Tensor:
        return torch.zeros((0, *self.size), dtype=torch.bool)
