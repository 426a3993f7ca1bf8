"""Resampling of whole seconds exactly as the official feature extraction did it (resampy's `kaiser_best`).

Live sound and files go through libswresample instead (`sources/`); this exists so that features match `FEATAudios`.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avis_stream.checks import require
from avis_stream.types import SAMPLE_RATE

_ZERO_CROSSINGS = 50
_BETA = 12.984585247040012
_ROLLOFF = 0.9173473712608761
_TABLE_STEPS = 8192
"""Table entries between zero crossings. The table itself is not needed, but its step is rounded down to an entry."""


def resample_seconds(samples: Tensor, rate_in: int, rate_out: int) -> Tensor:
    """Resamples each row on its own by a windowed sinc filter.

    Args:
        samples: float [T, n] at `rate_in` Hz.
        rate_in: > 0.
        rate_out: > 0.
    Returns:
        float [T, floor(n * rate_out / rate_in)].
    Source: resampy 0.4 (Smith's band-limited interpolation), parameters of its filter `kaiser_best`.
    """
    require(rate_in > 0, "rate_in", rate_in, "> 0 Hz")
    require(rate_out > 0, "rate_out", rate_out, "> 0 Hz")
    if rate_in == rate_out:
        return samples
    if not len(samples):
        return samples.new_zeros(0, samples.shape[-1] * rate_out // rate_in)
    length = samples.shape[-1]
    index, weight = _taps(length, rate_in, rate_out)
    padded = F.pad(samples.double(), (0, 1))  # index `length` stands for "no sample"
    return torch.stack([(row[index] * weight).sum(-1) for row in padded]).to(samples.dtype)


def mono_seconds(audio: Tensor, sample_rate: int, seconds: int) -> tuple[Tensor, Tensor]:
    """Cuts a waveform into the seconds that belong to frames at 1 fps, each brought to 16 kHz on its own.

    Args:
        audio: float32 [S] or [C, S] in [-1, 1] at `sample_rate`.
        sample_rate: Hz.
        seconds: How many frames there are; sound beyond is dropped, missing sound is zero.
    Returns:
        float32 [seconds, 16000], and int64 [seconds] of how many samples of each were there.
    Source: official `vggish_input.wavfile_to_examples` called second by second (quirk Q20).
    """
    mono = (audio if audio.dim() == 1 else audio.mean(dim=0))[: seconds * sample_rate]
    there = (mono.numel() - torch.arange(seconds) * sample_rate).clamp(0, sample_rate)
    rows = F.pad(mono, (0, seconds * sample_rate - mono.numel())).view(seconds, sample_rate)
    return resample_seconds(rows, sample_rate, SAMPLE_RATE), there * SAMPLE_RATE // sample_rate


@functools.lru_cache(maxsize=4)
def _taps(length: int, rate_in: int, rate_out: int) -> tuple[Tensor, Tensor]:
    """For each output sample, the input samples it reads and their weights: int64 and float64 [n_out, taps]."""
    ratio = rate_out / rate_in
    scale = min(1.0, ratio)
    step = int(scale * _TABLE_STEPS) / _TABLE_STEPS
    time = torch.arange(length * rate_out // rate_in, dtype=torch.float64) * (1.0 / ratio)
    nearest = time.long()
    fraction = scale * (time - nearest)
    wing = torch.arange(math.ceil(_ZERO_CROSSINGS / step) + 1)
    sides = ((nearest[:, None] - wing, fraction), (nearest[:, None] + 1 + wing, scale - fraction))
    index = torch.cat([i for i, _ in sides], dim=1)
    offset = torch.cat([start[:, None] + wing * step for _, start in sides], dim=1)  # in zero crossings
    outside = (index < 0) | (index >= length)
    weight = scale * _filter(offset)
    return index.masked_fill(outside, length), weight.masked_fill(outside, 0.0)


def _filter(offset: Tensor) -> Tensor:
    """Half of the symmetric low-pass filter at `offset` >= 0 zero crossings from its centre."""
    inside = (1 - (offset / _ZERO_CROSSINGS) ** 2).clamp(min=0)
    taper = torch.special.i0(_BETA * inside.sqrt()) / torch.special.i0(torch.tensor(_BETA, dtype=torch.float64))
    windowed: Tensor = _ROLLOFF * torch.sinc(_ROLLOFF * offset) * taper * (offset <= _ZERO_CROSSINGS)
    return windowed
