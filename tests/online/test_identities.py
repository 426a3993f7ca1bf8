"""The identity table by hand-made observations: births, sound, silence, return, death, and who is who (P13, P14)."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from avis_stream.models.linking import MASK_GRID, mask_iou
from avis_stream.online.colours import COLOURS
from avis_stream.online.config import OnlineConfig
from avis_stream.online.identities import IdentityKeeper
from avis_stream.online.identity_table import DORMANT, IdentityTable, Observation
from avis_stream.types import NANOSECONDS, Event

CLASSES, CHANNELS, RING = 4, 8, 36


def look(number: int) -> Tensor:
    """One of eight looks: sigmoid(17.75) like itself, sigmoid(-2.5) like any other."""
    return 4.5 * torch.eye(CHANNELS)[number] - 0.5


def observe(
    *objects: int,
    query: list[int] | None = None,
    score: float = 0.9,
    class_id: int = 1,
    sounds: bool = True,
    looks: list[Tensor] | None = None,
    place: list[int] | None = None,
    colours: list[float] | None = None,
) -> Observation:
    """One frame with the given objects; each has a place of its own unless `place` says otherwise."""
    total = len(objects)
    grid = torch.zeros(total, *MASK_GRID, dtype=torch.bool)
    for n, where in enumerate(objects if place is None else place):
        grid[n, :, 10 * where : 10 * where + 8] = True
    paint = torch.full((total, COLOURS), math.nan)
    if colours is not None:
        paint[:] = torch.tensor(colours)[:, None] / COLOURS**0.5  # so far apart as the numbers are
    probability = torch.full((total, CLASSES), 0.01)
    probability[:, class_id] = score
    return Observation(
        query=torch.tensor(list(objects) if query is None else query, dtype=torch.int64),
        probability=probability,
        similarity=torch.stack(looks if looks is not None else [look(o) for o in objects])
        if total
        else torch.zeros(0, CHANNELS),
        certain=torch.full((total,), 95.0, dtype=torch.float64),
        area=torch.full((total,), 100.0, dtype=torch.float64),
        grid=grid,
        mask_embed=torch.zeros(total, 3),
        evidence=torch.full((total,), math.inf if sounds else -math.inf),
        may_be_born=torch.ones(total, dtype=torch.bool),
        colours=paint,
        token=torch.zeros(total, CHANNELS),
        token_slot=torch.zeros(total, dtype=torch.int64),
    )


class Story:
    """A table and its clock."""

    def __init__(self, **settings: object) -> None:
        self.config = OnlineConfig(**settings)  # type: ignore[arg-type]
        self.keeper = IdentityKeeper(self.config, RING)
        self.table = IdentityTable.empty(self.config, CLASSES, CHANNELS, 3)
        self.seconds = 0
        self.died_slots: tuple[int, ...] = ()

    def see(self, seen: Observation, *, after: int = 1) -> list[Event]:
        self.seconds += after
        outcome = self.keeper.update(self.table, seen, self.seconds * NANOSECONDS)
        self.died_slots = outcome.died_slots
        return list(outcome.events)

    @property
    def live(self) -> list[int]:
        return sorted(self.table.public_id[self.table.live].tolist())


def told(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.track_id) for event in events]


def test_who_is_forgotten_before_he_would_sleep_is_dead() -> None:
    story = Story(forget_s=10.0)
    assert told(story.see(observe(3))) == [("born", 1), ("sounding", 1)]
    assert told(story.see(observe(), after=10)) == [("silent", 1)]
    assert told(story.see(observe())) == [("dead", 1)]


def test_never_is_a_time() -> None:
    ten_years = 10 * 365 * 24 * 3600
    story = Story(forget_s=math.inf)
    story.see(observe(3))
    assert told(story.see(observe(), after=ten_years)) == [("silent", 1), ("dormant", 1)]
    assert told(story.see(observe(3), after=ten_years)) == [("returned", 1), ("sounding", 1)]
    story = Story(forget_s=1e300, dormant_s=math.inf)
    story.see(observe(3))
    assert told(story.see(observe(), after=ten_years)) == [("silent", 1)]
    assert story.live == [1]


def test_life_of_an_identity() -> None:
    story = Story(forget_s=100.0)
    assert told(story.see(observe(3))) == [("born", 1), ("sounding", 1)]
    assert told(story.see(observe(3))) == []
    assert told(story.see(observe())) == [("silent", 1)]
    assert story.live == [1]
    events = story.see(observe(3), after=4)
    assert told(events) == [("sounding", 1)]
    assert events[0].gap_seconds == 5.0
    assert told(story.see(observe(), after=35)) == [("silent", 1)]
    assert told(story.see(observe())) == [("dormant", 1)]
    assert story.live == []
    events = story.see(observe(3), after=10)
    assert told(events) == [("returned", 1), ("sounding", 1)]
    assert events[0].gap_seconds == 46.0
    assert told(story.see(observe(), after=36)) == [("silent", 1), ("dormant", 1)]
    assert told(story.see(observe(), after=64)) == []
    assert told(story.see(observe())) == [("dead", 1)]
    assert story.died_slots == (3,)
    assert told(story.see(observe(3))) == [("born", 2), ("sounding", 2)]  # no id is used again


def test_identity_is_not_the_query() -> None:
    story = Story()
    story.see(observe(0, 1))
    assert told(story.see(observe(0, 1, query=[1, 0]))) == []
    assert story.table.slot[story.table.row_of(1)] == 1


def test_two_alike_keep_their_places() -> None:
    """Two objects with one look: live, place and query tell them apart."""
    story = Story()
    twin = [look(2), look(2)]
    story.see(observe(0, 1, looks=twin))
    assert told(story.see(observe(0, 1, looks=twin))) == []
    rows = [story.table.row_of(1), story.table.row_of(2)]
    assert story.table.slot[rows].tolist() == [0, 1]


def test_dormant_twin_does_not_return() -> None:
    """With two identities as similar, neither is surely the one: rather a new id than a wrong one."""
    story = Story()
    story.see(observe(0, 1, looks=[look(2), look(2)]))
    story.see(observe(), after=40)
    assert told(story.see(observe(5, looks=[look(2)]))) == [("born", 3), ("sounding", 3)]


@pytest.mark.parametrize(("similarity", "returns"), [(0.55, False), (0.65, True)])
def test_dormant_must_be_more_alike_than_live(similarity: float, returns: bool) -> None:
    dot = torch.tensor(similarity).logit()
    weaker = look(0) * dot / (look(0) @ look(0))
    for gap, expected in ((1, True), (40, returns)):
        story = Story()
        story.see(observe(0))
        story.see(observe(), after=gap)
        events = story.see(observe(0, looks=[weaker], query=[5], place=[4]))
        assert (("born", 2) not in told(events)) == expected


def test_same_query_is_enough_at_half_the_similarity() -> None:
    weaker = look(0) * torch.tensor(0.3).logit() / (look(0) @ look(0))
    for query, expected in ((0, []), (5, [("silent", 1), ("born", 2), ("sounding", 2)])):
        story = Story()
        story.see(observe(0))
        assert told(story.see(observe(0, looks=[weaker], query=[query]))) == expected


def test_gap_announced_by_the_source() -> None:
    """After a gap a look-alike in the same place and query is no proof: only a clear look returns."""
    weaker = look(0) * torch.tensor(0.55).logit() / (look(0) @ look(0))
    story = Story()
    story.see(observe(0))
    assert told(list(story.keeper.interrupt(story.table))) == [("silent", 1), ("dormant", 1)]
    assert told(story.see(observe(0, looks=[weaker]))) == [("born", 2), ("sounding", 2)]
    story = Story()
    story.see(observe(0))
    story.keeper.interrupt(story.table)
    assert told(story.see(observe(0))) == [("returned", 1), ("sounding", 1)]


def test_a_gap_makes_the_silent_dormant_too() -> None:
    """Those that sounded are told to be silent first; those that were dormant before are not told again."""
    story = Story()
    story.see(observe(0))
    story.see(observe(), after=40)
    story.see(observe(1, 2))
    story.see(observe(2))
    gap = [("silent", 3), ("dormant", 2), ("dormant", 3)]
    assert told(list(story.keeper.interrupt(story.table))) == gap
    assert story.live == []
    assert told(list(story.keeper.interrupt(story.table))) == []


def test_jump_of_the_clock_counts_as_absence() -> None:
    story = Story()
    story.see(observe(0))
    assert told(story.see(observe(0), after=50)) == [
        ("silent", 1), ("dormant", 1), ("returned", 1), ("sounding", 1)
    ]  # fmt: skip


def test_birth_takes_as_many_steps_as_configured() -> None:
    story = Story(birth_hits=3)
    assert told(story.see(observe(0))) == []
    assert told(story.see(observe(0))) == []
    assert story.live == []
    assert told(story.see(observe(0))) == [("born", 1), ("sounding", 1)]
    assert told(story.see(observe(0, 1))) == []
    assert told(story.see(observe(0))) == []  # object 1 flickered and was never heard of
    assert told(story.see(observe(0, 1))) == []
    assert story.table.next_id == 2


@pytest.mark.parametrize(("score", "born"), [(0.33, True), (0.3, False)])
def test_birth_needs_the_released_threshold(score: float, born: bool) -> None:
    assert bool(Story().see(observe(0, score=score))) == born  # times a mask quality of 0.95


def test_silent_object_is_born_and_heard_later() -> None:
    story = Story()
    assert told(story.see(observe(0, sounds=False))) == [("born", 1)]
    assert told(story.see(observe(0))) == [("sounding", 1)]
    assert told(story.see(observe(0, sounds=False))) == [("silent", 1)]
    assert told(story.see(observe(0, sounds=False), after=30)) == []
    assert told(story.see(observe(0, sounds=False), after=30)) == []  # in view, so never dormant
    assert story.live == [1]


def test_class_is_that_of_most_steps() -> None:
    for stable, expected in ((True, 1), (False, 2)):
        story = Story(stable_class=stable)
        for class_id in (1, 1, 1, 2):
            story.see(observe(0, class_id=class_id))
        assert story.table.class_id[story.table.row_of(1)] == expected


def test_score_is_that_of_the_step_times_the_quality_so_far() -> None:
    story = Story()
    story.see(observe(0, score=0.9))
    seen = observe(0, score=0.5)
    story.see(Observation(**{f.name: getattr(seen, f.name) for f in fields(seen)} | {"certain": 0.75 * seen.area}))
    assert float(story.table.score[story.table.row_of(1)]) == pytest.approx(0.5 * (95 + 75) / 200)


def test_prototypes_learn_new_looks() -> None:
    """An object that turns slowly away from its first look keeps its id, and returns by either look."""
    story = Story()
    for angle in torch.linspace(0, torch.pi / 2, 12):
        story.see(observe(0, looks=[look(0) * angle.cos() + look(1) * angle.sin()]))
    assert story.table.next_id == 2
    assert int((story.table.weight[story.table.row_of(1)] > 0).sum()) >= 2
    for number in (0, 1):
        story.see(observe(), after=50)
        assert ("returned", 1) in told(story.see(observe(6, looks=[look(number)])))


def test_full_table_forgets_the_dormant_one_longest_unheard() -> None:
    story = Story(max_identities=3)
    story.see(observe(0))
    story.see(observe(1))
    story.see(observe(), after=40)
    story.see(observe(2))
    events = told(story.see(observe(2, 3)))
    assert events == [("dead", 1), ("born", 4), ("sounding", 4)]
    story.see(observe(2, 3, 4))
    assert story.table.next_id == 6
    (full,) = story.see(observe(2, 3, 4, 5, 6))  # all live: no room
    assert (full.kind, full.track_id, full.detail) == ("full", None, "2 without a place")
    assert story.live == [3, 4, 5]
    assert told(story.see(observe(2, 3, 4))) == []


def test_in_a_full_table_the_best_of_a_step_are_born() -> None:
    """Observations come best first: those after them find no room, and take none from those before."""
    story = Story(max_identities=2, birth_hits=2)
    (full,) = story.see(observe(3, 1, 2))
    assert full.detail == "1 without a place"
    kinds = [event.kind for event in story.see(observe(3, 1, 2))]
    assert kinds == ["born", "born", "sounding", "sounding", "full"]
    assert sorted(story.table.similarity[story.table.live].argmax(-1).tolist()) == [1, 3]


def test_in_a_full_table_whoever_waits_for_its_birth_is_born() -> None:
    """Two that sound together do not take the one place from each other for ever."""
    story = Story(max_identities=1, birth_hits=3)
    story.see(observe(0))
    assert told(story.see(observe(0, 1))) == [("full", None)]
    assert told(story.see(observe(0, 1))) == [("born", 1), ("sounding", 1), ("full", None)]
    assert story.table.similarity[story.table.row_of(1)].argmax() == 0


def test_in_a_full_table_the_dormant_go_for_the_tentative() -> None:
    story = Story(max_identities=1, birth_hits=2)
    story.see(observe(0))
    story.see(observe(0))
    story.see(observe(), after=40)
    assert told(story.see(observe(1, 2))) == [("dead", 1), ("full", None)]
    assert told(story.see(observe(1, 2))) == [("born", 2), ("sounding", 2), ("full", None)]


def test_pinned_identity_never_dies() -> None:
    story = Story(max_identities=1, forget_s=50.0)
    story.see(observe(0))
    story.table.anchor[0] = 0
    story.see(observe(), after=40)
    assert told(story.see(observe(1), after=1000)) == [("full", None)]
    assert int(story.table.status[0]) == DORMANT
    assert ("returned", 1) in told(story.see(observe(0)))


def random_observation(generator: torch.Generator, crowd: int) -> Observation:
    """Some of eight objects, each seen as itself with noise, in any query; sometimes several times the same."""
    total = int(torch.randint(0, crowd, (1,), generator=generator))
    objects = torch.randint(0, CHANNELS, (total,), generator=generator).tolist()
    noise = 0.8 * torch.randn(total, CHANNELS, generator=generator)
    queries = torch.randperm(20, generator=generator)[:total].tolist()
    looks = [look(o) + own for o, own in zip(objects, noise, strict=True)]
    return observe(*objects, query=queries, looks=looks, score=0.5 + 0.5 * float(torch.rand(1, generator=generator)))


@pytest.mark.parametrize("seed", range(5))
def test_no_id_comes_twice(seed: int) -> None:
    """P14: on random streams no id is given again after its end, and none stands for two rows."""
    generator = torch.Generator().manual_seed(seed)
    story = Story(max_identities=6, forget_s=20.0, dormant_s=6.0, birth_hits=1 + seed % 2)
    born: set[int] = set()
    dead: set[int] = set()
    for _ in range(300):
        pause = 1 if torch.rand(1, generator=generator) < 0.9 else int(torch.randint(1, 30, (1,), generator=generator))
        for event in story.see(random_observation(generator, 6), after=pause):
            if event.kind == "full":
                continue  # of nobody
            assert event.track_id is not None
            if event.kind == "born":
                assert event.track_id not in born
                born.add(event.track_id)
            assert event.track_id in born - dead
            if event.kind == "dead":
                dead.add(event.track_id)
        ids = story.table.public_id[story.table.public_id > 0].tolist()
        assert len(ids) == len(set(ids))
        assert set(ids) == born - dead
    assert dead


@pytest.mark.parametrize("seed", range(5))
def test_rows_have_no_order(seed: int) -> None:
    """P13: with the rows shuffled before each step, ids, events and scores are the same."""
    generator = torch.Generator().manual_seed(seed)
    plain, shuffled = (Story(max_identities=8, forget_s=40.0, dormant_s=10.0) for _ in range(2))
    told_in_all = 0
    for _ in range(150):
        order = torch.randperm(8, generator=generator)
        for field in fields(shuffled.table):
            if isinstance(values := getattr(shuffled.table, field.name), Tensor):
                setattr(shuffled.table, field.name, values[order].clone())
        seen = random_observation(generator, 5)
        expected, got = plain.see(seen), shuffled.see(seen)
        assert got == expected
        told_in_all += len(got)
        ours, theirs = plain.table, shuffled.table
        assert ours.public_id[ours.live].tolist() == theirs.public_id[theirs.live].tolist()
        torch.testing.assert_close(ours.score[ours.live], theirs.score[theirs.live])
    assert told_in_all > 50


def test_overlap_of_masks() -> None:
    grid = torch.zeros(3, 2, 4, dtype=torch.bool)
    grid[0, :, :2] = grid[1, :, 1:3] = True
    expected = torch.tensor([[1.0, 1 / 3, 0.0], [1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(mask_iou(grid, grid), expected)


def test_who_was_away_is_known_by_colours() -> None:
    """Whatever its look in the model's space, and in another place."""
    story = Story()
    story.see(observe(0, colours=[0.0]))
    story.see(observe(), after=40)
    events = story.see(observe(6, looks=[look(5)], colours=[0.35]))
    assert told(events) == [("returned", 1), ("sounding", 1)]


