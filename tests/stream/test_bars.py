"""Long runs with real servers, by hand: python -m pytest tests/stream/test_bars.py -m slow -s

AVIS_STREAM_SOAK_SECONDS shortens or lengthens them.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from live_tools import RtspServer, StubSegmenter
from small_model import open_config, small_model

from avis_stream.sources.supervisor import SupervisorConfig
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import LiveResult

pytestmark = pytest.mark.slow


def seconds_of(usual: float) -> float:
    return float(os.environ.get("AVIS_STREAM_SOAK_SECONDS", usual))


def resident() -> float:
    """MB of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def run(session: Session, seconds: float) -> tuple[list[float], list[float], list[int]]:
    """Latencies in ms, memory every second, and the numbers of frames with a result."""
    latencies, memory, numbers = [], [], []
    end = time.monotonic() + seconds
    next_look = 0.0
    while time.monotonic() < end:
        result = session.next(1.0)
        if result is not None and result.latency_ms is not None:
            latencies.append(result.latency_ms)
            numbers.append(result.frame_id)
        if time.monotonic() > next_look:
            next_look = time.monotonic() + 1
            memory.append(resident())
    return latencies, memory, numbers


@pytest.mark.parametrize("backend", ["gstreamer", "ffmpeg"])
def test_ten_minutes_with_a_stage_slower_than_the_camera(backend: str) -> None:
    segmenter = StubSegmenter(step_seconds=0.2, refresh_seconds=0.1, keep=False)
    config = SessionConfig(max_latency_ms=500)
    with (
        RtspServer(width=640, height=360) as server,
        Session(segmenter, server.url, config=config, backend=backend) as session,  # type: ignore[arg-type]
    ):
        latencies, memory, numbers = run(session, seconds_of(600))
        stats = session.stats()
    settled = len(memory) // 10 + 5
    growth = np.mean(memory[-settled:]) - np.mean(memory[settled : 2 * settled])
    quarter = len(latencies) // 4
    print(
        f"\n{backend}: {stats.frames_in} frames in, {len(numbers)} results, dropped {dict(stats.dropped)}, latency ms "
        f"p50 {np.percentile(latencies, 50):.0f} p99 {np.percentile(latencies, 99):.0f}, first and last quarter p99 "
        f"{np.percentile(latencies[:quarter], 99):.0f} {np.percentile(latencies[-quarter:], 99):.0f}, "
        f"memory grew by {growth:.1f} MB"
    )
    assert np.percentile(latencies, 99) < 500 + 200
    assert growth < 10
    assert stats.steps + stats.refreshes + stats.dropped_frames + stats.waiting == pytest.approx(stats.frames_in, abs=2)


@pytest.mark.parametrize("backend", ["gstreamer", "ffmpeg"])
def test_ten_kills_and_restarts(backend: str) -> None:
    server, results = RtspServer(), list[LiveResult]()
    patience = SupervisorConfig(longest_wait_seconds=1.0)
    recovered = []

    def until_segment(session: Session, segment: int) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            result = session.next(0.5)
            if result is not None:
                results.append(result)
                if result.segment == segment:
                    return
        raise AssertionError(f"segment {segment} did not come")

    config = SessionConfig(max_latency_ms=60_000)
    with (
        server,
        Session(StubSegmenter(keep=False), server.url, config=config, supervision=patience, backend=backend) as session,
    ):  # type: ignore[arg-type]
        until_segment(session, 0)
        for n in range(10):
            server.kill()
            time.sleep(5)
            server.start()
            begin = time.monotonic()
            until_segment(session, n + 1)
            recovered.append(time.monotonic() - begin)
        stats = session.stats()
    print(f"\n{backend}: back after {np.median(recovered):.1f} s, at most {max(recovered):.1f} s")
    assert stats.reconnects == 10
    assert all(b.pts_ns > a.pts_ns for a, b in itertools.pairwise(results))
    assert {t for r in results for t in r.track_id.tolist()} == {1}
    assert not [t.name for t in threading.enumerate() if t.name.startswith("avis ")]


def test_forty_minutes_with_a_model() -> None:
    """Nothing grows, sound stays with pictures, and every frame is accounted for."""
    server = RtspServer(width=320, height=180)
    with server, Session(small_model(), server.url, online=open_config()) as session:
        latencies, memory, _ = run(session, seconds_of(2400))
        stats = session.stats()
    settled = len(memory) // 10 + 5
    growth = np.mean(memory[-settled:]) - np.mean(memory[settled : 2 * settled])
    quarter = len(latencies) // 4
    first, last = (np.percentile(part, 95) for part in (latencies[quarter : 2 * quarter], latencies[-quarter:]))
    print(f"\np95 of latency {first:.0f} then {last:.0f} ms, memory grew by {growth:.1f} MB, skew {stats.skew_ms} ms")
    print(json.dumps(stats.as_json()))
    assert growth < 20
    assert abs(stats.skew_ms) < 20
    assert stats.steps + stats.refreshes + stats.dropped_frames + stats.waiting == pytest.approx(stats.frames_in, abs=2)
