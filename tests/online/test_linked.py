"""Streams and clips whose objects are linked frame queries (ADR 0010)."""

from __future__ import annotations

import torch
from small_model import open_config, play, scene, small_model, with_postprocess

from avis_stream.models.avism import AVISM
from avis_stream.models.linking import mask_iou
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images
from avis_stream.online import OnlineSegmenter


def linked_model(**settings: object) -> AVISM:
    opened = {"score_threshold": 0.0, "presence_threshold": 0.0, "duplicate_iou": 0.6, **settings}
    return with_postprocess(small_model(objects="frame"), **opened)


def test_a_clip_shows_its_objects() -> None:
    model, film = linked_model(), scene(12)
    clip = model.segment(film.frames, film.audio.flatten(), previous=film.previous)
    assert len(clip)
    assert any(clip.masks(t).any() for t in range(len(film)))


def test_raw_outputs_hold_an_object_a_row() -> None:
    model, film = linked_model(), scene(6)
    size = network_size(*film.frames.shape[-2:], model.config.input)
    raw = model.raw_outputs(resize_images(film.frames, size), model.hear(film.audio))
    objects = len(raw.pred_logits)
    assert raw.pred_mask_embed.shape == (objects, 6, model.config.drawn_channels)
    assert raw.presence is not None
    assert raw.presence.shape == (objects, 6)
    torch.testing.assert_close(raw.pred_logits.exp().sum(-1), torch.ones(objects))


def test_a_stream_answers_with_the_frames_own_queries() -> None:
    online, film = OnlineSegmenter(linked_model()), scene(3)
    model, state = online.model, online.init_state()
    assert state.body.memory.keys is None, "video queries are not asked, so nothing is kept for them"
    size = network_size(*film.frames.shape[-2:], model.config.input)

    def prepared(pictures: torch.Tensor) -> torch.Tensor:
        return normalise_and_pad(resize_images(pictures, size), model.config.input)

    with torch.no_grad():
        heard = model.hear(film.audio)
        tokens = model.localize(prepared(film.frames), heard, prepared(film.previous))
    assert tokens.sounding is not None
    assert tokens.mask_embed is not None
    for t in range(3):
        frame = tokens.frame_queries[t], tokens.clip_mask_features[t], heard[t]
        said, state = online.step_features(*frame, state, tokens.sounding[t], tokens.mask_embed[t], tokens.logits[t])
        assert torch.equal(said.pred_logits, tokens.logits[t])
        assert torch.equal(said.pred_mask_embed, tokens.mask_embed[t])
        assert torch.equal(said.presence, tokens.sounding[t])
        assert torch.equal(said.similarity, said.frame_similarity)


def test_a_stream_goes_on_past_its_ring_and_identities_last() -> None:
    online, film = OnlineSegmenter(linked_model(), open_config()), scene(40)
    results, state = play(online, film, online.init_state(), range(40))
    size = state.nbytes
    again, state = play(online, film, state, range(40))
    assert state.nbytes == size
    first = set(results[-1].track_id.tolist())
    assert first & set(again[-1].track_id.tolist())


def test_sight_is_the_same_for_a_frame_alone_and_in_a_clip() -> None:
    model, film = linked_model(), scene(4)
    size = network_size(*film.frames.shape[-2:], model.config.input)
    images = normalise_and_pad(resize_images(film.frames, size), model.config.input)
    sizes = MaskSizes((images.shape[-2], images.shape[-1]), size, size)
    with torch.no_grad():
        tokens = model.localize(images, model.hear(film.audio))
        seen = model.sight(tokens, sizes)
    assert len(seen) == 4
    for frame in seen:
        assert len(frame) == len(frame.query.unique())
        assert frame.grid.flatten(1).any(dim=1).all()
        assert (mask_iou(frame.grid, frame.grid).triu(1) <= 0.6).all()  # an object each
