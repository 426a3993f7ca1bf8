"""Log-mel patches of a second of sound, the front end that VGGish and YAMNet share but for one constant.

Source: AudioSet's `mel_features.py` and YAMNet's `features.py` agree on everything here; recorded in golden `e`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avis_stream.checks import check_shape
from avis_stream.types import SAMPLE_RATE

PATCH_FRAMES = 96
MEL_BANDS = 64
_WINDOW = 400
_HOP = 160
_FFT = 512
_MEL_LOW_HZ, _MEL_HIGH_HZ = 125.0, 7500.0
PATCH_SAMPLES = (PATCH_FRAMES - 1) * _HOP + _WINDOW
"""Samples that one patch needs (0.975 s); a second with fewer gives an all-zero patch (quirk Q20)."""


class LogMel(nn.Module):
    """Seconds of sound to log-mel patches: 25-ms windows every 10 ms, magnitudes, 64 bands, log(x + offset)."""

    hann: Tensor
    mel: Tensor

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.register_buffer("hann", torch.hann_window(_WINDOW, periodic=True, dtype=torch.float64), persistent=False)
        self.register_buffer("mel", mel_matrix(), persistent=False)

    def forward(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Makes one patch a second.

        Args:
            seconds: float32 [T, 16000] in [-1, 1].
            valid_samples: int64 [T], how many of them were really there; None: all. Below 15,600 the patch is zero.
        Returns:
            float32 [T, 96, 64].
        """
        check_shape(seconds, "seconds", f"T {SAMPLE_RATE}", dtype=torch.float32)
        # float64 as in numpy, where the official features were made: quiet bands keep their digits
        windows = seconds.double().unfold(-1, _WINDOW, _HOP)[:, :PATCH_FRAMES] * self.hann
        magnitude = torch.fft.rfft(windows, n=_FFT).abs()
        patches: Tensor = ((magnitude @ self.mel) + self.offset).log().float()
        if valid_samples is not None:
            patches = patches * (valid_samples.to(patches.device) >= PATCH_SAMPLES)[:, None, None]
        return patches


def mel_matrix() -> Tensor:
    """Weights [257, 64], float64, from FFT bins to mel bands: triangles linear in mel (HTK's scale), DC left out."""
    bin_hz = SAMPLE_RATE / _FFT
    bins = torch.tensor([_hz_to_mel(i * bin_hz) for i in range(_FFT // 2 + 1)], dtype=torch.float64)[:, None]
    edges = torch.linspace(_hz_to_mel(_MEL_LOW_HZ), _hz_to_mel(_MEL_HIGH_HZ), MEL_BANDS + 2, dtype=torch.float64)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rising, falling).clamp(min=0)
    weights[0] = 0
    return weights


def _hz_to_mel(hz: float) -> float:
    return 1127.0 * math.log1p(hz / 700.0)
