"""What a frame shows: of masks in one place the best, as offline; and where a pixel begins to belong to one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import open_config, scene, small_model

from avis_stream.config import PostprocessConfig
from avis_stream.errors import ConfigError
from avis_stream.models.postprocess import MaskSizes, find_instances
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.online.seeing import Gates, TrackerAnswer, observe


def test_of_a_chain_of_neighbours_the_same_are_kept_online_and_offline() -> None:
    """The first and the third overlap by 8/12, each with the second by 9/11: only the second has a better one there."""
    features = torch.full((3, 48, 80), -9.0)  # one mask a channel
    for n in range(3):
        features[n, :12, 4 * n : 4 * n + 40] = 9.0
    logits = torch.tensor([[6.0, 0.0], [5.0, 0.0], [4.0, 0.0]])
    embed, sizes = torch.eye(3), MaskSizes((48, 80), (48, 80), (48, 80))
    tokens = torch.zeros(2, 3)
    answer = TrackerAnswer(
        pred_logits=logits, pred_mask_embed=embed, similarity=torch.eye(3), presence=None, tokens=tokens,
        frame_similarity=tokens, clip_mask_features=features,
    )  # fmt: skip
    online = observe(answer, sizes, OnlineConfig(duplicate_iou=0.7), Gates(None, False, True))
    config = PostprocessConfig(duplicate_iou=0.7)
    offline = find_instances(logits, embed, [(0, features[None])], sizes, config)
    assert online.query.tolist() == offline.query_id.tolist() == [0, 2]


def test_a_higher_mask_threshold_draws_smaller_masks() -> None:
    film, model = scene(2), small_model()
    usual = OnlineSegmenter(model, open_config())
    result, state = usual.step(film.frames[0], film.audio[0], usual.init_state())
    areas = []
    for threshold in (0.2, 0.5, 0.8):
        other = OnlineSegmenter(model, replace(usual.config, mask_threshold=threshold))
        masks = other.refresh(film.frames[0], state).mask
        areas.append(int(masks.sum()))
        if threshold == 0.5:
            assert torch.equal(masks, result.mask)
        assert torch.equal((masks & result.mask).sum(), min(masks.sum(), result.mask.sum())), "one is inside the other"
    assert areas[0] > areas[1] > areas[2]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_a_mask_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ConfigError, match="mask_threshold must be between 0 and 1"):
        OnlineConfig(mask_threshold=threshold)
