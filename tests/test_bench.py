"""What `avis-stream bench` makes of measurements; the measurements are benchmarks' own business."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import avis_stream
from avis_stream.cli import main
from avis_stream.commands import bench
from avis_stream.errors import AvisStreamError

PEAKS = {f"gflop_per_s {kind} {n}": 100.0 * n for kind in ("float32", "bfloat16") for n in (1, 2)}
PEAKS |= {"gb_per_s 1": 10.0, "gb_per_s 2": 15.0}
LATENCY = {"p50": 0.01, "p95": 0.02, "p99": 0.5, "last_third_slower_by": 0.003, "steps": 9}
TIMES = {"ours": 0.001, "sdpa": 0.003, "peak": 0.1}
ROWS = [
    {"what": "attention", "threads": 2, "seconds": TIMES, "flops": 1e8, "bars": {"sdpa": 2.2}, "noisy": True},
    {
        "what": "overhead",
        "threads": 1,
        "seconds": {"ours": 2e-6, "add": 1e-6},
        "flops": None,
        "bars": {},
        "noisy": False,
    },
    {
        "what": "slow",
        "threads": 1,
        "seconds": {"ours": 2.0, "sdpa": 3.0},
        "flops": None,
        "bars": {"sdpa": 2},
        "noisy": False,
    },
    {"what": "step", "threads": 2, "latency": LATENCY},
    {"what": "clip", "threads": 2, "stages": {"localize": 1.5, "all": 2.0}},
]


def test_the_table_says_what_was_measured() -> None:
    report = {"machine": bench.machine(), "peaks": PEAKS, "cut_short": False, "rows": ROWS}
    text = bench.table(report)
    assert "| attention | 2 | 1 ms | sdpa 3 ms, **3.00x** (bar 2.2, met) (noisy) | 100 GFLOP/s, 50 % |" in text
    assert "| overhead | 1 | 2 us | add 1 us, **0.50x** |  |" in text
    assert "sdpa 3 s, **1.50x** (bar 2, missed)" in text
    assert "| step, 9 steps | 2 | 10 ms | 20 ms | 500 ms | +0.3% |" in text
    assert "| clip | 2 | 2 s | localize 1.5 s |" in text
    assert "| 2 | 200 GFLOP/s | 200 GFLOP/s | 15.0 GB/s |" in text
    assert "Cut short" not in text
    assert "Cut short" in bench.table(report | {"cut_short": True, "rows": []})


def test_a_wheel_has_no_benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(avis_stream, "__file__", str(tmp_path / "avis_stream" / "__init__.py"))
    with pytest.raises(AvisStreamError, match="the benchmarks are in the repository"):
        bench.run_bench(tmp_path, None)


@pytest.mark.slow
def test_the_command_runs_a_benchmark(tmp_path: Path) -> None:
    table, out = tmp_path / "docs" / "benchmarks.md", tmp_path / "out"
    assert main(["bench", "--out", str(out), "--docs", str(table), "--rounds", "1", "-k", "overhead"]) == 0
    assert "100 tiny calls: range attention" in table.read_text()
    report = json.loads((out / "benchmarks.json").read_text())
    assert report["cut_short"]
    assert len(report["rows"]) == 2
    assert all(peak > 0 for peak in report["peaks"].values())
