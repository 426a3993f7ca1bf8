"""VGGish: a second of sound to 128 numbers, with the log-mel front end that belongs to it, all in torch.

Source: Hershey et al., "CNN architectures for large-scale audio classification" (ICASSP 2017); AudioSet's `vggish`.
As AVISM uses it there is a ReLU after the last layer, and neither PCA nor quantisation.
"""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor, nn

from avis_stream.audio.logmel import MEL_BANDS, PATCH_FRAMES, LogMel

_LOG_OFFSET = 0.01


class VGGish(nn.Module):
    """Log-mel front end and network. Parameter names are those of the public torch port (`features`, `embeddings`)."""

    feature_dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(_LOG_OFFSET)
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 128, (256, 256), (512, 512)):
            for out in (width,) if isinstance(width, int) else width:
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        places = math.prod((PATCH_FRAMES // 16, MEL_BANDS // 16))
        self.embeddings = nn.Sequential(
            nn.Linear(places * channels, 4096), nn.ReLU(inplace=True),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True),
            nn.Linear(4096, self.feature_dim), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Seconds float32 [T, 16000] to features float32 [T, 128], >= 0; `valid_samples` as in `LogMel`."""
        return self.embed(self.log_mel(seconds, valid_samples))

    def embed(self, patches: Tensor) -> Tensor:
        """Log-mel patches [T, 96, 64] to features [T, 128]."""
        maps = self.features(patches[:, None])
        # The fully connected layer was trained on TensorFlow's order: height, width, channels.
        features: Tensor = self.embeddings(rearrange(maps, "t c h w -> t (h w c)"))
        return features
