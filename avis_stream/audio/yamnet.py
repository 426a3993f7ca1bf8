"""YAMNet: a second of sound to 1,024 numbers, small enough for every frame on a laptop.

Source: Plakal and Ellis, YAMNet (TensorFlow model garden, Apache-2.0): MobileNet-V1 on a log-mel patch. Batch norm is
folded into the convolutions, as in the published tflite file that `tools/convert_yamnet.py` reads the weights from.
Those weights never change; what the last layers learn beside them is of low rank (LoRA, Hu et al., ICLR 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from avis_stream.audio.logmel import LogMel
from avis_stream.nn.packed import Packable, Packed

_LOG_OFFSET = 0.001
_LAYERS = (  # (output channels, stride) of the depthwise-separable layers
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip
_ADAPTED_FROM = 6
"""The first of them that may have a low-rank change: from here on a map is 6x4, and cheap."""


class _SameConv(nn.Conv2d):
    """3x3 convolution and ReLU with TensorFlow's padding: an even map halves with the odd pixel at the far side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=0 if stride == 2 else 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[T, in, H, W] to [T, out, H / stride, W / stride]."""
        padded = F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x
        return F.relu(super().forward(padded), inplace=True)


class _Adapted(Packable, nn.Conv2d):
    """A 1x1 convolution and a change of low rank beside it, which begins as none; packed, one convolution."""

    def __init__(self, in_channels: int, out_channels: int, rank: int) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.down = nn.Conv2d(in_channels, rank, 1, bias=False)
        self.up = nn.Conv2d(rank, out_channels, 1)
        nn.init.normal_(self.down.weight, std=in_channels**-0.5)
        nn.init.zeros_(self.up.weight)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.bias)
        self._packed = Packed()

    def pack(self) -> None:
        """Adds the change to the weight, for inference alone."""
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            return
        change = self.up.weight.detach().flatten(1) @ self.down.weight.detach().flatten(1)
        self._packed = Packed(self.weight.detach() + change[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[T, in, H, W] to [T, out, H, W]."""
        if self._packed.serves(x, self.training):
            assert self._packed.weight is not None
            assert self.bias is not None
            assert self.up.bias is not None
            return F.conv2d(x, self._packed.weight, self.bias + self.up.bias)
        changed: Tensor = super().forward(x) + self.up(self.down(x))
        return changed


def is_published(name: str) -> bool:
    """Whether a parameter of `YAMNet` is one of the published file, not of a change beside it."""
    return not {"down", "up"} & set(name.split("."))


class YAMNet(nn.Module):
    """Log-mel front end and network, up to the embedding."""

    feature_dim = 1024

    def __init__(self, adapter_rank: int = 0) -> None:
        super().__init__()
        self.log_mel = LogMel(_LOG_OFFSET)
        self.stem = _SameConv(1, 32, 2)
        layers: list[nn.Module] = []
        channels = 32
        for number, (out, stride) in enumerate(_LAYERS):
            adapted = adapter_rank > 0 and number >= _ADAPTED_FROM
            layers += [
                _SameConv(channels, channels, stride, groups=channels),
                _Adapted(channels, out, adapter_rank) if adapted else nn.Conv2d(channels, out, 1),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.layers = nn.Sequential(*layers)
        # Two fifths of the time less: depthwise convolutions walk along the channels.
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Seconds float32 [T, 16000] in [-1, 1] to embeddings float32 [T, 1024], >= 0.

        `valid_samples` is accepted for the sake of VGGish's rule and changes nothing: missing sound is silence here.
        """
        return self.embed(self.log_mel(seconds))

    def embed(self, patches: Tensor) -> Tensor:
        """Log-mel patches [T, 96, 64] to embeddings [T, 1024]."""
        maps: Tensor = self.layers(self.stem(patches[:, None]))
        return maps.mean(dim=(2, 3))
