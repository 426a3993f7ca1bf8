"""The network gives the official numbers, stage by stage: a break names the stage where it begins."""

from __future__ import annotations

import math

import pytest
import torch
from einops import rearrange
from golden_data import assert_golden, state, tensor
from torch import Tensor

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.models.pixel_decoder import PixelFeatures
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.ops.ranges import window_plan

CLIPS = ["a_t8", "a_pad13"]
pytestmark = pytest.mark.parametrize("clip", CLIPS)


@pytest.fixture(scope="module", params=["fast", "literal"])
def model(request: pytest.FixtureRequest) -> AVISM:
    return avs.from_official(state("a_state"), top_k=10, reference=request.param == "literal")


def images(model: AVISM, clip: str) -> Tensor:
    return normalise_and_pad(tensor(clip, "in.images_u8"), model.config.input)


def recorded_features(clip: str) -> PixelFeatures:
    levels = tuple(tensor(clip, f"pixdec.multiscale{i}") for i in range(3))
    return PixelFeatures(levels, tensor(clip, "pixdec.clip_feature"), tensor(clip, "pixdec.mask_features"))


@torch.no_grad()
def test_backbone(model: AVISM, clip: str) -> None:
    for stage, features in enumerate(model.backbone(images(model, clip)), start=2):
        assert_golden(features, clip, f"backbone.res{stage}")


@torch.no_grad()
def test_pixel_decoder(model: AVISM, clip: str) -> None:
    recorded: dict[str, Tensor] = {}
    decoder = model.pixel_decoder
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, i=i: recorded.update({f"pixdec.encoder_layer{i}": out}))
        for i, layer in enumerate(decoder.layers)
    ] + [
        proj.register_forward_hook(lambda _m, _i, out, i=i: recorded.update({f"pixdec.input_proj{i}": out}))
        for i, proj in enumerate(decoder.input_proj)
    ]
    features = decoder([tensor(clip, f"backbone.res{i}") for i in range(2, 6)])
    for hook in hooks:
        hook.remove()
    assert len(recorded) == 5
    for key, value in recorded.items():
        assert_golden(value, clip, key)
    for i, level in enumerate(features.levels):
        assert_golden(level, clip, f"pixdec.multiscale{i}")
    assert_golden(features.stride4, clip, "pixdec.clip_feature")
    assert_golden(features.mask_features, clip, "pixdec.mask_features")
    assert_golden(model.clip_mask_features(features.stride4), clip, "out.clip_mask_features")


@torch.no_grad()
def test_audio_fusion(model: AVISM, clip: str) -> None:
    fusion = model.localizer.audio_fusion
    assert fusion is not None
    audio = tensor(clip, "in.audio")
    assert_golden(fusion.audio_proj(audio), clip, "loc.av_pre_proj")
    seen: list[Tensor] = []
    hooks = [block.norm.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in fusion.levels]
    features = recorded_features(clip)
    levels = [
        level.flatten(2).transpose(1, 2) + embed
        for level, embed in zip(features.levels, model.localizer.level_embed.weight, strict=True)
    ]
    added = fusion(audio, model.localizer.query_embed.weight, levels)
    for hook in hooks:
        hook.remove()
    for i, level in enumerate(seen):
        assert_golden(level.transpose(0, 1), clip, f"loc.av_sf{i}")
    assert_golden(added.transpose(0, 1), clip, "loc.av_post_proj")


@torch.no_grad()
def test_frame_decoder(model: AVISM, clip: str) -> None:
    localizer, features = model.localizer, recorded_features(clip)
    crossed: list[Tensor] = []
    hooks = [
        layer.cross_attn.norm.register_forward_hook(lambda _m, _i, out: crossed.append(out))
        for layer in localizer.layers
    ]
    predictions = localizer(features, tensor(clip, "in.audio")).heads
    for hook in hooks:
        hook.remove()
    for i, output in enumerate(crossed):
        assert_golden(output.transpose(0, 1), clip, f"loc.cross{i}")
    for i, prediction in enumerate(predictions):
        assert_golden(prediction.logits, clip, f"loc.stage{i}.logits")
        assert_golden(prediction.queries, clip, f"loc.stage{i}.frame_query")
        masks = torch.einsum("tnc,tchw->tnhw", prediction.mask_embed, features.mask_features)
        assert_golden(masks, clip, f"loc.stage{i}.masks")
    assert_golden(predictions[-1].queries, clip, "loc.frame_queries")


