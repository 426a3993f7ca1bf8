"""MobileNetV2 backbone (Sandler et al., CVPR 2018), batch norm folded: small maps, few weights, fast on a laptop.

Folding is exact for inference, and the scales of batch norm did not help the small model that ships to train (the
design's feasibility run); `weights/backbones.py` folds published weights on reading.
"""

from __future__ import annotations

from torch import Tensor, nn

from avis_stream.nn.packed import Conv2d

_STAGES = (  # (expansion, channels, blocks, stride)
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_STEM_CHANNELS = 32


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection without activation; a residual where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = Conv2d(in_channels, hidden, 1, activation="relu6") if expansion > 1 else None
        self.depthwise = Conv2d(hidden, hidden, 3, stride, groups=hidden, activation="relu6")
        self.project = Conv2d(hidden, out_channels, 1)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        y = self.depthwise(x if self.expand is None else self.expand(x))
        projected: Tensor = self.project(y, x if self.has_residual else None)
        return projected


class MobileNet(nn.Module):
    """Pictures to feature maps at stride 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2d(3, _STEM_CHANNELS, 3, 2, activation="relu6")
        self.blocks = nn.ModuleList()
        self._outputs = []  # indices of the last block at each resolution
        channels = _STEM_CHANNELS
        for expansion, out, count, stride in _STAGES:
            if stride == 2:
                self._outputs.append(len(self.blocks) - 1)
            for i in range(count):
                self.blocks.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        self._outputs = [*self._outputs[1:], len(self.blocks) - 1]
        for part in self.modules():
            if isinstance(part, Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]  # every convolution here has one

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised pictures [B, 3, H, W] to four maps of 24, 32, 96 and 320 channels."""
        x = self.stem(images)
        features = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self._outputs:
                features.append(x)
        return features
