"""An encoder that hears nothing: the same network without its sound, for comparison."""

from __future__ import annotations

from torch import Tensor, nn


class Deaf(nn.Module):
    """Seconds of sound to zeros, as wide as YAMNet's features."""

    feature_dim = 1024

    def forward(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Seconds float32 [T, 16000] to zeros float32 [T, 1024]."""
        return seconds.new_zeros(len(seconds), self.feature_dim)
