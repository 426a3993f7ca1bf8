"""The options that AVISM does not have: queries from peaks, the sounding head, the motion cue, presence over a clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from avis_stream.config import AVISMConfig, LocalizerConfig, PostprocessConfig
from avis_stream.config_text import with_overrides
from avis_stream.data import rle
from avis_stream.data.rle import intersections
from avis_stream.errors import ConfigError, MediaError, ShapeError
from avis_stream.models.avism import AVISM
from avis_stream.models.literal import LiteralAVISM
from avis_stream.models.peaks import PeakQueries
from avis_stream.models.postprocess import MaskSizes, find_instances, select_candidates
from avis_stream.models.sounding import Motion, SoundingHead, motion_between
from avis_stream.models.tracker import likeliest, presence_of, same_object
from avis_stream.presets import preset
from avis_stream.types import AVPair, VideoFrame
from avis_stream.weights.load import unfolded_model

SMALL = [
    "channels=32", "mask_channels=16", "input.short_side_px=64", "input.clip_short_side_px=none",
    "pixel_decoder.layers=1", "pixel_decoder.heads=4",
    "localizer.queries=6", "localizer.layers=2", "localizer.heads=4", "localizer.ffn_channels=32",
    "tracker.queries=5", "tracker.heads=4", "tracker.ffn_channels=32", "tracker.encoder_layers=2",
    "tracker.decoder_layers=2", "tracker.token_window=2",
]  # fmt: skip


def small(*settings: str) -> AVISMConfig:
    return preset("avism_mini").with_overrides([*SMALL, *settings])


def model_of(config: AVISMConfig) -> AVISM:
    torch.manual_seed(0)
    return unfolded_model(config, None, "").prepare_for_inference()


def clip(frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (frames, 3, 64, 96), dtype=torch.uint8, generator=generator)
    return images, torch.rand(frames * 16_000, generator=generator) - 0.5


def test_a_deaf_model_says_the_same_whatever_is_heard() -> None:
    model = model_of(small("audio.encoder=deaf"))
    images, sound = clip(2)
    quiet, loud = (model.segment(images, wave) for wave in (torch.zeros_like(sound), sound))
    assert torch.equal(quiet.score, loud.score)
    assert not model.hear(sound.view(2, -1)[:, :16_000]).any()


def test_pairs_give_what_their_frames_and_sound_give() -> None:
    images, sound = clip(3)
    seconds, before = sound.view(3, -1), images.flip(0)
    model = model_of(small("postprocess.score_threshold=0", "postprocess.presence_threshold=0"))
    pairs = [
        AVPair(frame=VideoFrame(image=i, pts_ns=t, frame_id=t, previous=p if t else None), audio=s)
        for t, (i, s, p) in enumerate(zip(images, seconds, before, strict=True))
    ]
    before[0] = images[0]  # without an earlier picture nothing moved
    alone, paired = model.segment(images, sound, previous=before), model.segment_pairs(iter(pairs))
    assert len(alone)
    assert torch.equal(alone.score, paired.score)
    assert torch.equal(alone.masks(2), paired.masks(2))


def test_a_clip_that_is_none_is_refused_in_so_many_words() -> None:
    model = model_of(small())
    images, sound = clip(1)
    with pytest.raises(ShapeError, match="audio must be finite, got 1 NaN"):
        model.segment(images, sound.where(sound < sound.max(), torch.nan))
    with pytest.raises(MediaError, match="at least one frame"):
        model.segment_pairs([])
    for rate in (16_000, 44_100):
        with pytest.raises(MediaError, match="at least one frame"):
            model.segment(images[:0], sound, rate)
    with pytest.raises(ShapeError, match="at least a pixel, got 0x"):
        model.segment(images[:, :, :0], sound)


def test_what_is_seen_does_not_depend_on_what_is_heard() -> None:
    """With `fusion_hears` off the sounding score alone listens; on, everything does."""
    generator = torch.Generator().manual_seed(3)
    images, sound = torch.randn(2, 3, 64, 96, generator=generator), torch.rand(2, 1024, generator=generator)
    for hears in (False, True):
        model = model_of(small(f"localizer.fusion_hears={hears}".lower()))
        with torch.no_grad():
            one, other = model.localize(images, sound), model.localize(images, 2 * sound.flip(0))
        for name in ("frame_queries", "logits", "mask_embed"):
            assert torch.equal(getattr(one, name), getattr(other, name)) is not hears
        assert not torch.equal(one.sounding, other.sounding)  # type: ignore[arg-type]


def test_something_must_listen() -> None:
    with pytest.raises(ConfigError, match=r"LocalizerConfig\.fusion_hears.*nothing else would listen"):
        LocalizerConfig(fusion_hears=False)


def test_queries_stand_on_the_best_peaks_first() -> None:
    peaks = PeakQueries(channels=32, queries=4, classes=3)
    peaks.conv, peaks.position_proj = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        peaks.centre.weight.zero_()
        peaks.centre.weight[range(3), range(3)] = 1.0
        peaks.centre.bias.fill_(-6.0)  # type: ignore[union-attr]
    features = torch.zeros(1, 32, 5, 7)
    features[0, 1, 2, 3], features[0, 1, 2, 4] = 8.0, 7.0  # a peak and its slope, second by value
    features[0, 0, 4, 6], features[0, 2, 0, 0] = 5.0, 4.0
    places = torch.arange(35.0)[:, None].expand(-1, 32)
    first = peaks(features, places)
    assert first.centres[0, 1, 2, 3] == 2.0
    found = first.embed[0, :, 0].tolist()
    assert found[:3] == [2 * 7 + 3, 4 * 7 + 6, 0]
    assert 2 * 7 + 4 not in found


def test_a_frame_of_fewer_places_than_queries_still_decodes() -> None:
    peaks = PeakQueries(channels=32, queries=24, classes=3)
    first = peaks(torch.randn(2, 32, 2, 3), torch.randn(6, 32))
    assert first.centres is not None
    assert first.centres.shape == (2, 3, 2, 3)
    assert first.embed.shape == first.state.shape == (2, 6, 32)
    assert first.begin.shape == (2, 6, 2)


def test_motion_is_nothing_where_nothing_moves() -> None:
    picture = torch.randn(2, 3, 64, 96)
    assert not motion_between(picture, picture).any()
    moved = picture.clone()
    moved[0, :, 8:16, 16:24] += 1
    change = motion_between(moved, picture)
    assert change.shape == (2, 1, 8, 12)
    assert change[0, 0, 1, 2] == pytest.approx(2.0, rel=1e-5)
    assert change.sum() == pytest.approx(2.0, rel=1e-5)


def test_the_cue_begins_without_a_say_and_learns_to_have_one() -> None:
    torch.manual_seed(0)
    head = SoundingHead(16, 12, 4, motion_cue=True).eval()
    queries, logits, embed = torch.randn(2, 3, 16), torch.randn(2, 3, 5), torch.randn(2, 3, 8)
    heard = head.listen(torch.randn(2, 12))
    motion = Motion(torch.rand(2, 1, 4, 6), torch.randn(2, 8, 4, 6))
    without = head(queries, logits, embed, heard, None)
    assert torch.equal(head(queries, logits, embed, heard, motion), without)
    head(queries, logits, embed, heard, motion).sum().backward()
    assert head.cue is not None
    assert head.cue[-1].weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_the_one_that_moves_has_the_larger_lead() -> None:
    """Two objects of one class side by side; the left one moves."""
    from avis_stream.models.sounding import _evidence

    guide = torch.zeros(1, 2, 4, 8)
    guide[0, 0, :, :4], guide[0, 1, :, 4:] = 1.0, 1.0
    embed = 20 * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    change = torch.zeros(1, 1, 4, 8)
    change[..., :4] = 0.5
    classes = torch.tensor([[[0.9, 0.1], [0.9, 0.1]]])
    own, background, theirs, rivals, lead, _ = _evidence(
        classes, embed, Motion(change, guide), torch.zeros(1, 2)
    ).unbind(-1)
    assert own[0, 0] > 1.5 > 0.1 > own[0, 1]
    assert theirs[0, 1] > 1.0 > 0.1 > theirs[0, 0]
    assert lead[0, 0] > 1.0
    assert lead[0, 1] < -1.0
    assert background.abs().max() < 0.05
    assert (rivals > 0.7).all()


def test_a_sounding_head_can_be_had_without_a_cue_and_not_the_other_way_round() -> None:
    assert model_of(small("localizer.motion_cue=false")).wants_previous is False
    with pytest.raises(ConfigError, match=r"motion_cue must be False without sounding_head"):
        LocalizerConfig(motion_cue=True)


def test_previous_pictures_change_the_sounding_alone() -> None:
    model = model_of(small())
    assert model.localizer.sounding is not None
    assert model.localizer.sounding.cue is not None
    torch.nn.init.ones_(model.localizer.sounding.cue[-1].weight)  # type: ignore[arg-type]
    images, audio = clip(2)
    features = model.hear(audio.view(2, -1))
    from avis_stream.models.preprocess import normalise_and_pad

    pictures = normalise_and_pad(images, model.config.input)
    still = model.localize(pictures, features, pictures)
    moved = model.localize(pictures, features, pictures.roll(3, -1))
    without = model.localize(pictures, features)
    assert torch.equal(still.frame_queries, moved.frame_queries)
    assert torch.equal(still.logits, moved.logits)
    assert still.sounding is not None
    assert moved.sounding is not None
    assert not torch.equal(still.sounding, moved.sounding)
    assert without.sounding is not None
    assert ((without.sounding >= 0) & (without.sounding <= 1)).all()


def test_presence_is_that_of_the_likeliest_same_query() -> None:
    model = model_of(small())
    torch.manual_seed(3)
    tokens, similarity = torch.randn(1, 4, 6, 32), torch.randn(1, 5, 32)
    sounding = torch.rand(1, 4, 6)
    embedded = model.tracker.similarity_of_frames(tokens)
    found = presence_of(same_object(similarity, embedded), sounding)
    for m in range(5):
        for t in range(4):
            each = (embedded[0, t] @ similarity[0, m]).sigmoid() * sounding[0, t]
            assert found[0, m, t] == pytest.approx(each.max().item(), abs=1e-6)


def test_masks_are_drawn_only_where_the_object_sounds() -> None:
    torch.manual_seed(0)
    logits = torch.full((3, 3), -4.0)
    logits[0, 0] = logits[1, 1] = logits[2, 1] = 4.0
    features = torch.randn(4, 8, 6, 10)
    embed = torch.randn(3, 8)
    presence = torch.tensor([[0.9, 0.1, 0.9, 0.2], [0.1, 0.2, 0.3, 0.1], [0.6, 0.6, 0.6, 0.6]])
    sizes, config = MaskSizes((24, 40), (22, 40), (33, 60)), PostprocessConfig(score_threshold=0.05)
    everywhere = find_instances(logits, embed, [(0, features)], sizes, config)
    found = find_instances(logits, embed, [(0, features[:3]), (3, features[3:])], sizes, config, presence)
    assert sorted(everywhere.query_id.tolist()) == [0, 1, 2]
    assert sorted(found.query_id.tolist()) == [0, 2]
    for track, query, chances in zip(found.rles, found.query_id.tolist(), found.presence, strict=True):  # type: ignore[arg-type]
        same = everywhere.rles[everywhere.query_id.tolist().index(query)]
        assert torch.equal(chances, presence[query])
        for t in range(4):
            assert track[t] == same[t] if presence[query, t] > 0.5 else not rle.decode(track[t]).any()


def test_an_object_may_be_drawn_by_its_frame_queries() -> None:
    """Two frames, three frame queries: the tracker says that its first query is number 2, then number 0."""
    model = model_of(small())
    tracker, channels = model.tracker, model.config.channels
    tokens = torch.randn(1, 2, 3, channels, generator=torch.Generator().manual_seed(3))
    looks = tracker.similarity_of_frames(tokens)[0]
    similarity = torch.stack([looks[0, 2] + looks[1, 0], -looks.sum((0, 1))])[None]
    number, same = likeliest(same_object(similarity, looks[None]))
    chances = torch.einsum("mc,tnc->mtn", similarity[0], looks).sigmoid()
    assert torch.equal(number[0], chances.argmax(-1))
    torch.testing.assert_close(same[0], chances.amax(-1))

    features = torch.randn(2, 8, 6, 10)
    embed = torch.randn(1, 2, 8)
    sizes, config = MaskSizes((24, 40), (22, 40), (33, 60)), PostprocessConfig(score_threshold=0.0)
    logits = torch.tensor([[5.0, 0.0]])
    whole = find_instances(logits, embed, [(0, features)], sizes, config)
    for t in range(2):
        alone = find_instances(logits, embed[:, t], [(0, features[t : t + 1])], sizes, config)
        assert whole.rles[0][t] == alone.rles[0][0]
    there = torch.tensor([[True, False]])
    found = find_instances(logits, embed, [(0, features)], sizes, config, there=there)
    assert found.rles[0][0] == whole.rles[0][0]
    assert not rle.area(found.rles[0][1])


def test_of_two_instances_in_one_place_the_better_stays() -> None:
    """Three queries: the second draws what the first draws, the third something else; the second is the surer."""
    torch.manual_seed(0)
    logits = torch.full((3, 3), -4.0)
    logits[0, 0], logits[1, 1], logits[2, 1] = 3.0, 5.0, 4.0
    features, own = torch.randn(4, 8, 6, 10), torch.randn(2, 8)
    embed = torch.stack([own[0], own[0] * 1.01, own[1]])
    sizes, config = MaskSizes((24, 40), (22, 40), (33, 60)), PostprocessConfig(score_threshold=0.05)
    both = find_instances(logits, embed, [(0, features)], sizes, config)
    one = find_instances(logits, embed, [(0, features)], sizes, replace(config, duplicate_iou=0.8, one_class=True))
    assert sorted(both.query_id.tolist()) == [0, 1, 2]
    assert sorted(one.query_id.tolist()) == [1, 2]
    assert [both.rles[both.query_id.tolist().index(q)] for q in one.query_id.tolist()] == list(one.rles)


def test_an_object_that_may_be_of_two_classes_is_no_double_of_itself() -> None:
    """One query of two likely classes, and a fainter one that draws the same: each class keeps its best."""
    torch.manual_seed(0)
    logits = torch.tensor([[3.0, 2.5, -4.0], [2.0, -4.0, 2.0]])
    features, own = torch.randn(1, 8, 6, 10), torch.randn(8)
    sizes = MaskSizes((24, 40), (22, 40), (33, 60))
    config = PostprocessConfig(score_threshold=0.05, duplicate_iou=0.8)
    found = find_instances(logits, torch.stack([own, own]), [(0, features)], sizes, config)
    assert list(zip(found.query_id.tolist(), found.class_id.tolist(), strict=True)) == [(0, 0), (0, 1)]
    alone = find_instances(logits, torch.stack([own, own]), [(0, features)], sizes, replace(config, one_class=True))
    assert list(zip(alone.query_id.tolist(), alone.class_id.tolist(), strict=True)) == [(0, 0)]


def test_intersections_are_counted_pixel_by_pixel() -> None:
    masks = torch.rand(4, 13, 17, generator=torch.Generator().manual_seed(2)) > 0.5
    masks[3] = False
    counted = intersections([rle.encode(mask) for mask in masks])
    assert counted.tolist() == [[float((a & b).sum()) for b in masks] for a in masks]


def test_one_class_a_query_is_an_option() -> None:
    logits = torch.tensor([[2.0, 1.9, -3.0], [0.0, 3.0, -3.0]])
    both = select_candidates(logits, PostprocessConfig())
    one = select_candidates(logits, PostprocessConfig(one_class=True))
    assert list(zip(both.query_id.tolist(), both.class_id.tolist(), strict=True)) == [(1, 1), (0, 0), (0, 1)]
    assert list(zip(one.query_id.tolist(), one.class_id.tolist(), strict=True)) == [(1, 1), (0, 0)]


def test_a_clip_shows_its_chances() -> None:
    # By video queries' masks: whether a random tracker takes any frame query for an object is luck.
    settings = [
        "postprocess.score_threshold=0", "postprocess.presence_threshold=0", "tracker.objects=video",
        "tracker.masks=video",
    ]  # fmt: skip
    images, audio = clip(3)
    result = model_of(small(*settings)).segment(images, audio)
    assert len(result)
    assert result.presence is not None
    assert result.presence.shape == (len(result), 3)
    plain = replace(small(*settings), localizer=LocalizerConfig(queries=6, layers=2, heads=4, ffn_channels=32))
    assert model_of(plain).segment(images, audio).presence is None


def test_the_literal_form_has_no_sounding_head() -> None:
    model = LiteralAVISM(with_overrides(small(), []))
    images, audio = clip(2)
    with pytest.raises(ConfigError, match="no sounding head"):
        model.eval().segment(images, audio)