@pytest.mark.parametrize(
    ("colours", "class_id", "event"),
    [([0.45], 1, ("born", 2)), ([0.1], 2, ("born", 2)), ([0.1], 1, ("returned", 1))],
    ids=["other colours", "another class", "the same"],
)
def test_who_looks_different_must_have_colours_and_class(
    colours: list[float], class_id: int, event: tuple[str, int]
) -> None:
    story = Story()
    story.see(observe(0, colours=[0.0]))
    story.see(observe(), after=40)
    assert told(story.see(observe(6, looks=[look(5)], class_id=class_id, colours=colours)))[0] == event


@pytest.mark.parametrize(("colour", "event"), [(0.75, ("returned", 1)), (0.85, ("born", 2))])
def test_one_look_in_wholly_other_colours_is_somebody_else(colour: float, event: tuple[str, int]) -> None:
    story = Story()
    story.see(observe(0, colours=[0.0]))
    story.see(observe(), after=40)
    assert told(story.see(observe(0, colours=[colour])))[0] == event


def test_of_two_of_the_same_colours_neither_returns() -> None:
    story = Story()
    story.see(observe(0, 1, colours=[0.0, 0.03]))
    story.see(observe(), after=40)
    assert told(story.see(observe(5, looks=[look(5)], colours=[0.01])))[0] == ("born", 3)


