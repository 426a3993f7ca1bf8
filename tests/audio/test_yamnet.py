"""Our YAMNet is the published one: same embedding, same best class, from the same spectrogram."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import avis_stream as avs
from avis_stream.audio.logmel import LogMel
from avis_stream.audio.yamnet import YAMNet, is_published
from avis_stream.config import AudioConfig
from avis_stream.errors import ConfigError
from avis_stream.nn.packed import pack_layers
from avis_stream.presets import preset
from avis_stream.weights.bundled import bundled_yamnet, stored_state
from avis_stream.weights.files import save_weights
from avis_stream.weights.load import unfolded_model

RECORDED = Path(__file__).parents[1] / "fixtures" / "yamnet.npz"


def load() -> YAMNet:
    model = YAMNet().eval()
    model.load_state_dict(bundled_yamnet())
    return model


@torch.no_grad()
def test_embeddings_agree_with_the_published_file() -> None:
    recorded = np.load(RECORDED)
    expected = torch.from_numpy(recorded["embedding"])
    embeddings = load().embed(torch.from_numpy(recorded["log_mel"]).float())
    cosine = F.cosine_similarity(embeddings, expected)
    assert cosine.min() > 0.999, cosine.min()
    scores = embeddings @ torch.from_numpy(recorded["classifier_weight"]).float().T
    scores += torch.from_numpy(recorded["classifier_bias"])
    best = torch.from_numpy(recorded["best_class"])
    same = scores.argmax(dim=1) == best
    assert same.sum() >= 60
    # The tflite multiplies in 8 bits: where it prefers another class, the two must be as good as tied.
    behind = scores.amax(dim=1) - scores.gather(1, best[:, None])[:, 0]
    assert behind.max() < 0.05, behind


@torch.no_grad()
def test_front_end_agrees_where_the_published_one_is_exact_enough() -> None:
    """The tflite quantises the input of its Fourier transform to 8 bits, so only loud bands are comparable."""
    recorded = np.load(RECORDED)
    waves = torch.from_numpy(recorded["wave"]).float() / 32768
    patches = LogMel(0.001)(F.pad(waves, (0, 400)))
    published = torch.from_numpy(recorded["wave_log_mel"]).float()
    for ours, theirs in zip(patches, published, strict=True):
        loud = theirs > theirs.max() - 3
        assert (ours - theirs)[loud].mean().abs() < 0.02
    cosine = F.cosine_similarity(load().embed(patches), torch.from_numpy(recorded["wave_embedding"]))
    assert cosine[0] > 0.999, cosine  # white noise has no quiet band


@torch.no_grad()
def test_one_second_at_a_time_gives_what_all_at_once_gives() -> None:
    torch.manual_seed(0)
    seconds = torch.rand(6, 16_000) * 2 - 1
    model = load()
    together = model(seconds)
    alone = torch.cat([model(second[None]) for second in seconds])
    assert together.shape == (6, 1024)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_silence_has_a_finite_spectrum() -> None:
    patch = LogMel(0.001)(torch.zeros(1, 16_000))
    torch.testing.assert_close(patch, torch.full_like(patch, float(np.log(0.001))))


@torch.no_grad()
def test_adapters_begin_as_the_published_network_and_are_stored_beside_it() -> None:
    torch.manual_seed(0)
    patches, public = torch.randn(3, 96, 64), bundled_yamnet()
    adapted = YAMNet(adapter_rank=4).eval()
    adapted.load_state_dict(public, strict=False)
    torch.testing.assert_close(adapted.embed(patches), load().embed(patches), rtol=0, atol=0)
    names = {name for name, _ in adapted.named_parameters()}
    assert {name for name in names if is_published(name)} == set(public)
    assert len(names - set(public)) == 3 * 7
    adapted.layers[-2].up.bias += 1
    assert (adapted.embed(patches) > load().embed(patches)).any()


@torch.no_grad()
def test_in_inference_a_change_is_part_of_the_weight() -> None:
    torch.manual_seed(0)
    patches, adapted = torch.randn(3, 96, 64), YAMNet(adapter_rank=4).eval()
    adapted.load_state_dict(bundled_yamnet(), strict=False)
    for name, values in adapted.named_parameters():
        if ".up." in name:
            values.copy_(0.05 * torch.randn_like(values))
    beside = adapted.embed(patches)
    pack_layers(adapted)
    merged = adapted.embed(patches)
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-4)
    assert not torch.equal(merged, beside), "it went the ordinary way"
    adapted.layers[-2].up.weight += 1
    torch.testing.assert_close(adapted.embed(patches), merged)  # packed weights are those of when it was packed
    fresh = copy.deepcopy(adapted).eval()
    torch.testing.assert_close(adapted.train().eval().embed(patches), fresh.embed(patches))
    assert (fresh.embed(patches) - merged).abs().max() > 0.1


def test_adapters_travel_with_the_weights_of_their_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = preset("avism_mini").with_overrides(["audio.adapter_rank=3"])
    model = unfolded_model(config, None, "")
    with torch.no_grad():
        model.audio_encoder.layers[-2].up.bias += 1
    save_weights(stored_state(model), model.config, tmp_path / "w.safetensors", half=True)
    second = torch.rand(1, 16_000) - 0.5
    heard = avs.load("avism_mini", tmp_path / "w.safetensors").hear(second)
    torch.testing.assert_close(heard, model.hear(second), rtol=1e-2, atol=1e-2)
    assert (heard - load()(second)).abs().max() > 0.1
    stored = {name for name in stored_state(model) if name.startswith("audio_encoder.")}
    assert len(stored) == 3 * 7


def test_a_rank_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter_rank must be >= 0, got -1"):
        AudioConfig(encoder="yamnet", feature_dim=1024, adapter_rank=-1)
