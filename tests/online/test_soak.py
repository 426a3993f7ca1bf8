"""P4: memory, step time and state stay flat; the benchmark's own run, short, and long with `-m slow`."""

from __future__ import annotations

import pytest

from benchmarks.online_soak import soak, verdict


def test_memory_stays_flat_over_some_rings() -> None:
    """`soak` itself refuses a state that grows by a byte."""
    run = soak("avism_mini", steps=240, every=8)
    assert run["events"]["born"] > 0
    assert verdict(run)["memory_growth_bytes"] < 8 << 20


@pytest.mark.slow
@pytest.mark.parametrize(("model", "steps"), [("avism_mini", 86_400), ("avism_r50_in", 3_600)])
def test_a_day_and_an_hour(model: str, steps: int) -> None:
    run = soak(model, steps, every=60)
    assert verdict(run)["flat"], verdict(run)
