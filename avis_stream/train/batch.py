"""What a training step is fed: clips with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avis_stream.checks import check_shape
from avis_stream.train.losses import Targets


@dataclass(frozen=True, slots=True, eq=False)
class ClipSample:
    """A few frames of a video, their sound, and which objects sound where."""

    images: Tensor
    """uint8 [T, 3, H, W]."""
    seconds: Tensor
    """float32 [T, 16000], the second of sound of each frame."""
    labels: Tensor
    """int64 [G], class of each object."""
    masks: Tensor
    """bool [G, T, H, W]; all False in frames where the object is silent or unseen."""
    name: str = ""
    features: Tensor | None = None
    """float32 [T, A], if they were made beforehand; `seconds` is not listened to then."""

    def __post_init__(self) -> None:
        frames, _, height, width = check_shape(self.images, "images", "T 3 H W", dtype=torch.uint8).shape
        check_shape(self.seconds, "seconds", "T S", dtype=torch.float32, T=frames)
        check_shape(self.labels, "labels", "G", dtype=torch.int64)
        check_shape(self.masks, "masks", "G T H W", dtype=torch.bool, G=len(self.labels), T=frames, H=height, W=width)

    def clip_targets(self, padded: tuple[int, int]) -> Targets:
        """Objects with pixels in any frame, masks padded to (height, width)."""
        kept = self.masks.flatten(1).any(dim=1)
        return Targets(self.labels[kept], pad_masks(self.masks[kept], padded), kept.nonzero()[:, 0])

    def frame_targets(self, padded: tuple[int, int]) -> list[Targets]:
        """For each frame the objects with pixels in it; `ids` are those of `clip_targets`."""
        masks = pad_masks(self.masks, padded)
        frames = []
        for t in range(len(self.images)):
            kept = masks[:, t].flatten(1).any(dim=1)
            frames.append(Targets(self.labels[kept], masks[kept, t, None], kept.nonzero()[:, 0]))
        return frames


def pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [..., H, W] with zeros added right and below, as pictures are padded."""
    height, width = masks.shape[-2:]
    return torch.nn.functional.pad(masks, (0, size[1] - width, 0, size[0] - height))


def stack_images(samples: Sequence[ClipSample]) -> Tensor:
    """Pictures of clips of one size: uint8 [B, T, 3, H, W]."""
    return torch.stack([sample.images for sample in samples])
