"""One training step: clips in, losses out. The whole model learns at once, frames and clips by a criterion each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from avis_stream.config import TrainConfig
from avis_stream.models.avism import AVISM
from avis_stream.models.localizer import FramePrediction
from avis_stream.models.sounding import motion_between
from avis_stream.train.batch import ClipSample, stack_images, stack_previous
from avis_stream.train.centres import centre_loss, centre_map
from avis_stream.train.clip_losses import FoundInFrame, LocalizedClips, clip_losses, mask_count, note, weighted
from avis_stream.train.losses import Predictions, Targets, criterion, sounding_loss, tag_loss
from avis_stream.train.matcher import Match
from avis_stream.train.points import DrawPoints


class ClipLosses(nn.Module):
    """The model with its losses around it: what DistributedDataParallel wraps.

    Source: official `AVISM.train_model`; the frame criterion runs over all frames of all clips, the clip criterion over
    `query_layers` views of each clip.
    """

    def __init__(self, model: AVISM, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, samples: Sequence[ClipSample], draw: DrawPoints) -> dict[str, Tensor]:
        """Runs clips of one length; of any sizes.

        Args:
            samples: B clips of T frames.
            draw: Where random points come from.
        Returns:
            Unweighted losses by name, and their weighted sum as `total`.
        """
        config = self.model.config
        audio_features = self._hear(samples)
        if not config.localizer.sounding_head:
            samples = [sample.sounding_alone() for sample in samples]
        images = stack_images(samples, config.input)  # [B T, 3, H, W]
        padded = (images.shape[-2], images.shape[-1])
        features = self.model.pixel_decoder(self.model.backbone(images))
        decoding = self.model.localizer(features, audio_features.flatten(0, 1), self._motion(samples, images))
        heads = decoding.heads
        losses: dict[str, Tensor] = {}
        frame_targets = [target for sample in samples for target in sample.frame_targets(padded)]
        frame_matches = self._frames(heads, features.mask_features, frame_targets, draw, losses)
        if decoding.tags is not None:
            heard = torch.cat([sample.heard(len(config.classes)) for sample in samples])
            losses["frame_tags"] = tag_loss(decoding.tags, heard)
        if decoding.peaks is not None:
            height, width = decoding.peaks.shape[-2:]
            wanted = centre_map(frame_targets, len(config.classes), (height, width))
            losses["frame_peaks"] = centre_loss(decoding.peaks, wanted)
        if self.config.query_layers:
            mask_features = self.model.clip_mask_features(features.stride4)
            self._clips(samples, heads, mask_features, audio_features, frame_targets, frame_matches, draw, losses)
        losses["total"] = weighted(losses, self.config.losses)
        return losses

    @torch.no_grad()
    def _hear(self, samples: Sequence[ClipSample]) -> Tensor:
        """What is heard in each frame of each clip, [B, T, A]; all that must be listened to is, in one batch."""
        unheard = [sample for sample in samples if sample.features is None]
        fresh: Iterator[Tensor] = iter(())
        if unheard:
            seconds, there = (torch.cat([getattr(s, name) for s in unheard]) for name in ("seconds", "there"))
            with torch.autocast(self.model.device.type, enabled=False):
                fresh = iter(self.model.hear(seconds, there).split([len(sample.seconds) for sample in unheard]))
        return torch.stack([next(fresh) if sample.features is None else sample.features for sample in samples])

    def _motion(self, samples: Sequence[ClipSample], images: Tensor) -> Tensor | None:
        if not self.model.wants_previous:
            return None
        return motion_between(images, stack_previous(samples, self.model.config.input))

    def _frames(
        self,
        heads: list[FramePrediction],
        mask_features: Tensor,
        targets: list[Targets],
        draw: DrawPoints,
        losses: dict[str, Tensor],
    ) -> list[list[Match]]:
        """The frame criterion on every head, the last first, as the official code draws its points."""
        count = mask_count(sum(len(t.labels) for t in targets), mask_features.device)
        matches: dict[int, list[Match]] = {}
        for i in [len(heads) - 1, *range(len(heads) - 1)]:
            masks = torch.einsum("tnc,tchw->tnhw", heads[i].mask_embed, mask_features)[:, :, None]
            found, matches[i] = criterion(
                Predictions(heads[i].logits.float(), masks.float()), targets, count, self.config.losses, draw
            )
            parts = {"class": found.classes, "mask": found.mask, "dice": found.dice}
            if heads[i].sounding is not None:
                parts["sounding"] = sounding_loss(heads[i].sounding, targets, matches[i])
            note(losses, "frame", i, len(heads), parts)
        return [matches[i] for i in range(len(heads))]

    def _clips(
        self,
        samples: Sequence[ClipSample],
        heads: list[FramePrediction],
        mask_features: Tensor,
        audio_features: Tensor,
        frame_targets: list[Targets],
        frame_matches: list[list[Match]],
        draw: DrawPoints,
        losses: dict[str, Tensor],
    ) -> None:
        """The clip criterion on `query_layers` views of each clip: what the last decoder layers made of its frames."""
        batch, frames = len(samples), len(samples[0].images)
        views = min(self.config.query_layers, len(heads) - 1)
        seen = heads[-views:]
        padded = (mask_features.shape[-2] * 4, mask_features.shape[-1] * 4)
        targets = [sample.clip_targets(padded) for sample in samples]
        # Views in front of clips, as if there were L B independent videos.
        found = [
            [
                FoundInFrame(pairs.query, frame_targets[at].ids[pairs.target])
                for at, pairs in zip(range(clip * frames, (clip + 1) * frames), matches[clip * frames :], strict=False)
            ]
            for matches in frame_matches[-views:]
            for clip in range(batch)
        ]
        chance = None
        if seen[-1].sounding is not None:
            chance = torch.stack([_by_clip(h.sounding, batch) for h in seen if h.sounding is not None]).flatten(0, 1)
            chance = chance.detach().float().sigmoid()
        clips = LocalizedClips(
            queries=torch.stack([_by_clip(h.queries, batch) for h in seen]).flatten(0, 1),
            audio=audio_features.repeat(views, 1, 1),
            mask_features=_by_clip(mask_features, batch).repeat(views, 1, 1, 1, 1),
            targets=targets * views,
            found=found,
            chance=chance,
        )
        losses.update(clip_losses(self.model.tracker, clips, self.config.losses, draw))


def _by_clip(frames: Tensor, batch: int) -> Tensor:
    """Frames [B T, ...] of B clips as [B, T, ...]."""
    clips: Tensor = frames.unflatten(0, (batch, -1))
    return clips
