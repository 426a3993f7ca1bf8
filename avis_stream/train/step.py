"""One training step: clips in, losses out. The whole model learns at once, frames and clips by a criterion each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avis_stream.config import TrainConfig
from avis_stream.models.avism import AVISM
from avis_stream.models.localizer import FramePrediction
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.models.sounding import motion_between
from avis_stream.train.batch import ClipSample, stack_images, stack_previous
from avis_stream.train.centres import centre_loss, centre_map
from avis_stream.train.losses import Predictions, Targets, criterion, similarity_loss, sounding_loss
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

    def forward(self, samples: Sequence[ClipSample], audio_features: Tensor, draw: DrawPoints) -> dict[str, Tensor]:
        """Runs clips of one size and length.

        Args:
            samples: B clips of T frames.
            audio_features: float32 [B, T, A].
            draw: Where random points come from.
        Returns:
            Unweighted losses by name, and their weighted sum as `total`.
        """
        config = self.model.config
        if not config.localizer.sounding_head:
            samples = [sample.sounding_alone() for sample in samples]
        images = normalise_and_pad(stack_images(samples).flatten(0, 1), config.input)  # [B T, 3, H, W]
        padded = (images.shape[-2], images.shape[-1])
        features = self.model.pixel_decoder(self.model.backbone(images))
        decoding = self.model.localizer(features, audio_features.flatten(0, 1), self._motion(samples, images))
        heads = decoding.heads
        mask_features = self.model.clip_mask_features(features.stride4)
        losses: dict[str, Tensor] = {}
        frame_targets = [target for sample in samples for target in sample.frame_targets(padded)]
        frame_matches = self._frames(heads, features.mask_features, frame_targets, draw, losses)
        if decoding.tags is not None:
            heard = torch.cat([sample.heard(len(config.classes)) for sample in samples])
            losses["frame_tags"] = F.binary_cross_entropy_with_logits(decoding.tags.float(), heard)
        if decoding.peaks is not None:
            height, width = decoding.peaks.shape[-2:]
            wanted = centre_map(frame_targets, len(config.classes), (height, width))
            losses["frame_peaks"] = centre_loss(decoding.peaks, wanted)
        self._clips(samples, heads, mask_features, audio_features, frame_targets, frame_matches, draw, losses)
        losses["total"] = self._weighted(losses)
        return losses

    def _motion(self, samples: Sequence[ClipSample], images: Tensor) -> Tensor | None:
        if not self.model.wants_previous:
            return None
        return motion_between(images, normalise_and_pad(stack_previous(samples).flatten(0, 1), self.model.config.input))

    def _frames(
        self,
        heads: list[FramePrediction],
        mask_features: Tensor,
        targets: list[Targets],
        draw: DrawPoints,
        losses: dict[str, Tensor],
    ) -> list[list[Match]]:
        """The frame criterion on every head, the last first, as the official code draws its points."""
        count = _mask_count(sum(len(t.labels) for t in targets), mask_features.device)
        matches: dict[int, list[Match]] = {}
        for i in [len(heads) - 1, *range(len(heads) - 1)]:
            masks = torch.einsum("tnc,tchw->tnhw", heads[i].mask_embed, mask_features)[:, :, None]
            found, matches[i] = criterion(
                Predictions(heads[i].logits.float(), masks.float()), targets, count, self.config.losses, draw
            )
            parts = {"class": found.classes, "mask": found.mask, "dice": found.dice}
            if heads[i].sounding is not None:
                parts["sounding"] = sounding_loss(heads[i].sounding, targets, matches[i])
            _note(losses, "frame", i, len(heads), parts)
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
        """The clip criterion on every decoder layer of the tracker, and the similarity of matched queries."""
        batch, frames = len(samples), len(samples[0].images)
        views = min(self.config.query_layers, len(heads) - 1)
        # Views in front of clips: [L, B, T, N, C], as if there were L B independent videos.
        queries = torch.stack([rearrange(h.queries, "(b t) n c -> b t n c", b=batch) for h in heads[-views:]])
        predictions, tokens = self.model.tracker(queries.flatten(0, 1), audio_features.repeat(views, 1, 1))
        padded = (mask_features.shape[-2] * 4, mask_features.shape[-1] * 4)
        targets = [sample.clip_targets(padded) for sample in samples] * views
        count = _mask_count(sum(len(t.labels) for t in targets), mask_features.device)
        maps = rearrange(mask_features, "(b t) c h w -> b t c h w", b=batch).repeat(views, 1, 1, 1, 1)
        matches: list[Match] = []
        for i in [len(predictions) - 1, *range(len(predictions) - 1)]:
            masks = torch.einsum("bnc,btchw->bnthw", predictions[i].mask_embed, maps)
            found, own = criterion(
                Predictions(predictions[i].logits.float(), masks.float()), targets, count, self.config.losses, draw
            )
            matches = matches or own  # those of the last layer, which comes first
            parts = {"class": found.classes, "mask": found.mask, "dice": found.dice}
            _note(losses, "clip", i, len(predictions), parts)
        frame_embeddings = self.model.tracker.similarity_of_frames(tokens)  # [L B, T, N, C]
        losses["clip_similarity"] = self._similarity(
            predictions[-1].similarity,
            frame_embeddings,
            targets,
            matches,
            frame_targets,
            frame_matches[-views:],
            frames,
        )

    def _similarity(
        self,
        videos: Tensor,
        frames_of: Tensor,
        targets: list[Targets],
        matches: list[Match],
        frame_targets: list[Targets],
        frame_matches: list[list[Match]],
        frames: int,
    ) -> Tensor:
        """Gathers the embeddings of matched frame and video queries of each item and compares them."""
        embeddings: list[Tensor] = []
        ids: list[Tensor] = []
        items: list[Tensor] = []
        batch = len(frame_targets) // frames
        for item, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
            view, clip = divmod(item, batch)
            for t in range(frames):
                at = clip * frames + t
                frame_pairs = frame_matches[view][at]
                embeddings.append(frames_of[item, t, frame_pairs.query])
                ids.append(frame_targets[at].ids[frame_pairs.target])
            embeddings.append(videos[item, pairs.query])
            ids.append(target.ids[pairs.target])
            fresh = sum(len(part) for part in ids) - sum(len(part) for part in items)
            items.append(torch.full((fresh,), item))
        return similarity_loss(torch.cat(embeddings).float(), torch.cat(ids), torch.cat(items).to(videos.device))

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {
            "class": self.config.losses.class_weight,
            "mask": self.config.losses.mask_weight,
            "dice": self.config.losses.dice_weight,
            "similarity": self.config.losses.similarity_weight,
            "sounding": self.config.losses.sounding_weight,
            "tags": self.config.losses.tag_weight,
            "peaks": self.config.losses.peak_weight,
        }
        return torch.stack([weights[name.split("_")[1]] * value for name, value in losses.items()]).sum()


def _note(losses: dict[str, Tensor], level: str, head: int, heads: int, parts: dict[str, Tensor]) -> None:
    suffix = "" if head == heads - 1 else f"_{head}"
    for kind, value in parts.items():
        losses[f"{level}_{kind}{suffix}"] = value


def _mask_count(own: int, device: torch.device) -> float:
    """Objects that mask losses are divided by: the mean over processes, at least 1."""
    if not (dist.is_available() and dist.is_initialized()):
        return float(max(1, own))
    count = torch.tensor(float(own), device=device)
    dist.all_reduce(count)
    return max(1.0, count.item() / dist.get_world_size())
