"""What a training step is fed: clips with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from avis_stream.checks import check_shape
from avis_stream.config import InputConfig
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.train.losses import Targets


@dataclass(frozen=True, slots=True, eq=False)
class ClipSample:
    """A few frames of a video, their sound, and which objects are and sound where."""

    images: Tensor
    """uint8 [T, 3, H, W]."""
    seconds: Tensor
    """float32 [T, 16000], the second of sound of each frame."""
    labels: Tensor
    """int64 [G], class of each object."""
    masks: Tensor
    """bool [G, T, H, W]; all False in frames where the object is unseen. Without `sounding` also where it is silent."""
    name: str = ""
    features: Tensor | None = None
    """float32 [T, A], if they were made beforehand; `seconds` is not listened to then."""
    sounding: Tensor | None = None
    """bool [G, T]; None: the masks are of sounding objects alone, as AVISeg has them."""
    previous: Tensor | None = None
    """uint8 [T, 3, H, W], the pictures 100 ms earlier; None: no motion is known."""
    tags: Tensor | None = None
    """float32 [T, K], 1 for classes heard, sources outside the picture included; None: of the sounding objects."""
    valid_samples: Tensor | None = None
    """int64 [T], how many samples of each of `seconds` there were; None: all."""

    def __post_init__(self) -> None:
        frames, _, height, width = check_shape(self.images, "images", "T 3 H W", dtype=torch.uint8).shape
        check_shape(self.seconds, "seconds", "T S", dtype=torch.float32, T=frames)
        check_shape(self.labels, "labels", "G", dtype=torch.int64)
        objects = len(self.labels)
        check_shape(self.masks, "masks", "G T H W", dtype=torch.bool, G=objects, T=frames, H=height, W=width)
        if self.sounding is not None:
            check_shape(self.sounding, "sounding", "G T", dtype=torch.bool, G=objects, T=frames)
        if self.previous is not None:
            check_shape(self.previous, "previous", "T 3 H W", dtype=torch.uint8, T=frames, H=height, W=width)
        if self.tags is not None:
            check_shape(self.tags, "tags", "T K", dtype=torch.float32, T=frames)
        if self.valid_samples is not None:
            check_shape(self.valid_samples, "valid_samples", "T", dtype=torch.int64, T=frames)

    def to(self, device: torch.device) -> ClipSample:
        """The same on a device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def part(self, frames: slice) -> ClipSample:
        """Some of its frames; the objects stay, whether they can be seen there or not."""
        kept: dict[str, Any] = {"masks": self.masks[:, frames]}
        if self.sounding is not None:
            kept["sounding"] = self.sounding[:, frames]
        for name in ("images", "seconds", "features", "previous", "tags", "valid_samples"):
            value = getattr(self, name)
            kept[name] = None if value is None else value[frames]
        return replace(self, **kept)

    @property
    def there(self) -> Tensor:
        """`valid_samples`, where nothing is known all of them."""
        if self.valid_samples is not None:
            return self.valid_samples
        return torch.full((len(self.seconds),), self.seconds.shape[1], device=self.seconds.device)

    def sounding_alone(self) -> ClipSample:
        """The truth that AVISM knows: objects have masks only while they sound."""
        if self.sounding is None:
            return self
        return replace(self, masks=self.masks & self.sounding[..., None, None], sounding=None)

    def clip_targets(self, padded: tuple[int, int]) -> Targets:
        """Objects with pixels in any frame, masks padded to (height, width)."""
        kept = self.masks.flatten(1).any(dim=1)
        sounding = None if self.sounding is None else self.sounding[kept]
        return Targets(self.labels[kept], pad_masks(self.masks[kept], padded), kept.nonzero()[:, 0], sounding)

    def frame_targets(self, padded: tuple[int, int]) -> list[Targets]:
        """For each frame the objects with pixels in it; `ids` are those of `clip_targets`."""
        masks = pad_masks(self.masks, padded)
        frames = []
        for t in range(len(self.images)):
            kept = masks[:, t].flatten(1).any(dim=1)
            sounding = None if self.sounding is None else self.sounding[kept, t]
            frames.append(Targets(self.labels[kept], masks[kept, t, None], kept.nonzero()[:, 0], sounding))
        return frames

    def heard(self, classes: int) -> Tensor:
        """float32 [T, K], 1 for each class that is heard."""
        if self.tags is not None:
            return self.tags
        sounding = self.masks.flatten(2).any(dim=2) if self.sounding is None else self.sounding
        known = self.labels < classes  # quirk Q2 gives objects that are silent at first the class "nothing"
        tags = self.images.new_zeros(len(self.images), classes, dtype=torch.float32)
        return tags.index_add_(1, self.labels[known], sounding[known].T.float()).clamp_(max=1)


def pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [..., H, W] with zeros added right and below, as pictures are padded."""
    height, width = masks.shape[-2:]
    return torch.nn.functional.pad(masks, (0, size[1] - width, 0, size[0] - height))


def stack_images(samples: Sequence[ClipSample], config: InputConfig) -> Tensor:
    """Pictures of B clips as the network takes them, float32 [B T, 3, Hp, Wp]: all padded to what the largest needs."""
    return _stack([sample.images for sample in samples], config)


def stack_previous(samples: Sequence[ClipSample], config: InputConfig) -> Tensor:
    """The same 100 ms earlier; where that is not known, the pictures themselves: nothing moved."""
    return _stack([s.images if s.previous is None else s.previous for s in samples], config)


def _stack(clips: Sequence[Tensor], config: InputConfig) -> Tensor:
    largest = max(clip.shape[-2] for clip in clips), max(clip.shape[-1] for clip in clips)
    return torch.cat([normalise_and_pad(clip, config, largest) for clip in clips])
