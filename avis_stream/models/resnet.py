"""Bottleneck ResNet backbone with frozen batch norm; the names are detectron2's, so its checkpoints fit as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.config import ResNetConfig
from avis_stream.nn.layers import ConvFrozenNorm


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions around a residual."""

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvFrozenNorm(in_channels, width, 1, activation="relu")
        self.conv2 = ConvFrozenNorm(width, width, 3, stride, activation="relu")
        self.conv3 = ConvFrozenNorm(width, out_channels, 1, activation="relu")
        self.shortcut = ConvFrozenNorm(in_channels, out_channels, 1, stride) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        residual = x if self.shortcut is None else self.shortcut(x)
        y: Tensor = self.conv3(self.conv2(self.conv1(x)), residual)
        return y


class ResNet(nn.Module):
    """Pictures to feature maps at stride 4, 8, 16 and 32."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": ConvFrozenNorm(3, config.stem_channels, 7, 2, activation="relu")})
        in_channels = config.stem_channels
        for stage, (blocks, out_channels) in enumerate(zip(config.blocks, config.feature_channels, strict=True)):
            width = config.bottleneck_channels * 2**stage
            layers = []
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 0 else 1
                layers.append(Bottleneck(in_channels, width, out_channels, stride))
                in_channels = out_channels
            self.add_module(f"res{stage + 2}", nn.Sequential(*layers))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised pictures [B, 3, H, W] to `[res2, res3, res4, res5]`."""
        x = F.max_pool2d(self.stem["conv1"](images), kernel_size=3, stride=2, padding=1)
        features = []
        for stage in range(2, 6):
            x = self.get_submodule(f"res{stage}")(x)
            features.append(x)
        return features
