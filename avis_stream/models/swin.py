"""Swin transformer backbone (Liu et al., ICCV 2021) in the layout of its official detection code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avis_stream.config import SwinConfig

_OTHER_REGION = -100.0
"""Added to scores between the regions that a cyclic shift brings together; the official value, not minus infinity."""


class WindowAttention(nn.Module):
    """Self-attention inside square windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        place = torch.stack((y.flatten(), x.flatten()))  # [2, window^2]
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("relative_position_index", offset[0] * (2 * window - 1) + offset[1])
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, region_bias: Tensor | None) -> Tensor:
        """Windows [B, nW, window^2, C] to the same; `region_bias` [nW, window^2, window^2] for shifted windows."""
        q, k, v = rearrange(self.qkv(x), "b w n (three a d) -> three b w a n d", three=3, a=self.heads)
        index = self.relative_position_index
        bias = (
            self.relative_position_bias_table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)
        )  # [A, n, n]
        if region_bias is not None:
            bias = bias + region_bias[:, None]  # [nW, A, n, n]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(*q.shape[:-1], q.shape[-2]))
        projected: Tensor = self.proj(rearrange(attended, "b w a n d -> b w n (a d)"))
        return projected


class SwinBlock(nn.Module):
    """Window attention and a two-layer perceptron, pre-norm; every second block shifts its windows by half."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})

    def forward(self, x: Tensor, region_bias: Tensor) -> Tensor:
        """Maps [B, H, W, C] to the same; `region_bias` as `shifted_region_bias` gives it."""
        height, width = x.shape[1:3]
        pad_y, pad_x = -height % self.window, -width % self.window
        # Padded places are zeros after the norm and are not masked: the weights were trained that way.
        y = F.pad(self.norm1(x), (0, 0, 0, pad_x, 0, pad_y))
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(1, 2))
        rows, columns = y.shape[1] // self.window, y.shape[2] // self.window
        y = rearrange(y, "b (r p) (c q) d -> b (r c) (p q) d", r=rows, c=columns)
        y = self.attn(y, region_bias if self.shift else None)
        y = rearrange(y, "b (r c) (p q) d -> b (r p) (c q) d", r=rows, c=columns, p=self.window)
        if self.shift:
            y = y.roll((self.shift, self.shift), dims=(1, 2))
        x = x + self._drop(y[:, :height, :width])
        return x + self._drop(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
        return x * kept / (1 - self.drop_path)


class PatchMerging(nn.Module):
    """Halves the resolution: four neighbours side by side, normalised, projected to twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # (row, column) offsets in the order (0,0), (1,0), (0,1), (1,1)
        merged: Tensor = self.reduction(self.norm(rearrange(x, "b (h i) (w j) c -> b h w (j i c)", i=2, j=2)))
        return merged


def shifted_region_bias(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Score bias [nW, window^2, window^2] that keeps apart what a cyclic shift brings together in one window."""
    padded = [size + -size % window for size in (height, width)]
    axis = [torch.zeros(size, device=device, dtype=torch.int64) for size in padded]
    for part, size in zip(axis, padded, strict=True):
        part[size - window :] = 1
        part[size - shift :] = 2
    region = 3 * axis[0][:, None] + axis[1][None, :]
    region = rearrange(region, "(r p) (c q) -> (r c) (p q)", p=window, q=window)
    return (region[:, :, None] != region[:, None, :]) * _OTHER_REGION


class SwinStage(nn.Module):
    """The blocks of one resolution, and the merging that leads to the next."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: list[float], merge: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, 0 if i % 2 == 0 else window // 2, drop)
            for i, drop in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, C] to (output of this stage, input of the next)."""
        bias = shifted_region_bias(x.shape[1], x.shape[2], self.window, self.window // 2, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, bias)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """4x4 patches to tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, ceil(H / 4), ceil(W / 4), C]."""
        height, width = images.shape[-2:]
        patches = self.proj(F.pad(images, (0, -width % 4, 0, -height % 4)))
        embedded: Tensor = self.norm(rearrange(patches, "b c h w -> b h w c"))
        return embedded


class Swin(nn.Module):
    """Pictures to feature maps at stride 4, 8, 16 and 32."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.embed_channels)
        last = max(1, sum(config.depths) - 1)
        drop_paths = [config.drop_path * block / last for block in range(last + 1)]
        self.layers = nn.ModuleList()
        for i, (depth, heads, channels) in enumerate(
            zip(config.depths, config.heads, config.feature_channels, strict=True)
        ):
            start = sum(config.depths[:i])
            stage = SwinStage(channels, heads, config.swin_window, drop_paths[start : start + depth], merge=i < 3)
            self.layers.append(stage)
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised pictures [B, 3, H, W] to four maps [B, C, H / stride, W / stride]."""
        x = self.patch_embed(images)
        features = []
        for i, stage in enumerate(self.layers):
            output, x = stage(x)
            features.append(rearrange(self.get_submodule(f"norm{i}")(output), "b h w c -> b c h w"))
        return features
