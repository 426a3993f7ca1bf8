"""What a session measures, as values and as Prometheus text."""

from __future__ import annotations

import json

from avis_stream.stream.stats import SessionStats, Spread, StatsKeeper

S = 1_000_000_000


def test_spreads_and_rates() -> None:
    keeper = StatsKeeper()
    for n in range(1, 1001):
        keeper.time("step", n * 1e5)  # 0.1 to 100 ms
        keeper.moment("frames", n * S // 100)
    spread = keeper.spread("step")
    assert (spread.count, round(spread.p50), round(spread.p95), round(spread.p99), spread.largest) == (
        1000, 50, 95, 99, 100.0,
    )  # fmt: skip
    assert abs(keeper.rate("frames", 10 * S) - 100) < 1
    assert keeper.rate("frames", 20 * S) == 0


def test_memory_is_bounded_and_counts_are_not() -> None:
    keeper = StatsKeeper()
    for n in range(10_000):
        keeper.time("step", float(n))
    assert keeper.spread("step").count == 10_000
    assert len(keeper._values["step"]) == 4096


def stats() -> SessionStats:
    return SessionStats(
        seconds=10.0, frames_in=250, steps=10, refreshes=200, fps_in=25.0, steps_hz=1.0, masks_hz=21.0,
        dropped={"stale": 30, "audio_late": 9}, unread=1, late_sound=2, reconnects=3, waiting=1,
        stages={"step": Spread(10, 50.0, 60.0, 70.0, 80.0)}, latency=Spread(210, 100.0, 200.0, 300.0, 400.0),
        skew_ms=-1.5,
    )  # fmt: skip


def test_prometheus_text() -> None:
    text = stats().as_prometheus('cam "1"\\x')
    lines = text.splitlines()
    assert 'avis_stream_dropped_total{source="cam \\"1\\"\\\\x",cause="stale"} 30' in lines
    assert 'avis_stream_latency_seconds{source="cam \\"1\\"\\\\x",quantile="0.95"} 0.2' in lines
    assert 'avis_stream_latency_seconds_count{source="cam \\"1\\"\\\\x"} 210' in lines
    assert 'avis_stream_stage_seconds{source="cam \\"1\\"\\\\x",stage="step",quantile="0.5"} 0.05' in lines
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert text.endswith("\n")
    samples = [line for line in lines if not line.startswith("#")]
    assert all(line.startswith(tuple(families)) for line in samples)


def test_as_json() -> None:
    record = json.loads(json.dumps(stats().as_json()))
    assert record["dropped"] == {"stale": 30, "audio_late": 9}
    assert record["stages"]["step"]["p95"] == 60.0
    assert stats().dropped_frames == 39
