"""Frame queries linked into objects, and what seconds say about each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avis_stream.config import PostprocessConfig, TrackerConfig
from avis_stream.errors import ConfigError
from avis_stream.models.linking import (
    MASK_GRID,
    Sightings,
    feature_logits,
    likeliest_objects,
    link,
    mask_grids,
    mask_iou,
    sight,
)
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.sounding_chain import MOST, carried, log_odds, smoothed

CLASSES, CHANNELS = 4, 8


def look(number: int) -> Tensor:
    """One of eight looks: sigmoid(17.75) like itself, sigmoid(-2.5) like any other."""
    return 4.5 * torch.eye(CHANNELS)[number] - 0.5


def shows(*objects: tuple[int, int, int]) -> tuple[Sightings, Tensor]:
    """A frame with objects of (look, class, place), place in tens of columns; the frame query's number says nothing."""
    grid = torch.zeros(len(objects), *MASK_GRID, dtype=torch.bool)
    probability = torch.full((len(objects), CLASSES + 1), 0.02)
    for n, (_, class_id, place) in enumerate(objects):
        grid[n, :, 10 * place : 10 * place + 10] = True
        probability[n, class_id] = 0.9
    looks = torch.stack([look(o[0]) for o in objects]) if objects else torch.zeros(0, CHANNELS)
    return Sightings(torch.arange(len(objects)).flip(0), probability, grid), looks


def linked(*frames: tuple[Sightings, Tensor]) -> list[list[int]]:
    return link([frame for frame, _ in frames], [looks for _, looks in frames]).tolist()


def test_look_class_and_place_tell_who_is_who() -> None:
    cat, dog = (0, 0, 1), (1, 1, 5)
    assert linked(shows(cat, dog), shows(dog, cat)) == [[0, 1], [1, 0]]


def test_two_alike_keep_their_places() -> None:
    left, right = (2, 1, 1), (2, 1, 5)
    assert linked(shows(left, right), shows(right, left), shows(left, right)) == [[0, 1, 0], [1, 0, 1]]


def test_one_of_two_alike_is_taken_for_the_nearer() -> None:
    left, right = (2, 1, 1), (2, 1, 5)
    assert linked(shows(left, right), shows(right)) == [[0, -1], [1, 0]]


def test_who_returns_is_the_one_who_left() -> None:
    cat, dog = (0, 0, 1), (1, 1, 5)
    elsewhere = (1, 1, 7)
    assert linked(shows(cat, dog), *[shows(cat)] * 20, shows(elsewhere, cat)) == [[0] * 21 + [1], [1] + [-1] * 20 + [0]]


def test_another_class_with_another_look_is_another_object() -> None:
    assert linked(shows((0, 0, 1)), shows((1, 1, 4))) == [[0, -1], [-1, 0]]


def test_clips_without_any_object() -> None:
    assert linked() == []
    nothing = link([shows()[0], shows()[0]], [shows()[1], shows()[1]])
    assert nothing.shape == (0, 2)
    found = likeliest_objects([shows()[0], shows()[0]], nothing, most=3)
    assert found.number.shape == found.there.shape == (0, 2)
    assert found.probability.shape == (0, CLASSES + 1)


def test_objects_beyond_those_that_can_be_shown_are_not_kept() -> None:
    frames = [shows((0, 0, 1), (1, 1, 5), (2, 2, 7))[0], shows((0, 0, 1), (1, 1, 5))[0]]
    frames[0].probability[1, 1], frames[1].probability[1, 1] = 0.5, 0.6
    place = torch.tensor([[0, 0], [1, 1], [2, -1]])
    every, surest = (likeliest_objects(frames, place, most) for most in (9, 2))
    assert every.probability[:, :3].amax(dim=1).tolist() == pytest.approx([0.9, 0.55, 0.9])
    assert every.number.tolist() == [[2, 1], [1, 0], [0, 0]]  # the frame queries' numbers run backwards here
    assert every.there.tolist() == [[True, True], [True, True], [True, False]]
    assert surest.number.tolist() == [[2, 1], [0, 0]]
    assert torch.equal(surest.probability, every.probability[[0, 2]])


def test_more_frames_change_no_link_before_them() -> None:
    torch.manual_seed(0)
    frames = [
        shows(*[(int(o), int(o) % CLASSES, int(p)) for p, o in enumerate(torch.randperm(8)[:5])]) for _ in range(8)
    ]
    whole = torch.tensor(linked(*frames))
    part = torch.tensor(linked(*frames[:5]))
    assert torch.equal(whole[: len(part), :5], part)
    assert (whole[len(part) :, :5] == -1).all()


