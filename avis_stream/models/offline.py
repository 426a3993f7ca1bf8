"""The offline path: a clip of any length through the model, in memory that a budget bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from avis_stream.errors import MediaError
from avis_stream.models.clip import ClipResult
from avis_stream.models.linking import Sightings
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.preprocess import network_input, network_size
from avis_stream.stages import StageTimer

if TYPE_CHECKING:
    from avis_stream.models.avism import AVISM, FrameTokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClipFrame:
    """One frame of a clip as the model wants it."""

    image: Tensor
    """uint8 [3, H, W]."""
    audio_features: Tensor
    """float32 [A]."""
    previous: Tensor | None = None
    """uint8 [3, H, W], the picture about 100 ms before; None: no motion cue."""


ClipFrames = Callable[[], Iterator[ClipFrame]]
"""Starts a pass over the frames of a clip; a second pass is asked for when memory and disk are too small."""


@torch.no_grad()
def segment_clip(
    model: AVISM,
    frames: ClipFrames,
    *,
    out_size: tuple[int, int] | None = None,
    store: MaskStore,
    timer: StageTimer | None = None,
    frame_seconds: float = 1.0,
) -> ClipResult:
    """Finds the sounding objects of a clip.

    Frames are localized as they come and only their queries and mask features are kept; the features find their place
    in a `MaskStore`.

    Args:
        model: Prepared for inference.
        frames: Starts a pass over the clip.
        out_size: (height, width) of the masks; None: that of the pictures.
        store: An empty store for the mask features; the caller closes it.
        timer: Counts the stages `resize`, `localize`, `store`, `track` and `masks`.
        frame_seconds: From one frame to the next.
    Raises:
        MediaError: The clip has no frame, or its frames change size.
    """
    timer = timer or StageTimer()
    localized = _Localized(model, timer)
    for part in localized.run(frames()):
        with timer("store"):
            store.append(part.clip_mask_features)
    if localized.input_size is None:
        raise MediaError("a clip must have at least one frame, got none")
    with timer("track"):
        tracks = model.track(
            localized.take_queries(),
            torch.stack(localized.audio),
            localized.chance_of_sounding(),
            localized.frame_mask_embed(),
            localized.sightings,
            frame_seconds,
        )
    sizes = localized.sizes(out_size or localized.input_size)
    with timer("masks"):
        found = model.find_instances(
            tracks.logits, tracks.mask_embed, store, sizes, model.config.postprocess, tracks.presence, tracks.there
        )
    return ClipResult(
        score=found.score.cpu(),
        class_id=found.class_id.cpu(),
        query_id=found.query_id.cpu(),
        rles=found.rles,
        frames=len(localized.audio),
        size=sizes.output,
        presence=None if found.presence is None else found.presence.cpu(),
        mask_embed=tracks.mask_embed[found.query_id].cpu(),
    )


class _Localized:
    """Runs the localizer over a pass and remembers what the tracker needs."""

    def __init__(self, model: AVISM, timer: StageTimer) -> None:
        self.model = model
        self.timer = timer
        self.input = model.config.input.for_clips()
        self.input_size: tuple[int, int] | None = None
        self.padded_size = (0, 0)
        self.frame_queries: list[Tensor] = []
        self.audio: list[Tensor] = []
        self.sounding: list[Tensor] = []
        self.mask_embed: list[Tensor] = []
        self.sightings: list[Sightings] = []

    def run(self, frames: Iterator[ClipFrame]) -> Iterator[FrameTokens]:
        """Yields the tokens of a few frames at a time."""
        for batch in _batches(frames, self.model.frames_at_once):
            audio = torch.stack([f.audio_features for f in batch])
            with self.timer("resize"):
                images = self._stack([f.image for f in batch])
                previous = self._previous(batch)
            with self.timer("localize"):
                tokens = self.model.localize(images, audio.to(self.model.device), previous)
            self.frame_queries.append(tokens.frame_queries)
            if tokens.sounding is not None:
                self.sounding.append(tokens.sounding)
            if tokens.mask_embed is not None:
                self.mask_embed.append(tokens.mask_embed)
            self.sightings += self.model.sight(tokens, self.sizes())
            self.audio.extend(audio)
            yield tokens

    def sizes(self, output: tuple[int, int] = (0, 0)) -> MaskSizes:
        """Through which masks go on their way to `output`, (height, width)."""
        assert self.input_size is not None
        return MaskSizes(self.padded_size, network_size(*self.input_size, self.input), output)

    def take_queries(self) -> Tensor:
        """Frame queries [T, N, C] of all frames, once: they are not kept."""
        queries = torch.cat(self.frame_queries)
        self.frame_queries.clear()
        return queries

    def chance_of_sounding(self) -> Tensor | None:
        """[T, N] of all frames; None without a sounding head."""
        return torch.cat(self.sounding) if self.sounding else None

    def frame_mask_embed(self) -> Tensor | None:
        """[T, N, Cm] of all frames, where objects are drawn by their frame queries; else None."""
        return torch.cat(self.mask_embed) if self.mask_embed else None

    def _previous(self, batch: list[ClipFrame]) -> Tensor | None:
        """Earlier pictures, if the model wants them and any is there; a frame without one is its own: nothing moved."""
        if not self.model.wants_previous or all(f.previous is None for f in batch):
            return None
        return self._stack([f.image if f.previous is None else f.previous for f in batch])

    def _stack(self, batch: list[Tensor]) -> Tensor:
        for image in batch:
            height, width = image.shape[-2:]
            if self.input_size is None:
                self.input_size = (height, width)
            elif self.input_size != (height, width):
                raise MediaError(
                    f"all frames of a clip must have one size, got {self.input_size} and then {(height, width)}; "
                    "cut the clip where the size changes"
                )
        images = network_input(torch.stack(batch), self.input, self.model.device)
        self.padded_size = (images.shape[-2], images.shape[-1])
        return images


def mask_features_again(model: AVISM, frames: ClipFrames, start: int) -> Iterator[Tensor]:
    """Mask features [t, Cm, h, w] of frame `start` and all later ones, in another pass over the clip."""
    for tokens in _Localized(model, StageTimer()).run(islice(frames(), start, None)):
        yield tokens.clip_mask_features


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
