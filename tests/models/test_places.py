"""Masks that know where they are: places as channels, and two alike drawn apart."""

from __future__ import annotations

import pytest
import torch
from small_model import SMALL
from torch import nn

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.models.places import MaskPlace, centres_of, place_maps


def placed_model() -> AVISM:
    torch.manual_seed(0)
    settings = [*SMALL, "localizer.placed_masks=true"]
    return avs.load("avism_mini", "random", settings=settings)


def fixed(place: MaskPlace, x_fall: float, y_fall: float) -> MaskPlace:
    """The same, with falls of its own for every query."""
    last = place.says.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.0, 0.0, x_fall, y_fall]))
    return place


def test_the_product_is_the_fall_with_distance_from_the_place_said() -> None:
    torch.manual_seed(0)
    place = MaskPlace(16)
    last = place.says.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=0.3)
    queries, begin = torch.randn(2, 3, 16), torch.rand(2, 3, 2) * 2 - 1
    maps = place_maps(torch.zeros(1, 6, 10))
    drawn = torch.einsum("tnc,chw->tnhw", place(queries, begin), maps)
    said = place.says(queries)
    for t in range(2):
        for n in range(3):
            p, q = (begin[t, n] + said[t, n, :2]).tolist()
            a, b = (said[t, n, 2:] - 2).exp().tolist()
            for row in range(6):
                for column in range(10):
                    x, y = (2 * column + 1) / 10 - 1, (2 * row + 1) / 6 - 1
                    wanted = -a * (x - p) ** 2 - b * (y - q) ** 2
                    assert drawn[t, n, row, column].item() == pytest.approx(wanted, abs=1e-4)


def test_places_of_pixels_are_what_the_maps_say() -> None:
    like = torch.zeros(3, 4, 8)
    maps = place_maps(like)
    centres = centres_of(torch.arange(32), like)
    assert torch.equal(centres.T, maps[[1, 3]].flatten(1))
    assert maps[1, 0].tolist() == [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875]
    assert maps[3, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_the_steepest_fall_leaves_a_logit_exact_enough_in_half_precision() -> None:
    """Mask features may be kept in float16; the sum of large parts must stay right to a fraction of a logit."""
    place = fixed(MaskPlace(4), 100.0, 100.0)
    embed = place(torch.zeros(1, 1, 4), torch.tensor([[[0.9, -0.9]]]))[0, 0]
    maps = place_maps(torch.zeros(1, 48, 80))
    exact = torch.einsum("c,chw->hw", embed.double(), maps.double())
    stored = torch.einsum("c,chw->hw", embed, maps.half().float())
    near = exact > -10
    assert near.any()
    assert (exact - stored)[near].abs().max() < 0.2


def test_weights_without_places_go_on_nearly_where_they_were() -> None:
    placed = placed_model()
    without = avs.load("avism_mini", "random", settings=[*SMALL, "localizer.placed_masks=false"])
    lacking = placed.load_state_dict(without.state_dict(), strict=False)
    assert lacking.missing_keys
    assert all(key.startswith("localizer.place.") for key in lacking.missing_keys)
    assert not lacking.unexpected_keys
    images, audio = torch.randn(1, 3, 64, 96), torch.randn(1, without.config.audio.feature_dim)
    with torch.no_grad():
        seen = [model.localize(images, audio) for model in (without, placed)]
    drawn = [torch.einsum("tnc,tchw->tnhw", s.mask_embed, s.clip_mask_features)[0, 0] for s in seen]
    assert placed.config.drawn_channels == without.config.drawn_channels + 5 == seen[1].clip_mask_features.shape[1]
    # A fall is an eighth of a logit at most half a picture away, and the layers between have learnt nothing of it.
    assert (drawn[0] - drawn[1]).abs().max() < 3


def test_of_two_alike_each_query_draws_its_own() -> None:
    """Two squares of one look: products with features cannot tell them apart, products with places can."""
    features = torch.cat([torch.full((1, 24, 40), -4.0), place_maps(torch.zeros(1, 24, 40))])
    features[0, 8:16, 4:12] = features[0, 8:16, 28:36] = 4.0
    place = fixed(MaskPlace(4), 5.5, 2.0)
    begin = torch.tensor([[[-0.6, 0.0], [0.6, 0.0]]])
    embed = torch.cat([torch.ones(1, 2, 1), place(torch.zeros(1, 2, 4), begin)], dim=-1)[0]
    left, right = torch.einsum("nc,chw->nhw", embed, features) > 0
    assert left[8:16, 4:12].all()
    assert right[8:16, 28:36].all()
    assert left.sum() == right.sum() == 64


def test_clips_and_streams_run_on_placed_masks() -> None:
    model = placed_model()
    frames = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    raw = model.raw_outputs(frames, torch.randn(3, model.config.audio.feature_dim))
    assert raw.pred_mask_embed.shape[-1] == raw.clip_mask_features.shape[1] == model.config.drawn_channels
    segmenter = avs.OnlineSegmenter(model)
    state = segmenter.init_state()
    for number, frame in enumerate(frames):
        result, state = segmenter.step(frame, torch.zeros(16_000), state)
        assert result.frame_id == number
