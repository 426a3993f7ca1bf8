"""Scores, classes and masks of a whole clip are the official ones."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from golden_data import arrays, assert_golden, state, tensor

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.models.clip import ClipResult
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip

CLIPS = ["a_t8", "a_pad13"]


def segment(model: AVISM, clip: str, **bounds: int) -> ClipResult:
    meta = json.loads(bytes(arrays(clip)["meta.json"]).decode())
    frames = [
        ClipFrame(image, audio)
        for image, audio in zip(tensor(clip, "in.images_u8"), tensor(clip, "in.audio"), strict=True)
    ]
    memory, disk = bounds.get("memory_bytes", 1 << 30), bounds.get("disk_bytes", 0)
    again = partial(mask_features_again, model, lambda: iter(frames))
    with MaskStore(memory, disk, recompute=again) as store:
        out_size = (meta["out_H"], meta["out_W"])
        return segment_clip(model, lambda: iter(frames), out_size=out_size, store=store)


def golden_model(clip: str, *, reference: bool = False, score_threshold: float = 0.3) -> AVISM:
    model = avs.from_official(state("a_state"), top_k=10, reference=reference)
    config = model.config
    side = min(tensor(clip, "in.images_u8").shape[-2:])  # recorded pictures are at network size already
    model.config = replace(
        config,
        input=replace(config.input, short_side_px=side),
        postprocess=replace(config.postprocess, score_threshold=score_threshold),
    )
    return model


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("reference", [False, True], ids=["fast", "literal"])
def test_all_pairs(clip: str, reference: bool) -> None:
    """With a threshold that everything passes, the official top ten come out in order."""
    result = segment(golden_model(clip, reference=reference, score_threshold=-1.0), clip)
    assert_golden(result.score, clip, "post.scores", atol=1e-4, rtol=0)
    assert torch.equal(result.class_id, tensor(clip, "post.labels").long())
    assert torch.equal(result.query_id, tensor(clip, "post.query").long())
    masks = torch.stack([result.masks(t) for t in range(result.frames)], dim=1)  # [I, T, H, W]
    packed = arrays(clip)["post.masks_packed"]
    recorded = np.unpackbits(packed, axis=-1)[..., : masks[0, 0].numel()].reshape(masks.shape)
    wrong = (recorded != masks.numpy()).mean(axis=(1, 2, 3))
    assert wrong.max() <= 1e-3, f"share of wrong pixels for each instance: {wrong}"


@pytest.mark.parametrize("clip", CLIPS)
def test_official_threshold(clip: str) -> None:
    result = segment(golden_model(clip), clip)
    assert_golden(result.score, clip, "final.scores", rtol=0)


@pytest.mark.parametrize(
    "bounds", [{"memory_bytes": 120_000}, {"memory_bytes": 0, "disk_bytes": 1 << 20}, {"memory_bytes": 0}]
)
def test_any_budget_gives_the_same_masks(bounds: dict[str, int]) -> None:
    """Half precision, disk and recomputation change no more than rounding does."""
    clip = "a_t8"
    model = golden_model(clip)
    plenty, tight = segment(model, clip), segment(model, clip, **bounds)
    torch.testing.assert_close(tight.score, plenty.score, atol=1e-3, rtol=0)
    wrong = torch.stack([(tight.masks(t) ^ plenty.masks(t)).float().mean() for t in range(plenty.frames)])
    assert wrong.max() <= 2e-3


def test_store_homes_in_order() -> None:
    part = torch.randn(2, 4, 8, 8)
    frame = part[0].numel()
    everything = torch.randn(12, 4, 8, 8)
    store = MaskStore(2 * 4 * frame, 2 * 4 * frame, recompute=lambda start: iter(everything[start:].split(5)))
    with store:
        for chunk in everything.split(2):
            store.append(chunk)
        assert store.homes == {"memory float16": 4, "disk": 4, "recomputed": 4}
        starts, read = zip(*store, strict=True)
        assert list(starts) == [0, 2, 4, 6, 8]
        torch.testing.assert_close(torch.cat(read), everything, atol=2e-3, rtol=2e-3)
        again = torch.cat([features for _, features in store])
        assert torch.equal(again, torch.cat(read))


def test_store_without_a_way_out_says_so() -> None:
    with MaskStore(0) as store, pytest.raises(avs.AvisStreamError, match="--memory-budget"):
        store.append(torch.zeros(1, 4, 8, 8))
