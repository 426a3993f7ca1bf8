"""What a frame shows: of masks in one place the best, as offline."""

from __future__ import annotations

import torch

from avis_stream.config import PostprocessConfig
from avis_stream.models.postprocess import MaskSizes, find_instances
from avis_stream.online import OnlineConfig
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
