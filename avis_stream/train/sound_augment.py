"""Changes to what a training clip hears that keep the truth true; all off by default, as the official loader has none.

What is drawn is drawn once for a clip, so that its seconds still belong together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from avis_stream.config import SoundAugmentConfig

Rng = np.random.Generator
Wave = NDArray[np.float32]
_CENTRE_HZ = (60.0, 7000.0)


def change_seconds(seconds: Wave, config: SoundAugmentConfig, rng: Rng, other: Wave | None = None) -> Wave:
    """Another take of a clip's sound, float32 [T, n] in [-1, 1].

    Args:
        seconds: float32 [T, n], one row a frame.
        config: What may happen and how much of it.
        rng: Decides.
        other: float32 [T, n], another clip's sound to put underneath; None: nothing is.
    """
    changed = seconds
    if config.shift_seconds > 0:
        most = round(config.shift_seconds * seconds.shape[1])
        changed = np.roll(changed, int(rng.integers(-most, most + 1)), axis=1)
    changed = equalised(changed, config.equaliser_db, rng)
    level = np.sqrt(np.mean(changed**2)) + 1e-6
    if other is not None and rng.random() < config.mix_share:
        beneath = _gain(rng.uniform(*config.mix_db)) * level / (np.sqrt(np.mean(other**2)) + 1e-6)
        changed = changed + beneath * other
    if config.noise_share and rng.random() < config.noise_share:
        noise = rng.standard_normal(changed.shape, dtype=np.float32)
        changed = changed + _gain(rng.uniform(*config.noise_dbfs)) * noise
    if config.gain_db > 0:
        changed = changed * _gain(rng.uniform(-config.gain_db, config.gain_db))
    return np.clip(changed, -1, 1).astype(np.float32)


def equalised(wave: Wave, most_db: float, rng: Rng) -> Wave:
    """The same through another microphone: a tilt over the spectrum and one broad bump or dip, [..., n]."""
    if most_db <= 0:
        return wave
    length = wave.shape[-1]
    spectrum = fft.rfft(wave, n=fft.next_fast_len(length, real=True))
    octave = np.log2(np.linspace(0, 8000, spectrum.shape[-1]) + 30)
    low, high = np.log2(_CENTRE_HZ)
    tilt = rng.uniform(-most_db, most_db) * (octave - (low + high) / 2) / (high - low)
    bump = rng.uniform(-most_db, most_db) * np.exp(-((octave - rng.uniform(low, high)) ** 2) / 2)
    gain = (10 ** ((tilt + bump) / 20)).astype(np.float32)
    heard: Wave = fft.irfft(spectrum * gain, n=fft.next_fast_len(length, real=True))[..., :length]
    return heard


def retuned(wave: Wave, factor: float) -> Wave:
    """Played `factor` times as fast, so higher and shorter: [n] to [n / factor]."""
    places = np.arange(0, len(wave) - 1, factor)
    faster: Wave = np.interp(places, np.arange(len(wave)), wave).astype(np.float32)
    return faster


def _gain(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))