def test_sight_leaves_out_the_unlikely_the_empty_and_the_double() -> None:
    sizes = MaskSizes((96, 160), (96, 160), (96, 160))
    features = torch.zeros(3, 24, 40)
    features[0, :, :20], features[0, :, 20:] = 4.0, -4.0  # the left half
    features[1] = -features[0]
    features[2] = -4.0  # nowhere
    logits = torch.tensor([[4.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0], [5.0, 0, 0]])
    embed = torch.eye(3)[[0, 0, 1, 1, 2]]
    seen = sight(logits, embed, features, sizes, PostprocessConfig(score_threshold=0.3, duplicate_iou=0.6))
    # Query 1 draws what 0 draws, 3 is "no object", 4 has no mask.
    assert seen.query.tolist() == [0, 2]
    assert torch.allclose(seen.probability, logits[[0, 2]].softmax(-1))
    assert seen.grid[0, :, :40].all()
    assert not seen.grid[0, :, 40:].any()
    assert torch.equal(seen.grid[1], ~seen.grid[0])
    nobody = torch.tensor([0, 0, 9.0]).expand(5, 3)
    assert not len(sight(nobody, embed, features, sizes, PostprocessConfig()))
    both = sight(logits, embed, features, sizes, PostprocessConfig(score_threshold=0.3))
    assert both.query.tolist() == [0, 2, 1]


def test_grids_leave_the_padding_out() -> None:
    features = torch.full((1, 24, 40), -4.0)
    features[:, :, 20:] = 4.0
    whole, left = MaskSizes((96, 160), (96, 160), (1, 1)), MaskSizes((96, 160), (96, 80), (1, 1))
    assert mask_grids(feature_logits(torch.ones(1, 1), features, whole))[0, :, 41:].all()
    assert not mask_grids(feature_logits(torch.ones(1, 1), features, left)).any()


def test_overlaps() -> None:
    masks = torch.zeros(3, *MASK_GRID, dtype=torch.bool)
    masks[0, :24], masks[1, :48] = True, True
    assert mask_iou(masks, masks).tolist() == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_linked_objects_need_frame_masks() -> None:
    with pytest.raises(ConfigError, match=r'TrackerConfig\.objects.*masks="frame"'):
        TrackerConfig(objects="frame")
    assert TrackerConfig(objects="frame", masks="frame").objects == "frame"


# --- seconds about each other -----------------------------------------------------------------------------------------


def by_hand(evidence: list[float], stay: float) -> list[float]:
    """Chances of sounding, summed over all stories of so many seconds."""
    total, sounding = 0.0, [0.0] * len(evidence)
    for story in range(2 ** len(evidence)):
        states = [story >> t & 1 for t in range(len(evidence))]
        chance = 1.0
        for t, state in enumerate(states):
            chance *= math.exp(evidence[t]) if state else 1.0
            if t:
                chance *= stay if state == states[t - 1] else 1 - stay
        total += chance
        for t, state in enumerate(states):
            sounding[t] += chance * state
    return [one / total for one in sounding]


def test_smoothing_is_the_sum_over_all_stories() -> None:
    evidence = [[2.0, -1.0, 0.5, 3.0, -2.0], [0.0, 0.0, 4.0, 0.0, 0.0]]
    found = smoothed(torch.tensor(evidence, dtype=torch.float64), 0.8)
    assert torch.allclose(found, torch.tensor([by_hand(e, 0.8) for e in evidence], dtype=torch.float64), atol=1e-9)


def test_filtering_is_smoothing_of_the_past() -> None:
    evidence, odds = [1.0, -2.0, 0.3, 0.7], torch.zeros(1, dtype=torch.float64)
    for t, said in enumerate(evidence):
        odds = carried(odds, 0.8) + said
        assert float(odds.sigmoid()) == pytest.approx(by_hand(evidence[: t + 1], 0.8)[-1], abs=1e-9)


def test_half_a_chance_says_nothing() -> None:
    chance = torch.tensor([[0.1, 0.9, 0.4]])
    assert torch.allclose(smoothed(log_odds(chance), 0.5), chance, atol=1e-6)


def test_time_wears_belief_down() -> None:
    odds = torch.tensor([3.0])
    assert torch.allclose(carried(odds, 0.9, 2), carried(carried(odds, 0.9), 0.9))
    assert carried(odds, 0.9, 0).item() == pytest.approx(3.0, abs=1e-5)
    assert abs(carried(odds, 0.9, 60).item()) < 1e-3
    assert log_odds(torch.tensor([0.0, 1.0])).tolist() == [-MOST, MOST]


@pytest.mark.parametrize("stay", [0.4, 1.0])
def test_stay_is_a_chance(stay: float) -> None:
    with pytest.raises(ConfigError, match="sounding_stay"):
        PostprocessConfig(sounding_stay=stay)
