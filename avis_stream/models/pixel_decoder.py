"""Multi-scale deformable attention pixel decoder (Mask2Former's, as AVISM configures it)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.config import AVISMConfig, PixelDecoderConfig
from avis_stream.models.places import place_maps
from avis_stream.nn.layers import sine_position
from avis_stream.nn.packed import Conv2d, Linear
from avis_stream.ops import ms_deform_attn_fused

FEATURE_LEVELS = 3
"""Feature levels that deformable attention runs over: stride 32, 16, 8, coarsest first."""


@dataclass(frozen=True, slots=True)
class PixelFeatures:
    """What the pixel decoder makes of one batch of frames; every map is [T, C, h, w]."""

    levels: tuple[Tensor, Tensor, Tensor]
    """Stride 32, 16, 8."""
    stride4: Tensor
    """The FPN output before any projection to mask features (official name `clip_feature`)."""
    mask_features: Tensor
    """The frame decoder's mask features, stride 4."""

    def float(self) -> PixelFeatures:
        """The same in float32."""
        a, b, c = (level.float() for level in self.levels)
        return PixelFeatures((a, b, c), self.stride4.float(), self.mask_features.float())


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021) of tokens over their own feature levels."""

    def __init__(self, config: PixelDecoderConfig, channels: int) -> None:
        super().__init__()
        self.heads, self.points = config.heads, config.points
        samples = config.heads * FEATURE_LEVELS * config.points
        self.sampling_offsets = Linear(channels, samples * 2)
        self.attention_weights = Linear(channels, samples)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Each head starts out looking along its own direction, point p at p + 1 pixels.
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = direction[:, None, None, :] * torch.arange(1, self.points + 1)[:, None]  # [A, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(steps.expand(-1, FEATURE_LEVELS, -1, -1).flatten())

    def forward(self, query: Tensor, memory: Tensor, reference: Tensor, shapes: list[int]) -> Tensor:
        """Attends from `query` [T, Q, C] into `memory` [T, S, C].

        Args:
            query: Tokens with their position added.
            memory: Tokens of all levels, coarsest first, row-major.
            reference: [Q, 2], x and y in [0, 1] of each query's centre.
            shapes: Flat `[H0, W0, H1, W1, ...]`.
        Returns:
            [T, Q, C].
        """
        value = self.value_proj(memory).unflatten(-1, (self.heads, -1))  # [T, S, A, D]
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, FEATURE_LEVELS, self.points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.heads, -1))  # [T, Q, A, L P]
        centres = reference[:, None].expand(len(query), -1, FEATURE_LEVELS, -1)
        attended: Tensor = self.output_proj(self.attend(value, shapes, centres, offsets, logits))
        return attended

    attend = staticmethod(ms_deform_attn_fused)
    """The operator itself, a class attribute so that the literal form can put `grid_sample` in its place."""


class DeformableLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, post-norm."""

    def __init__(self, config: PixelDecoderConfig, channels: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(config, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = Linear(channels, config.ffn_channels, activation="relu")
        self.linear2 = Linear(config.ffn_channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, shapes: list[int]) -> Tensor:
        """Tokens [T, S, C] to the same."""
        tokens = self.norm1(tokens + self.self_attn(tokens + position, tokens, reference, shapes))
        normed: Tensor = self.norm2(tokens + self.linear2(self.linear1(tokens)))
        return normed


class ConvGroupNorm(Conv2d):
    """Convolution without bias, then group norm of 32 groups."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, bias=False)
        self.norm = nn.GroupNorm(32, out_channels)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, in, h, w] to [T, out, h, w]; `residual` is added after the norm."""
        normed: Tensor = self.norm(super().forward(x))
        return normed if residual is None else normed + residual


class PixelDecoder(nn.Module):
    """Backbone maps to feature levels and mask features."""

    def __init__(self, config: AVISMConfig) -> None:
        super().__init__()
        channels = config.channels
        stride4, *coarser = config.backbone.feature_channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(Conv2d(c, channels, 1), nn.GroupNorm(32, channels)) for c in reversed(coarser)
        )
        self.level_embed = nn.Parameter(torch.randn(FEATURE_LEVELS, channels))
        self.layers = nn.ModuleList(
            DeformableLayer(config.pixel_decoder, channels) for _ in range(config.pixel_decoder.layers)
        )
        self.lateral = ConvGroupNorm(stride4, channels, 1)
        self.output = ConvGroupNorm(channels, channels, 3)
        self.mask_features = Conv2d(channels, config.mask_channels, 1)
        self.placed = config.localizer.placed_masks
        for part in (*self.input_proj.modules(), self.mask_features):
            if isinstance(part, Conv2d) and part.bias is not None:
                nn.init.kaiming_uniform_(part.weight, a=1)
                nn.init.zeros_(part.bias)

    def forward(self, features: list[Tensor]) -> PixelFeatures:
        """Backbone maps `[res2, res3, res4, res5]`, each [T, C, H, W], to `PixelFeatures`."""
        res2, *coarser = features
        maps = [proj(x) for proj, x in zip(self.input_proj, reversed(coarser), strict=True)]
        shapes = [int(size) for m in maps for size in m.shape[-2:]]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # [T, S, C]
        position = self._position(maps)
        reference = reference_points(shapes, tokens.device, tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, position, reference, shapes)
        split = tokens.split([m.shape[-2] * m.shape[-1] for m in maps], dim=1)
        level0, level1, level2 = (
            part.transpose(1, 2).unflatten(2, m.shape[-2:]) for part, m in zip(split, maps, strict=True)
        )
        # A copy, because torch does not see that a view of tokens of one frame already lies channels last.
        finest = level2.clone(memory_format=torch.channels_last)
        coarse = F.interpolate(finest, size=res2.shape[-2:], mode="bilinear", align_corners=False)
        fine = self.lateral(res2, coarse)
        stride4 = F.relu(self.output(fine), inplace=True)
        mask_features = self.mask_features(stride4)
        if self.placed:
            places = place_maps(mask_features).expand(len(mask_features), -1, -1, -1)
            mask_features = torch.cat((mask_features, places.contiguous(memory_format=torch.channels_last)), dim=1)
        return PixelFeatures((level0, level1, level2), stride4, mask_features)

    def _position(self, maps: list[Tensor]) -> Tensor:
        channels = maps[0].shape[1]
        return torch.cat(
            [sine_position(channels, m).flatten(1).T + embed for m, embed in zip(maps, self.level_embed, strict=True)]
        )  # [S, C]


def reference_points(shapes: list[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Centres of all pixels of all levels, x and y in [0, 1]: [S, 2].

    A token looks from its own centre at every level; the official valid ratios are all 1 since nothing is masked.
    """
    points = []
    for height, width in zip(shapes[0::2], shapes[1::2], strict=True):
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        points.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
    return torch.cat(points)
