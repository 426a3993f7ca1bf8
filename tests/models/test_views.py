"""A frame looked at several times: what the looks agree on (ADR 0016)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from small_model import scene, small_model
from torch import Tensor

from avis_stream.config import AVISMConfig, InputConfig
from avis_stream.errors import ConfigError
from avis_stream.models.avism import AVISM, FrameTokens
from avis_stream.models.postprocess import mask_logits
from avis_stream.models.views import View, agreed, of_one_view, views_of

INPUT = InputConfig(short_side_px=64, size_divisor=32)
FRAME = (64, 80)
"""Seen as it is, and padded to 64 x 96: the last 4 of 24 columns of mask features are padding."""
PLAIN, MIRRORED = View(INPUT), View(INPUT, mirrored=True)


def looking(model: AVISM, *sides: int, mirrored: bool) -> AVISM:
    """The same weights, which look at clips in other ways."""
    other = copy.copy(model)
    own = replace(model.config.input, clip_more_sides_px=sides, clip_mirrored=mirrored)
    other.config = replace(model.config, input=own)
    return other


def boxes(*places: tuple[int, int]) -> Tensor:
    """Mask features [1, N, 16, 24] in which channel n is 5 in columns `places[n]` of the picture and -5 elsewhere."""
    features = torch.full((1, len(places), 16, 24), -5.0)
    for n, (first, end) in enumerate(places):
        features[0, n, 4:12, first:end] = 5
    return features


def tokens(features: Tensor, sure: list[float], sounding: float = 0.5) -> FrameTokens:
    """Query n draws channel n, and is of class 0 with chance `sure[n]`."""
    chance = torch.tensor([[[c, 0.0, 1 - c] for c in sure]]).clamp(min=1e-9)
    count = len(sure)
    return FrameTokens(
        torch.eye(count)[None], chance.log(), features, torch.full((1, count), sounding), torch.eye(count)[None]
    )


def mirrored(features: Tensor) -> Tensor:
    """What a view in a mirror makes of the same: turned round where the picture is, with its padding behind."""
    return torch.cat([features[..., :20].flip(-1), features[..., 20:]], dim=-1)


def drawn(found: FrameTokens) -> Tensor:
    """Masks bool [N, H, W]."""
    assert found.mask_embed is not None
    return mask_logits(found.mask_embed[0], found.clip_mask_features, PLAIN.sizes(FRAME, FRAME))[0] > 0


def chance(found: FrameTokens) -> list[float]:
    return [round(c, 4) for c in found.logits.softmax(-1)[0, :, 0].tolist()]


def test_one_view_is_what_it_was() -> None:
    seen = tokens(boxes((2, 8)), [0.9])
    assert agreed([seen], [PLAIN], FRAME) is seen


def test_what_both_see_is_one_thing_and_where_it_was() -> None:
    plain = tokens(boxes((2, 8), (12, 18)), [0.9, 0.6], sounding=0.9)
    other = tokens(mirrored(boxes((2, 8), (12, 18))), [0.7, 0.8], sounding=0.5)
    both = agreed([plain, other], [PLAIN, MIRRORED], FRAME)
    assert chance(both) == [0.8, 0.7]
    assert torch.equal(drawn(both), drawn(plain))
    assert both.sounding is not None
    torch.testing.assert_close(both.sounding[0], torch.full((2,), 0.75))  # the mean of log-odds log 9 and 0: log 3


def test_who_does_not_see_it_votes_against_it() -> None:
    plain = tokens(boxes((2, 8), (12, 18)), [0.9, 0.6])
    other = tokens(mirrored(boxes((2, 8), (0, 0))), [0.7, 0.0])
    assert chance(agreed([plain, other], [PLAIN, MIRRORED], FRAME)) == [0.8, 0.3]


def test_two_things_of_one_view_stay_two() -> None:
    plain = tokens(boxes((2, 8), (3, 9)), [0.9, 0.8])
    other = tokens(mirrored(boxes((2, 8), (15, 18))), [0.7, 0.6])
    both = agreed([plain, other], [PLAIN, MIRRORED], FRAME)
    assert chance(both) == [0.8, 0.4], "the second of the plain view is not the first of the other, which is taken"


def test_a_smaller_view_lies_where_the_first_does() -> None:
    small = View(replace(INPUT, short_side_px=32))  # 32x40, padded to 32x64
    features = torch.full((1, 1, 8, 16), -5.0)
    features[0, 0, 2:6, 1:4] = 5
    found = agreed([tokens(boxes((2, 8)), [0.9]), tokens(features, [0.5])], [PLAIN, small], FRAME)
    assert chance(found) == [0.7]
    of_both, alone = drawn(found), drawn(tokens(boxes((2, 8)), [0.9]))
    assert int((of_both ^ alone).sum()) <= 0.02 * int(alone.sum()), "but for corners, which are rounder"


def test_the_first_view_that_sees_an_object_draws_it_alone() -> None:
    plain = tokens(boxes((2, 8), (12, 18), (0, 0)), [0.9, 0.6, 0.0])
    other = tokens(mirrored(boxes((2, 8), (0, 0), (8, 11))), [0.7, 0.0, 0.5])
    both = agreed([plain, other], [PLAIN, MIRRORED], FRAME)
    assert both.mask_embed is not None
    view, embed = of_one_view(both.mask_embed[0], 2)
    assert view.tolist() == [0, 0, 1]
    assert torch.equal(embed, torch.eye(3))


def test_views_are_all_sizes_in_and_out_of_the_mirror() -> None:
    several = replace(INPUT, clip_short_side_px=96, clip_more_sides_px=(64,), clip_mirrored=True)
    assert [(v.input.short_side_px, v.mirrored) for v in views_of(several)] == [
        (96, False), (96, True), (64, False), (64, True)
    ]  # fmt: skip
    assert [(v.input.short_side_px, v.mirrored) for v in views_of(INPUT)] == [(64, False)]


@pytest.mark.parametrize("objects", ["frame", "video"])
def test_a_clip_in_the_mirror_has_mirrored_masks(objects: str) -> None:
    model = looking(small_model(objects=objects), mirrored=True)
    film = scene(4, height=64, width=96)  # sides that need no padding
    sound = film.audio.flatten()
    clip = model.segment(film.frames, sound, previous=film.previous)
    turned = model.segment(film.frames.flip(-1), sound, previous=film.previous.flip(-1))
    assert len(clip) == len(turned) > 0
    torch.testing.assert_close(clip.score, turned.score, atol=1e-4, rtol=0)
    differ = sum(int((clip.masks(t) ^ turned.masks(t).flip(-1)).sum()) for t in range(4))
    area = sum(int(clip.masks(t).sum()) for t in range(4))
    assert differ <= 0.002 * area, "but for pixels on the edge"
    once = small_model(objects=objects)
    alone = once.segment(film.frames, sound, previous=film.previous)
    turned = once.segment(film.frames.flip(-1), sound, previous=film.previous.flip(-1))
    assert len(alone) != len(turned) or not torch.allclose(alone.score, turned.score, atol=1e-4), "one look is not so"


def test_what_is_computed_anew_is_the_same() -> None:
    model = looking(small_model(objects="frame"), 48, mirrored=True)
    film = scene(5)
    kept, anew = (
        model.segment(film.frames, film.audio.flatten(), previous=film.previous, memory_bytes=memory)
        for memory in (None, 0)
    )
    assert kept.rles == anew.rles
    assert torch.equal(kept.score, anew.score)


def test_views_need_masks_of_frame_queries() -> None:
    with pytest.raises(ConfigError, match=r"clip_mirrored.*tracker\.masks"):
        AVISMConfig(input=InputConfig(clip_mirrored=True))
