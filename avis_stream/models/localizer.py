"""Frame-level sound source localizer: a masked-attention decoder conditioned on the sound of the frame's second.

Source: "Audio-Visual Instance Segmentation" (CVPR 2025) section 4.2; decoder from Mask2Former (CVPR 2022).
It sees one frame at a time and knows no time, so offline and online call it alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.config import AVISMConfig
from avis_stream.models.peaks import FirstQueries, PeakQueries
from avis_stream.models.pixel_decoder import FEATURE_LEVELS, PixelFeatures
from avis_stream.models.places import MaskPlace
from avis_stream.models.sounding import Heard, Motion, SoundingHead
from avis_stream.nn.attention import AttentionBlock, FeedForward
from avis_stream.nn.layers import MLP, sine_position
from avis_stream.ops.ranges import whole_plan


@dataclass(frozen=True, slots=True)
class FramePrediction:
    """What the prediction head says after one decoder layer."""

    queries: Tensor
    """[T, N, C], normalised: this, not the raw state, is a frame query (quirk Q13)."""
    logits: Tensor
    """[T, N, K + 1]; the last class is "no object"."""
    mask_embed: Tensor
    """[T, N, Cm]; mask logits are its products with the mask features."""
    sounding: Tensor | None = None
    """[T, N], logits of the sounding head; None without one."""


@dataclass(frozen=True, slots=True)
class FrameDecoding:
    """What the localizer makes of T frames."""

    heads: list[FramePrediction]
    """Before the first decoder layer and after each; the last is the answer, and without gradients alone says who
    sounds.
    """
    peaks: Tensor | None = None
    """[T, K, h, w] at stride 8, logits of the map of object centres; None with learned queries."""
    tags: Tensor | None = None
    """[T, K], logits of the classes in the sound; None without a sounding head."""


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; each post-norm."""

    def __init__(self, channels: int, heads: int, ffn_channels: int) -> None:
        super().__init__()
        self.cross_attn = AttentionBlock(channels, heads)
        self.self_attn = AttentionBlock(channels, heads)
        self.ffn = FeedForward(channels, ffn_channels)

    def forward(
        self, state: Tensor, embed: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """One layer.

        Args:
            state: [B, N, C].
            embed: [N, C] or [B, N, C], the queries' position.
            key: [B, Nk, C].
            value: [B, Nk, C].
            visible: bool [B, 1, N, Nk], where each query may look; None: everywhere.
        Returns:
            The new state [B, N, C].
        """
        count = state.shape[1]
        query = state + embed
        if visible is None:
            state = self.cross_attn.ranged(state, query, key, value, whole_plan(count, key.shape[1]))
        else:
            state = self.cross_attn.masked(state, query, key, value, visible)
        return self.exchange(state, embed)

    def exchange(self, state: Tensor, embed: Tensor) -> Tensor:
        """What follows the cross-attention: queries [B, N, C] look at each other, then each on its own."""
        query = state + embed
        state = self.self_attn.ranged(state, query, query, state, whole_plan(state.shape[1], state.shape[1]))
        advanced: Tensor = self.ffn(state)
        return advanced


class AudioFusion(nn.Module):
    """Frame-level audio-visual fusion: the sound looks at each feature level on behalf of every query."""

    def __init__(self, channels: int, heads: int, feature_dim: int, levels: int) -> None:
        super().__init__()
        self.audio_proj = nn.Linear(feature_dim, channels)
        self.levels = nn.ModuleList(AttentionBlock(channels, heads) for _ in range(levels))
        self.out = nn.Linear(levels * channels, channels)

    def forward(self, audio: Tensor, query_embed: Tensor, levels: list[Tensor]) -> Tensor:
        """Sound [T, feature_dim] and level tokens [T, HW, C] to what is added to the queries, [T, N, C].

        The keys carry no position, and no feed-forward follows (quirk Q12).
        """
        heard = self.audio_proj(audio)[:, None]  # [T, 1, C]
        query = heard + query_embed
        looked = []
        for block, level in zip(self.levels, levels, strict=True):
            assert isinstance(block, AttentionBlock)
            looked.append(block.masked(heard, query, level, level))
        added: Tensor = self.out(torch.cat(looked, dim=-1))
        return added


class Localizer(nn.Module):
    """Pixel features and sound of each frame to its frame queries."""

    def __init__(self, config: AVISMConfig) -> None:
        super().__init__()
        channels, own, classes = config.channels, config.localizer, len(config.classes)
        self.heads = own.heads
        self.peaks = PeakQueries(channels, own.queries, classes) if own.query_source == "peaks" else None
        if self.peaks is None:
            self.query_feat = nn.Embedding(own.queries, channels)
            self.query_embed = nn.Embedding(own.queries, channels)
        self.level_embed = nn.Embedding(FEATURE_LEVELS, channels)
        self.audio_fusion = (
            AudioFusion(channels, own.heads, config.audio.feature_dim, FEATURE_LEVELS) if own.audio_fusion else None
        )
        unheard = own.audio_fusion and not own.fusion_hears
        self.unheard = nn.Parameter(torch.zeros(config.audio.feature_dim)) if unheard else None
        self.layers = nn.ModuleList(DecoderLayer(channels, own.heads, own.ffn_channels) for _ in range(own.layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, classes + 1)
        self.mask_embed = MLP(channels, channels, config.mask_channels, 3)
        self.place = MaskPlace(channels) if own.placed_masks else None
        self.sounding = (
            SoundingHead(channels, config.audio.feature_dim, classes, motion_cue=own.motion_cue)
            if own.sounding_head
            else None
        )

    def forward(self, features: PixelFeatures, audio: Tensor, motion: Tensor | None = None) -> FrameDecoding:
        """Decodes each frame on its own.

        Args:
            features: Of T frames.
            audio: float [T, feature_dim], one vector a frame.
            motion: float [T, 1, h, w] at stride 8, for the motion cue; None: no cue.
        """
        levels = [
            m.flatten(2).transpose(1, 2) + embed
            for m, embed in zip(features.levels, self.level_embed.weight, strict=True)
        ]  # [T, HW, C] each
        position = [sine_position(m.shape[1], m).flatten(1).T for m in features.levels]  # [HW, C] each
        keys = [level + p for level, p in zip(levels, position, strict=True)]
        guides = self.mask_guides(features)
        if self.peaks is None:
            learned = self.query_feat.weight.expand(len(audio), -1, -1)
            first = FirstQueries(self.query_embed.weight, learned, learned.new_zeros(*learned.shape[:2], 2))
        else:
            first = self.peaks(features.levels[-1], position[-1])
        state = first.state
        if self.audio_fusion is not None:
            heard_by_fusion = audio if self.unheard is None else self.unheard.expand_as(audio)
            state = state + self.audio_fusion(heard_by_fusion, first.embed, levels)
        heard = None if self.sounding is None else self.sounding.listen(audio)
        seen = None if motion is None else Motion(motion, _resized(features.mask_features.detach(), motion))
        asked = heard if torch.is_grad_enabled() else None  # heads before the last are asked who sounds to learn from
        heads = [self.predict(state, first.begin, asked, seen)]
        for i, layer in enumerate(self.layers):
            level = i % len(levels)
            size = features.levels[level].shape[-2:]
            visible = self.visible(heads[-1].mask_embed, guides[level], size)
            state = layer(state, first.embed, keys[level], levels[level], visible)
            last = i == len(self.layers) - 1
            heads.append(self.predict(state, first.begin, heard if last else asked, seen))
        return FrameDecoding(heads, first.centres, None if heard is None else heard.tags)

    def predict(self, state: Tensor, begin: Tensor, heard: Heard | None, seen: Motion | None) -> FramePrediction:
        """The prediction heads on a decoder state [T, N, C] of queries that began at `begin` [T, N, 2]."""
        queries = self.decoder_norm(state)
        logits, mask_embed = self.class_embed(queries), self.mask_embed(queries)
        if self.place is not None:
            mask_embed = torch.cat((mask_embed, self.place(queries, begin)), dim=-1)
        if self.sounding is None or heard is None:
            return FramePrediction(queries, logits, mask_embed)
        return FramePrediction(queries, logits, mask_embed, self.sounding(queries, logits, mask_embed, heard, seen))

    def sounds(self, found: FramePrediction, audio: Tensor, mask_features: Tensor, motion: Tensor | None) -> Tensor:
        """Asks the sounding head of queries found before: logits [T, N]; for models that have one.

        Args:
            found: Of T frames; its `sounding` is not looked at.
            audio: float [T, feature_dim], what is heard now.
            mask_features: [T, Cm, h, w], the frame decoder's, of what is seen now.
            motion: float [T, 1, h, w] at stride 8, what moved just now; None: no cue.
        """
        assert self.sounding is not None
        seen = None if motion is None else Motion(motion, _resized(mask_features, motion))
        logits: Tensor = self.sounding(found.queries, found.logits, found.mask_embed, self.sounding.listen(audio), seen)
        return logits

    def mask_guides(self, features: PixelFeatures) -> list[Tensor]:
        """For each level the mask features [T, Cm, h, w] that `visible` multiplies mask embeddings with.

        Resizing and the product over channels commute, so the features are resized to each level once instead of 100
        mask maps before every layer; blocked places are equal but where |logit| is within rounding of 0.
        """
        fine = features.mask_features.detach()
        return [_resized(fine, level) for level in features.levels]

    def visible(self, mask_embed: Tensor, guide: Tensor, size: torch.Size) -> Tensor:
        """Where each query may look: bool [T, 1, N, h w], True inside its own mask, everywhere if that is empty.

        Args:
            mask_embed: [T, N, Cm].
            guide: What `mask_guides` gave for the level.
            size: (h, w) of the level.
        """
        inside = torch.bmm(mask_embed.detach(), guide.flatten(2)) >= 0  # [T, N, h w]
        return (inside | ~inside.any(dim=-1, keepdim=True))[:, None]


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)
