"""Who of the visible objects sounds: the sound asked about each query, and how each moved just before.

An extension of AVISM (ADR 0007), off in the official models. There, queries answer for sounding objects alone, and a
model trained so draws masks without any sound, by guessing; here they answer for every visible object, and this head
answers whether it sounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOTION_STRIDE = 8


@dataclass(frozen=True, slots=True)
class Heard:
    """What the sound of T frames says before any picture is looked at."""

    vector: Tensor
    """[T, C]."""
    tags: Tensor
    """[T, K], logits of the classes in the sound."""


@dataclass(frozen=True, slots=True)
class Motion:
    """How much each place changed in the 100 ms before its frame."""

    change: Tensor
    """[T, 1, h, w] at stride 8."""
    guide: Tensor
    """[T, Cm, h, w], mask features at the same size."""


def motion_between(images: Tensor, previous: Tensor) -> Tensor:
    """Change [T, 1, h, w] at stride 8 between normalised pictures [T, 3, H, W] and those 100 ms earlier.

    Scaled so that 1 is about half the contrast of a usual picture.
    """
    change = 2 * (images - previous).mean(dim=1, keepdim=True).abs()
    return F.avg_pool2d(change, MOTION_STRIDE)


class SoundingHead(nn.Module):
    """One logit a query: does this object sound in this frame?"""

    _MOTION_CHANNELS = 32
    _TAG_CHANNELS = 512
    _EVIDENCE = 6

    def __init__(self, channels: int, feature_dim: int, classes: int, *, motion_cue: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim)
        self.audio_proj = nn.Linear(feature_dim, channels)
        self.tag = nn.Sequential(
            nn.Linear(feature_dim, self._TAG_CHANNELS),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(self._TAG_CHANNELS, classes),
        )
        self.match = nn.Sequential(nn.Linear(3 * channels, channels), nn.ReLU(), nn.Linear(channels, 1))
        self.tag_scale = nn.Parameter(torch.tensor(0.5))
        hidden = self._MOTION_CHANNELS
        self.cue = (
            nn.Sequential(
                nn.Linear(self._EVIDENCE, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            )
            if motion_cue
            else None
        )
        if self.cue is not None:  # begins without a say, so that it cannot disturb what the sound teaches
            last = self.cue[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def listen(self, audio: Tensor) -> Heard:
        """Sound [T, feature_dim] alone."""
        normed = self.norm(audio)
        return Heard(self.audio_proj(normed), self.tag(normed))

    def forward(
        self, queries: Tensor, logits: Tensor, mask_embed: Tensor, heard: Heard, motion: Motion | None
    ) -> Tensor:
        """Logits [T, N].

        Args:
            queries: [T, N, C].
            logits: [T, N, K + 1], their classes.
            mask_embed: [T, N, Cm].
            heard: What `listen` gave.
            motion: None: no cue.
        """
        vector = heard.vector[:, None].expand_as(queries)
        matched = self.match(torch.cat([queries, vector, queries * vector], dim=-1))[..., 0]
        classes = logits.detach().float().softmax(-1)[..., :-1]  # what a query is must not bend to what is heard
        named = (classes * heard.tags[:, None]).sum(-1)
        score: Tensor = matched + self.tag_scale * named
        if self.cue is None or motion is None:
            return score
        cue: Tensor = self.cue(_evidence(classes, mask_embed.detach(), motion, named.detach()))[..., 0]
        return score + cue


def _evidence(classes: Tensor, mask_embed: Tensor, motion: Motion, named: Tensor) -> Tensor:
    """What movement says of each query, [T, N, 6].

    Its own, the background's, that of others of its class, how many those are, the lead over them, and how much its
    class is heard.
    """
    guide, change = motion.guide.float(), motion.change.flatten(2).float()
    masks = torch.bmm(mask_embed.float(), guide.flatten(2)).sigmoid()  # [T, N, h w]
    own = torch.bmm(masks, change.transpose(1, 2))[..., 0] / (masks.sum(-1) + 1)
    outside = 1 - masks.amax(dim=1)
    background = (outside * change[:, 0]).sum(-1) / (outside.sum(-1) + 1)
    alike = torch.bmm(classes, classes.transpose(1, 2))  # [T, N, N], chance of two queries being of one class
    # The same object seen by two queries is no rival: their masks overlap.
    overlap = torch.bmm(masks, masks.transpose(1, 2))
    area = masks.sum(-1)
    shared = overlap / (area[:, :, None] + area[:, None] - overlap + 1)
    alike = alike * (1 - shared.clamp(0, 1)) * (1 - torch.eye(alike.shape[1], device=alike.device))
    rivals = alike.sum(-1)
    theirs = (alike * own[:, None]).sum(-1) / (rivals + 0.1)
    lead = (own - theirs) * rivals.clamp(max=1)
    parts = (4 * own, 4 * background[:, None].expand_as(own), 4 * theirs, rivals.clamp(max=3), 8 * lead, named / 4)
    return torch.stack(parts, dim=-1)
