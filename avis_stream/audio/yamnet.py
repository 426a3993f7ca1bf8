"""YAMNet: a second of sound to 1,024 numbers, small enough for every frame on a laptop.

Source: Plakal and Ellis, YAMNet (TensorFlow model garden, Apache-2.0): MobileNet-V1 on a log-mel patch. Batch norm is
folded into the convolutions, as in the published tflite file that `tools/convert_yamnet.py` reads the weights from.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.audio.logmel import LogMel

_LOG_OFFSET = 0.001
_LAYERS = (  # (output channels, stride) of the depthwise-separable layers
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class _SameConv(nn.Conv2d):
    """3x3 convolution and ReLU with TensorFlow's padding: an even map halves with the odd pixel at the far side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[T, in, H, W] to [T, out, H / stride, W / stride]."""
        near = 0 if self.stride[0] == 2 else 1
        return F.relu(super().forward(F.pad(x, (near, 1, near, 1))), inplace=True)


class YAMNet(nn.Module):
    """Log-mel front end and network, up to the embedding."""

    feature_dim = 1024

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(_LOG_OFFSET)
        self.stem = _SameConv(1, 32, 2)
        layers: list[nn.Module] = []
        channels = 32
        for out, stride in _LAYERS:
            layers += [
                _SameConv(channels, channels, stride, groups=channels),
                nn.Conv2d(channels, out, 1),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.layers = nn.Sequential(*layers)

    def forward(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Seconds float32 [T, 16000] in [-1, 1] to embeddings float32 [T, 1024], >= 0.

        `valid_samples` is accepted for the sake of VGGish's rule and changes nothing: missing sound is silence here.
        """
        return self.embed(self.log_mel(seconds))

    def embed(self, patches: Tensor) -> Tensor:
        """Log-mel patches [T, 96, 64] to embeddings [T, 1024]."""
        maps: Tensor = self.layers(self.stem(patches[:, None]))
        return maps.mean(dim=(2, 3))