def test_colours_tell_two_apart_that_have_one_look() -> None:
    story = Story()
    story.see(observe(0, 1, looks=[look(2), look(2)], colours=[0.0, 0.5]))
    story.see(observe(), after=40)
    story.see(observe(5, 6, looks=[look(2), look(2)], colours=[0.5, 0.0]))
    rows = [story.table.row_of(1), story.table.row_of(2)]
    assert story.table.slot[rows].tolist() == [6, 5]
    assert story.live == [1, 2]


def test_colours_of_the_next_frame_do_not_matter() -> None:
    """From frame to frame place and look decide: a lamp may be switched on."""
    story = Story()
    story.see(observe(0, colours=[0.0]))
    assert told(story.see(observe(0, colours=[0.9]))) == []


def test_a_row_that_is_free_has_no_colours() -> None:
    story = Story(forget_s=50.0)
    story.see(observe(0, colours=[0.0]))
    story.see(observe(), after=40)
    story.see(observe(), after=20)
    assert story.table.colours.isnan().all()


def test_unknown_colours_leave_it_to_looks() -> None:
    story = Story()
    story.see(observe(0))
    story.see(observe(), after=40)
    assert told(story.see(observe(0, colours=[0.0])))[0] == ("returned", 1)
    assert not story.table.colours[story.table.row_of(1)].isnan().any()  # known from now on


def test_a_frame_without_colours_leaves_those_that_are_known() -> None:
    story = Story()
    for colours in ([0.4], None, [0.4]):
        story.see(observe(0, colours=colours))
        assert torch.allclose(story.table.colours[story.table.row_of(1)], observe(0, colours=[0.4]).colours[0])
