"""The VGGish front end gives the official features from any sample rate."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from golden_data import arrays, assert_golden, tensor

from avis_stream.audio.logmel import LogMel, mel_matrix
from avis_stream.audio.resample import mono_seconds, resample_seconds
from avis_stream.audio.vggish import VGGish
from avis_stream.errors import ConfigError, ShapeError

FILE = "e_logmel"


def test_mel_matrix() -> None:
    assert_golden(mel_matrix().float(), FILE, "mel_matrix_257x64", atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("name", "atol"), [("sr16k", 1e-4), ("sr44k1", 2e-3), ("sr48k_short", 2e-3)])
def test_patches_of_stereo_recordings(name: str, atol: float) -> None:
    """Down-mix, resampling and spectrogram, second by second; a second that is too short gives zeros (quirk Q20)."""
    audio = tensor(FILE, f"{name}.wav_int16").T.float() / 32768
    seconds, valid = mono_seconds(audio, int(arrays(FILE)[f"{name}.sr"]), 3)
    assert_golden(LogMel(0.01)(seconds, valid), FILE, f"{name}.examples", atol=atol, rtol=0)
    if name == "sr48k_short":
        assert valid.tolist() == [16_000, 16_000, 10_000]


@pytest.mark.parametrize("rate", [44_056, 47_952, 49_000])
def test_a_second_of_any_rate_is_a_whole_second(rate: int) -> None:
    """Where rounding of the ratio alone would leave a sample out."""
    assert mono_seconds(torch.zeros(rate), rate, 1)[0].shape == (1, 16_000)


def test_resampled_second() -> None:
    stereo = tensor(FILE, "sr44k1.wav_int16").T.float()[:, :44_100] / 32768
    resampled = resample_seconds(stereo.mean(dim=0)[None], 44_100, 16_000)
    assert_golden(resampled, FILE, "sr44k1.resampled_first_second_mono", atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 96_000, 192_000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    time = torch.arange(rate, dtype=torch.float64) / rate
    tone = torch.sin(2 * torch.pi * 1000 * time).float()
    resampled = resample_seconds(tone[None], rate, 16_000)[0]
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)
    assert resampled.shape == (16_000,)
    torch.testing.assert_close(resampled[500:-500], expected[500:-500], atol=2e-3, rtol=0)


def test_mono_and_missing_sound() -> None:
    """Sound that ends early is silence, sound beyond the frames is dropped, mono is as good as stereo."""
    seconds, valid = mono_seconds(torch.ones(24_000), 16_000, 3)
    assert valid.tolist() == [16_000, 8_000, 0]
    assert seconds.sum(dim=1).tolist() == [16_000, 8_000, 0]
    assert mono_seconds(torch.ones(2, 64_000), 16_000, 1)[0].shape == (1, 16_000)


def test_network_layout() -> None:
    torch.manual_seed(0)
    model = VGGish().eval()
    assert sum(p.numel() for p in model.parameters()) == 72_141_184
    assert model.embeddings[0].in_features == 12_288
    with torch.no_grad():
        features = model(torch.rand(2, 16_000) * 2 - 1)
    assert features.shape == (2, 128)
    assert features.min() >= 0


def test_doors() -> None:
    with pytest.raises(ShapeError, match=r"seconds must be a tensor \[T, 16000\] float32, got \[1, 8000\] float32"):
        LogMel(0.01)(torch.zeros(1, 8_000))
    with pytest.raises(ConfigError, match="rate_in must be > 0 Hz, got 0"):
        resample_seconds(torch.zeros(1, 10), 0, 16_000)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_how_far_a_files_sound_is_from_the_official_resampling(rate: int) -> None:
    """Files and live sound come through libswresample as one signal; only bands next to the limit hear that (Q20)."""
    torch.manual_seed(0)
    seconds = 5
    wave = 0.1 * torch.randn(seconds * rate)
    resampler = av.AudioResampler("flt", "mono", 16_000)
    frame = av.AudioFrame.from_ndarray(wave.numpy()[None], format="flt", layout="mono")
    frame.sample_rate = rate
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    ours = torch.from_numpy(np.concatenate(parts))[: seconds * 16_000].view(seconds, 16_000)
    log_mel = VGGish().log_mel
    apart = (log_mel(ours) - log_mel(mono_seconds(wave, rate, seconds)[0])).abs()
    assert apart.mean() < 0.005
    assert apart[..., :58].max() < 0.05
    assert apart.max() < 0.6
