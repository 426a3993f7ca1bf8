"""The plans themselves: pure integers."""

from __future__ import annotations

import pytest

from avis_stream.errors import ConfigError
from avis_stream.online.schedule import Geometry, group_start, least_pages, plan_push, windows_of
from avis_stream.ops.ranges import ring_pages, window_plan


@pytest.mark.parametrize("window", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("layer", [0, 1])
def test_groups_are_those_of_the_offline_plan(window: int, layer: int) -> None:
    frames = 4 * window + 1
    edges = window_plan(frames, window, 1, 1, shifted=layer == 1).q_starts
    for frame in range(frames):
        assert group_start(layer, frame, window) == max(edge for edge in edges if edge <= frame)


@pytest.mark.parametrize(("window", "layers"), [(6, 6), (5, 3), (2, 5), (12, 4)])
def test_equal_phases_share_one_plan(window: int, layers: int) -> None:
    """What lets a captured graph a phase serve for ever: shapes and places depend on t mod W alone."""
    geometry = Geometry(window=window, layers=layers, pages=8, slots=3)
    first = 100 * window
    for phase in range(window):
        plans = {id(plan_push(geometry, t, t)) for t in range(first + phase, first + 50 * window, window)}
        assert len(plans) == 1


def test_sizes_are_those_of_the_note() -> None:
    """W = 6, L = 6: 108 frames; at most 24 of them change in a step."""
    geometry = Geometry(window=6, layers=6, pages=6, slots=100)
    assert geometry.capacity == (6, 9, 12, 15, 18, 21, 27)
    changed = [plan.ring[1] - plan.ring[0] for plan in (plan_push(geometry, t, t) for t in range(600, 606))]
    assert changed == [19, 20, 21, 22, 23, 24]
    groups = [sum(len(part.plan) for part in plan_push(geometry, t, t).encoder) for t in range(600, 606)]
    assert max(groups) <= 15


def test_pages_are_those_of_the_ring_in_order_of_time() -> None:
    geometry = Geometry(window=6, layers=2, pages=4, slots=3)
    for t in range(100):
        spans = [stop - start for start, stop in plan_push(geometry, t, t).pages[:4] if stop > start]
        assert spans == [stop - start for start, stop in ring_pages(t + 1, 6, 4, 3)]


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 6])
def test_a_short_ring_is_refused(layers: int) -> None:
    Geometry(window=6, layers=layers, pages=least_pages(layers), slots=1)
    with pytest.raises(ConfigError, match="ring_seconds"):
        Geometry(window=6, layers=layers, pages=least_pages(layers) - 1, slots=1)


def test_chunks_end_with_windows() -> None:
    assert list(windows_of(4, 11, 5)) == [1, 5, 5]
    assert list(windows_of(0, 3, 5)) == [3]
