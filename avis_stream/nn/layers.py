"""Multi-layer perceptron, position encoding, and convolution with frozen batch norm."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.nn.packed import Activation, Conv2d


class MLP(nn.Module):
    """Linear layers with ReLU between them and none at the end."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, layers: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * (layers - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_channels] to [..., out_channels]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        result: Tensor = last(x)
        return result


def sine_position(channels: int, like: Tensor) -> Tensor:
    """2-D sine position encoding [channels, h, w] of maps `like` [..., h, w]: half the channels for y, half for x.

    Coordinates run from 1, are divided by the last one and scaled to 2 pi; sines stand at even channels of a half,
    cosines at odd ones. Source: DETR's `PositionEmbeddingSine` with `normalize=True`, as Mask2Former uses it.
    """
    half = channels // 2
    height, width = like.shape[-2:]
    frequency = 10_000 ** (2 * (torch.arange(half, device=like.device) // 2) / half)  # [half]

    def encode(count: int) -> Tensor:
        position = torch.arange(1, count + 1, device=like.device, dtype=torch.float32)
        angle = (position / (count + 1e-6) * (2 * math.pi))[:, None] / frequency  # [count, half]
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height).T[:, :, None].expand(half, height, width)
    x = encode(width).T[:, None, :].expand(half, height, width)
    return torch.cat((y, x)).to(like.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine are buffers that never train. Source: detectron2's `FrozenBatchNorm2d`."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The affine map it amounts to: two tensors [channels]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvFrozenNorm(Conv2d):
    """Convolution without bias, `FrozenBatchNorm`, addition, activation; `fold` merges the first two for inference."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: Activation = "none"
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, bias=False, activation=activation)
        self.norm: FrozenBatchNorm | nn.Identity = FrozenBatchNorm(out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def _between(self, y: Tensor) -> Tensor:
        if isinstance(self.norm, FrozenBatchNorm):
            scale, shift = self.norm.scale_and_shift()
            y = y * scale[:, None, None] + shift[:, None, None]
        return y

    @torch.no_grad()
    def fold(self) -> None:
        """Multiplies the norm into weight and bias, exact but for rounding; for inference only."""
        if isinstance(self.norm, FrozenBatchNorm):
            scale, shift = self.norm.scale_and_shift()
            self.weight = nn.Parameter(self.weight * scale[:, None, None, None], requires_grad=False)
            self.bias = nn.Parameter(shift, requires_grad=False)
            self.norm = nn.Identity()


def fold_frozen_norms(module: nn.Module) -> None:
    """Folds every `ConvFrozenNorm` inside `module`, in place: one pass over each activation less."""
    for part in module.modules():
        if isinstance(part, ConvFrozenNorm):
            part.fold()
