"""That the scripts in `benchmarks/` still fit the library: all import it, and the one that patches a model runs."""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.name.startswith(("bench_", "conftest", "cuda", "gst")))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_what_it_names(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_a_sound_without_a_mask_in_time_is_missed_and_infinitely_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the demo something begins to sound at 3, 5, 10, 12, 15 (until 16), 16, 18 and 19 s."""
    live = importlib.import_module("live")
    monkeypatch.setattr(live, "overlaps", lambda result, mask: result.pts_seconds > 0)

    def waits(*stamps: float, latency_ms: float = 500, played: float = math.inf) -> list[float]:
        results = [
            SimpleNamespace(pts_seconds=at, frame_id=round(25 * at), latency_ms=latency_ms) for at in (0, *stamps)
        ]
        return sorted(live.delays(results, played))

    assert waits() == [math.inf] * 8
    assert waits(3.0, played=6) == [0.5]
    assert waits(2.9, played=6) == [math.inf], "it is of a frame before"
    assert waits(5.6, played=6) == [math.inf], "it comes after more than 3 s"
    assert waits(5.6, played=8) == [pytest.approx(1.1), math.inf]
    assert waits(16.4, 16.6)[:3] == [pytest.approx(0.9), pytest.approx(1.9), math.inf]
    assert waits(16.6)[:2] == [pytest.approx(1.1), math.inf], "it comes more than 1 s after the end of the one at 15 s"
    assert waits(9.9, played=5.9) == [], "it may still come"
    assert waits(9.9, played=6.0) == [math.inf]
    of_found = "onset_to_mask_p50_s_of_found", "onset_to_mask_p95_s_of_found"
    seen = live.onsets(waits(3.0))
    assert (seen["onsets_total"], seen["onsets_missed"]) == (8, 7)
    assert seen["onset_to_mask_p95_s"] == "missed"
    assert [seen[name] for name in of_found] == [0.5, 0.5], "of the one that was found"
    in_time = live.onsets([0.5, 1.5, 1.0])
    assert in_time["onsets_missed"] == 0
    assert (in_time["onset_to_mask_p95_s"], *(in_time[name] for name in of_found)) == (1.5, 1.0, 1.5)
    assert live.onsets([])["onset_to_mask_p95_s"] is None


def test_delays_count_what_is_heard_and_what_never_comes() -> None:
    """Three sounds shown at once, one step late and never; a step takes 0.1 or 0.3 s."""
    online = importlib.import_module("online_results")
    found = online.wait_seconds([0, 1, -1], [0.1, 0.3])
    assert found == {"count": 3, "never": 1, "p50 s": 2.3, "p95 s": "never"}
    assert online.wait_seconds([0, 0, 0], [0.1])["p95 s"] == 1.1
    assert online.wait_seconds([], [0.1])["p50 s"] is None


def test_online_is_compared_with_offline() -> None:
    online = importlib.import_module("online_results")
    row = {"FA": 40.0, "FAn": None, "HOTA": 50.0, "AP_all": 20.0, "IDSW": 3}
    rows = online.against_offline({"offline": row, "parity": row | {"FA": 39.5, "FAn": 80.0, "AP_all": 21.0}})
    assert rows["parity minus offline"] == {"FA": -0.5, "FAn": None, "HOTA": 0.0, "AP_all": 1.0}
    assert rows["offline"] == row


@pytest.mark.parametrize("generator", [False, True])
def test_a_clip_of_one_frame(generator: bool) -> None:
    threads = torch.get_num_threads()
    clip = importlib.import_module("offline_clip")
    options = argparse.Namespace(frames=1, memory_gib=1.0, reference=False, generator=generator)
    try:
        report = clip.run(options)
    finally:
        torch.set_num_threads(threads)
    assert report["instances"] == clip.PAIRS
    assert report["mean_mask_pixels"] > 0