@torch.no_grad()
def test_attention_masks_are_the_official_ones_bit_for_bit(model: AVISM, clip: str) -> None:
    localizer, features = model.localizer, recorded_features(clip)
    guides = localizer.mask_guides(features)
    for stage in range(len(localizer.layers)):
        query = tensor(clip, f"loc.stage{stage}.frame_query")
        level = stage % 3
        visible = localizer.visible(localizer.mask_embed(query), guides[level], features.levels[level].shape[-2:])
        blocked = rearrange(tensor(clip, f"loc.stage{stage}.attn_blocked").bool(), "(t a) n k -> t a n k", t=len(query))
        blocked = blocked & ~blocked.all(dim=-1, keepdim=True)  # recorded before the reset of rows that see nothing
        assert torch.equal(~visible.expand_as(blocked), blocked)


@torch.no_grad()
def test_tracker(model: AVISM, clip: str) -> None:
    tracker = model.tracker
    queries, audio = tensor(clip, "loc.frame_queries"), tensor(clip, "in.audio")
    frames = queries.shape[1]
    objects = tracker.encode(queries)
    tokens = tracker.fuse(objects, audio)
    recorded = tensor(clip, "trk.enc_out_padded")[:frames]
    torch.testing.assert_close(objects[0], recorded[:, :, 0], atol=1e-4, rtol=1e-4)
    fused = (tensor(clip, "trk.av_out_padded") + tensor(clip, "trk.enc_out_padded"))[:frames]
    torch.testing.assert_close(tokens[0], fused[:, :, 0], atol=1e-4, rtol=1e-4)
    assert_golden(tracker.similarity_of_frames(tokens), clip, "out.pred_fq_embed")
    answer = tracker.decode(tokens)[-1]
    assert_golden(answer.logits, clip, "out.pred_logits")
    assert_golden(answer.mask_embed, clip, "out.pred_mask_embed")
    assert_golden(answer.similarity, clip, "out.pred_cq_embed")


@torch.no_grad()
def test_encoder_layers(model: AVISM, clip: str) -> None:
    """Each encoder layer alone, in the window layout that the official code keeps while it is inside."""
    tracker, window = model.tracker, model.config.tracker.token_window
    queries = tensor(clip, "loc.frame_queries")
    frames, slots = queries.shape[1:3]
    x = tracker.input_proj_dec(queries)
    assert_golden(x, clip, "trk.tokens_in")
    x = x.flatten(1, 2)
    for i, layer in enumerate(tracker.encoder):
        x = layer(x, x, window_plan(frames, window, slots, slots, shifted=i % 2 == 1))
        laid_out = rearrange(tensor(clip, f"trk.enc_layer{i}_windowlayout"), "(w n) g c -> (g w) n c", w=window)
        shift = math.ceil(window / 2) if i % 2 else 0
        recorded = laid_out.roll(-shift, dims=0)[:frames]
        torch.testing.assert_close(x[0].unflatten(0, (frames, slots)), recorded, atol=1e-4, rtol=1e-4)


def test_whole_chain(model: AVISM, clip: str) -> None:
    raw = model.raw_outputs(tensor(clip, "in.images_u8"), tensor(clip, "in.audio"))
    assert_golden(raw.frame_queries, clip, "loc.frame_queries")
    assert_golden(raw.clip_mask_features, clip, "out.clip_mask_features")
    assert_golden(raw.pred_logits, clip, "out.pred_logits")
    assert_golden(raw.pred_mask_embed, clip, "out.pred_mask_embed")
