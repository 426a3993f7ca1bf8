"""The planner against brute force: AVISM's own recipe of padding, rolling and masking, on the level of frames."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from avis_stream.errors import ConfigError
from avis_stream.ops.ranges import AttentionPlan, dense_mask, ring_pages, rolling_plan, window_plan

FRAMES = range(0, 20)
WINDOWS = range(1, 9)


def visible_plain(frames: int, window: int) -> Tensor:
    """By definition: same window of the padded clip."""
    t = torch.arange(frames)
    return t[:, None] // window == t[None] // window


def visible_shifted(frames: int, window: int) -> Tensor:
    """As the official code does it: pad to whole windows, roll by ceil(W / 2), attend within windows, block what the
    roll brought together and what is padding, roll back, crop.
    """
    half = -(-window // 2)
    padded = -(-frames // window) * window
    original = torch.arange(padded).roll(half)  # the frame at each rolled position
    position = torch.arange(padded)
    same_window = position[:, None] // window == position[None] // window
    in_first = (position < window)[:, None] & (position < window)[None]
    crossing = in_first & ((position < half)[:, None] != (position < half)[None])
    visible = same_window & ~crossing
    result = torch.zeros(padded, padded, dtype=torch.bool)
    result[original[:, None], original[None]] = visible
    return result[:frames, :frames]


def expand(visible: Tensor, queries: int, keys: int) -> Tensor:
    return visible.repeat_interleave(queries, 0).repeat_interleave(keys, 1)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_equal_brute_force(window: int, shifted: bool) -> None:
    for frames in FRAMES:
        visible = (visible_shifted if shifted else visible_plain)(frames, window)
        for queries, keys in ((1, 1), (3, 3), (1, 3), (2, 1)):
            plan = window_plan(frames, window, queries, keys, shifted=shifted)
            assert torch.equal(dense_mask(plan, frames * keys), expand(visible, queries, keys)), (frames, queries, keys)


@pytest.mark.parametrize("window", [5, 6])
@pytest.mark.parametrize("frames", [1, 5, 6, 7, 13])
def test_shifted_windows_equal_recorded_mask(golden_windows: dict[str, np.ndarray], window: int, frames: int) -> None:
    slots, heads, half = 3, 4, -(-window // 2)
    mask = golden_windows[f"W{window}.T{frames}.shift_mask_add"]
    mask = mask.reshape(-1, heads, window, slots, window, slots)[:, 0, :, 0, :, 0]  # [windows, W, W] of frames
    padded = len(mask) * window
    original = np.roll(np.arange(padded), half)
    visible = np.zeros((padded, padded), dtype=bool)
    for i, block in enumerate(mask):
        own = original[i * window : (i + 1) * window]
        visible[np.ix_(own, own)] = block == 0
    plan = window_plan(frames, window, 1, 1, shifted=True)
    assert np.array_equal(dense_mask(plan, frames).numpy(), visible[:frames, :frames])
    # What the cut leaves out is padding only: no real frame may have seen a padded one.
    assert not visible[:frames, frames:].any()


def test_window_zero_is_global() -> None:
    assert window_plan(4, 0, 2, 3) == AttentionPlan((0, 8), (((0, 12),),))


@pytest.mark.parametrize("window", WINDOWS)
def test_rolling_equals_brute_force(window: int) -> None:
    for frames in FRAMES:
        t = torch.arange(frames)
        causal = (t[None] <= t[:, None]) & (t[None] > t[:, None] - window)
        for sinks in range(5):
            visible = causal | ((t < sinks)[None] & (t[None] <= t[:, None]))
            for queries, keys in ((1, 1), (2, 3)):
                plan = rolling_plan(frames, window, queries, keys, sink_frames=sinks)
                assert torch.equal(dense_mask(plan, frames * keys), expand(visible, queries, keys)), (frames, sinks)


def test_ranges_of_a_group_are_disjoint_and_merged() -> None:
    for frames in FRAMES:
        for sinks in range(4):
            for ranges in rolling_plan(frames, 3, 1, 1, sink_frames=sinks).k_ranges:
                used = sorted(r for r in ranges if r != (0, 0))
                assert all(a[1] < b[0] for a, b in itertools.pairwise(used)), "touching ranges are merged"


@pytest.mark.parametrize("page", [1, 2, 3, 5])
@pytest.mark.parametrize("pages", [1, 2, 3])
def test_ring_pages_equal_a_simulated_ring(page: int, pages: int) -> None:
    ring = [-1] * (page * pages)
    written: list[int] = []
    assert ring_pages(0, page, pages, 4) == ()
    for t in range(40):
        slot = t % len(ring)
        if t % page == 0:  # a new page begins: what was in its slot is gone
            for i in range(slot, slot + page):
                ring[i] = -1
        ring[slot] = t
        written.append(t)
        alive = [frame for frame in written if frame in ring]
        ranges = ring_pages(t + 1, page, pages, 1)
        assert [frame for a, b in ranges for frame in ring[a:b]] == alive
        assert ring_pages(t + 1, page, pages, 4) == tuple((4 * a, 4 * b) for a, b in ranges)


def test_split_covers_all_groups() -> None:
    plan = window_plan(13, 3, 2, 2, shifted=True)
    for groups in range(1, 8):
        parts = list(plan.split(groups))
        assert all(len(part) <= groups for _, part in parts)
        whole = torch.zeros(26, 26, dtype=torch.bool)
        for tokens, part in parts:
            whole[tokens, tokens] = dense_mask(part, tokens.stop - tokens.start)
        assert torch.equal(whole, dense_mask(plan, 26))


def test_split_refuses_groups_that_meet() -> None:
    with pytest.raises(ConfigError, match="own tokens"):
        list(rolling_plan(4, 2, 1, 1).split(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window_plan(-1, 5, 1, 1), "frames must be >= 0, got -1"),
        (lambda: window_plan(3, -2, 1, 1), "window must be >= 0, got -2"),
        (lambda: rolling_plan(3, 0, 1, 1), "window must be >= 1, got 0"),
        (lambda: rolling_plan(3, 2, 1, 1, sink_frames=-1), "sink_frames must be >= 0"),
        (lambda: window_plan(3, 2, 0, 1), "queries_per_frame must be >= 1"),
        (lambda: ring_pages(3, 2, 0, 1), "pages must be >= 1"),
    ],
)
def test_wrong_numbers_are_named(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]
