"""Training clips sound and look different each time, and never so that their truth is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avis_stream.config import AugmentConfig, SoundAugmentConfig
from avis_stream.presets import training
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.train.sound_augment import change_seconds, equalised, retuned
from avis_stream.train.source import SynthClips
from avis_stream.train.varied import VariedLibrary, bent

RATE = 16_000


def tone(hertz: float, seconds: int = 2) -> np.ndarray:
    time = np.arange(seconds * RATE) / RATE
    return (0.2 * np.sin(2 * np.pi * hertz * time)).astype(np.float32).reshape(seconds, RATE)


def loudness(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def test_officially_nothing_changes() -> None:
    wave = tone(440)
    assert np.array_equal(change_seconds(wave, SoundAugmentConfig(), np.random.default_rng(0), tone(900)), wave)
    assert training("avism_r50_coco").augment.sound == SoundAugmentConfig()


def test_gain_stays_within_its_bounds_and_the_wave_within_its() -> None:
    levels = [
        loudness(change_seconds(tone(440), SoundAugmentConfig(gain_db=6), np.random.default_rng(n))) for n in range(40)
    ]
    middle = loudness(tone(440))
    assert middle * 10 ** (-6 / 20) <= min(levels) < 0.7 * middle
    assert 1.3 * middle < max(levels) <= middle * 10 ** (6 / 20)
    loud = change_seconds(4 * tone(440), SoundAugmentConfig(gain_db=20), np.random.default_rng(1))
    assert np.abs(loud).max() <= 1


def test_a_shift_stays_inside_each_second() -> None:
    wave = np.zeros((2, RATE), np.float32)
    wave[0, 8000] = 1.0
    places = []
    for n in range(30):
        moved = change_seconds(wave, SoundAugmentConfig(shift_seconds=0.25), np.random.default_rng(n))
        assert not moved[1].any()
        places.append(int(moved[0].argmax()))
    assert 4000 <= min(places) < 6000
    assert 10_000 < max(places) <= 12_000


def test_an_equaliser_changes_colour_by_so_much_at_most() -> None:
    white = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    heard = equalised(white, 6.0, np.random.default_rng(1))
    change = 20 * np.log10(np.abs(np.fft.rfft(heard))[60:7000] / np.abs(np.fft.rfft(white))[60:7000])
    assert change.max() - change.min() > 1
    assert np.abs(change).max() <= 6.0 / 2 + 6.0 + 0.1
    assert equalised(white, 0.0, np.random.default_rng(1)) is white


def test_retuned_is_higher_and_shorter() -> None:
    wave = tone(500)[0]
    faster = retuned(wave, 1.25)
    assert len(faster) == pytest.approx(len(wave) / 1.25, abs=2)
    assert np.abs(np.fft.rfft(faster)).argmax() * RATE / len(faster) == pytest.approx(625, abs=2)


def test_what_is_mixed_in_lies_underneath() -> None:
    config = SoundAugmentConfig(mix_share=1.0, mix_db=(-20.0, -20.0))
    mixed = change_seconds(tone(440), config, np.random.default_rng(0), 0.01 * tone(900))
    spectrum = np.abs(np.fft.rfft(mixed[0]))
    assert spectrum[900] / spectrum[440] == pytest.approx(0.1, rel=1e-3)


def test_a_bent_cut_out_is_another_picture_of_the_same_thing() -> None:
    library, rng = ProceduralLibrary(), np.random.default_rng(0)
    rgba = library.sprite("cat", rng).rgba
    area = (rgba[..., 3] > 127).sum()
    different = 0
    for n in range(20):
        other = bent(rgba, 0.15, np.random.default_rng(n))
        opaque = other[..., 3] > 127
        assert opaque[0].any() and opaque[-1].any() and opaque[:, 0].any() and opaque[:, -1].any()  # noqa: PT018
        assert 0.4 * area < opaque.sum() < 1.3 * area
        different += other.shape != rgba.shape
    assert different > 10


def test_a_varied_library_offers_what_the_other_does() -> None:
    library = ProceduralLibrary()
    varied = VariedLibrary(library, training("avism_mini").augment)
    assert varied.classes == library.classes
    for n in range(8):
        sound = varied.sound("dog", np.random.default_rng(n))
        plain = library.sound("dog", np.random.default_rng(n))
        assert 0.9 < len(sound.samples) / len(plain.samples) < 1.1
        assert sound.loud.max() < len(sound.samples)
        assert loudness(sound.samples[sound.loud[0] :][: RATE // 4]) > 0.1
    same = VariedLibrary(library, AugmentConfig()).sound("dog", np.random.default_rng(3))
    assert np.array_equal(same.samples, library.sound("dog", np.random.default_rng(3)).samples)


def test_clips_are_the_same_whenever_asked_for() -> None:
    def clips(seed: int) -> SynthClips:
        return SynthClips(
            ProceduralLibrary(),
            Protocol.load(),
            frames=2,
            size=(96, 64),
            seed=seed,
            augment=training("avism_mini").augment,
        )

    one, again = clips(1).clip(7), clips(1).clip(7)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.seconds, again.seconds)
    assert not torch.equal(one.seconds, clips(2).clip(7).seconds)
