from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from avis_stream import ops

Timed = Callable[[], Any]

MOST_ROUNDS = int(os.environ.get("AVIS_STREAM_BENCH_ROUNDS", "0"))
"""Cuts every measurement short, to see that a benchmark runs at all; 0: as many rounds as each asks for."""


def rounds_of(wanted: int) -> int:
    return min(wanted, MOST_ROUNDS) if MOST_ROUNDS else wanted


@dataclass
class Interleaved:
    """Minimum seconds of each contender, taken in turns, and whether the machine was quiet enough to compare them."""

    seconds: dict[str, float]
    noisy: bool

    def ratio(self, rival: str, ours: str = "ours") -> float:
        """How many times faster than the rival."""
        return self.seconds[rival] / self.seconds[ours]


def interleave(contenders: dict[str, Timed], threads: int, rounds: int = 30) -> Interleaved:
    """Runs all contenders in turns. CPU time on one thread, wall time on more."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds_of(rounds)):
        for name, run in contenders.items():
            start = clock()
            run()
            samples[name].append(clock() - start)
    ordered = {name: sorted(times) for name, times in samples.items()}
    noisy = any(len(times) > 1 and times[max(1, len(times) // 10)] > 1.4 * times[0] for times in ordered.values())
    return Interleaved({name: times[0] for name, times in ordered.items()}, noisy)


@dataclass
class Row:
    what: str
    threads: int
    result: Interleaved
    flops: float | None = None
    bars: dict[str, float] = field(default_factory=dict)
    """How many times faster than a rival it must be."""

    def __str__(self) -> str:
        ours = self.result.seconds["ours"]
        peak = self.result.seconds.get("peak")
        parts = [f"{self.what:<44} {self.threads} thr  ours {ours * 1e3:8.3f} ms"]
        for name, seconds in self.result.seconds.items():
            if name not in ("ours", "peak"):
                bar = f" (bar {self.bars[name]:g})" if name in self.bars else ""
                parts.append(f"{name} {seconds * 1e3:8.3f} ms = {seconds / ours:5.2f}x{bar}")
        if self.flops is not None and peak is not None:
            rate, top = self.flops / ours, PEAK_FLOPS / peak
            parts.append(f"{rate / 1e9:.0f} GFLOP/s = {100 * rate / top:.0f} % of a matrix product's")
        return "  ".join(parts) + ("  noisy" if self.result.noisy else "")


PEAK_SIZE = 512
PEAK_FLOPS = 2.0 * PEAK_SIZE**3


def peak() -> Timed:
    """A plain matrix product, as the machine's practical peak."""
    a, b = torch.randn(PEAK_SIZE, PEAK_SIZE), torch.randn(PEAK_SIZE, PEAK_SIZE)
    return lambda: a @ b


@pytest.fixture(scope="session")
def table() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, isa {ops.info().isa},", end=" ")
    print(f"load {os.getloadavg()[0]:.1f}")
    for row in rows:
        print(row)


@pytest.fixture(autouse=True)
def _pinned() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def record(table: list[Row], request: pytest.FixtureRequest) -> Callable[..., Interleaved]:
    """Interleaves contenders and adds the row, with the bars if it has some, to the table and to the JSON."""

    def run(
        what: str,
        threads: int,
        contenders: dict[str, Timed],
        rounds: int = 30,
        flops: float | None = None,
        bars: dict[str, float] | None = None,
    ) -> Interleaved:
        if flops is not None:
            contenders = contenders | {"peak": peak()}
        result = interleave(contenders, threads, rounds)
        table.append(Row(what, threads, result, flops, bars or {}))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(
            what=what,
            threads=threads,
            seconds=result.seconds,
            flops=flops,
            bars=bars or {},
            noisy=result.noisy,
            load=os.getloadavg()[0],
        )
        benchmark.pedantic(contenders["ours"], rounds=rounds_of(5), warmup_rounds=1)
        return result

    return run
