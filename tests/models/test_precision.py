"""Lower precision of what looks at pixels: close to the official numbers, float32 where it counts."""

from __future__ import annotations

import pytest
import torch
from golden_data import state, tensor
from torch import Tensor

import avis_stream as avs
from avis_stream.errors import CheckpointError, ConfigError
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.nn.packed import Conv2d, Linear
from avis_stream.online import OnlineConfig, OnlineSegmenter


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over that of `a`."""
    return float((a - b).norm() / a.norm())


@torch.no_grad()
def test_features_are_those_of_float32_to_two_places() -> None:
    exact, lower = (avs.from_official(state("a_state"), top_k=10) for _ in range(2))
    lower.prepare_for_inference(torch.bfloat16)
    images = normalise_and_pad(tensor("a_t8", "in.images_u8"), exact.config.input)
    wanted, got = exact.drawing_features(images), lower.drawing_features(images)
    assert got.dtype == torch.float32
    assert 1e-4 < apart(wanted, got) < 0.03, "rounded, and no more than that"
    audio = tensor("a_t8", "in.audio")
    wanted_tokens, got_tokens = exact.localize(images, audio), lower.localize(images, audio)
    assert torch.equal(got_tokens.clip_mask_features, got)
    assert got_tokens.logits.dtype == got_tokens.frame_queries.dtype == torch.float32
    # What attends only where its own mask is may look elsewhere after rounding: most queries do not.
    each = (wanted_tokens.logits - got_tokens.logits).abs().amax(-1) / wanted_tokens.logits.abs().amax(-1)
    assert float(each.median()) < 0.1


def test_weights_are_rounded_where_pixels_are_looked_at_alone() -> None:
    model = avs.load("avism_mini", "random", precision="bfloat16")
    lowered = {name.split(".")[0] for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
    assert lowered == {"backbone", "pixel_decoder"}
    layers = [part for part in model.backbone.modules() if isinstance(part, (Conv2d, Linear))]
    assert layers
    assert all(part.weight.dtype == torch.bfloat16 for part in layers)


def test_a_stream_runs_and_its_state_is_not_another_precisions() -> None:
    exact = avs.load("avism_mini")
    model = avs.load("avism_mini", precision="bfloat16")
    segmenter = OnlineSegmenter(model, OnlineConfig())
    frame = torch.zeros(3, 64, 96, dtype=torch.uint8)
    result, state_after = segmenter.step(frame, torch.zeros(16_000), segmenter.init_state(), pts_ns=0)
    assert result.mask.shape[1:] == (64, 96)
    with pytest.raises(CheckpointError, match="got one of another"):
        OnlineSegmenter(exact, OnlineConfig()).step(frame, torch.zeros(16_000), state_after, pts_ns=10**9)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"precision must be one of float32, bfloat16, got 'half'"):
        avs.load("avism_mini", "random", precision="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float32 for the literal form"):
        avs.load("avism_mini", "random", precision="bfloat16", reference=True)
