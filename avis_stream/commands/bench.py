"""`avis-stream bench`: all benchmarks of the repository, their JSON, and a table with the machine's peaks beside it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import avis_stream
from avis_stream import ops
from avis_stream.errors import AvisStreamError
from avis_stream.needs import install_extra

FILES = ("bench_ops.py", "bench_steps.py")
Peaks = dict[str, float]


def run_bench(out: Path, docs: Path | None, *, select: str | None = None, rounds: int = 0) -> str:
    """Runs the benchmarks and writes `benchmarks.json` and the table; returns the table.

    Args:
        out: Folder for the JSON.
        docs: Markdown file to write the table to; None: none.
        select: Only benchmarks whose names fit this expression, as pytest's `-k` takes it.
        rounds: At most as many rounds each, to see that everything runs; 0: as many as each needs.
    Raises:
        AvisStreamError: The benchmarks are not here, or failed.
    """
    folder = Path(avis_stream.__file__).parents[1] / "benchmarks"
    if not (folder / FILES[0]).is_file():
        raise AvisStreamError("the benchmarks are in the repository, not in the wheel; clone it and `make bench`")
    missing = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    if missing:
        raise AvisStreamError(f"benchmarks need {' and '.join(missing)}; {install_extra('dev')}")
    out.mkdir(parents=True, exist_ok=True)
    raw = out / "pytest-benchmark.json"
    peaks = measure_peaks(rounds)
    files = [str(folder / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", *files, "-m", "slow", "--benchmark-enable", f"--benchmark-json={raw}"]
    env = os.environ | ({"AVIS_STREAM_BENCH_ROUNDS": str(rounds)} if rounds else {})
    done = subprocess.run([*command, *(["-k", select] if select else [])], cwd=folder.parent, env=env, check=False)
    if done.returncode != 0 or not raw.is_file():
        raise AvisStreamError(f"the benchmarks ended with status {done.returncode}; their output is above")
    rows = [one["extra_info"] for one in json.loads(raw.read_text())["benchmarks"]]
    report = {"machine": machine(), "peaks": peaks, "cut_short": rounds > 0, "rows": rows}
    (out / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    if docs is not None:
        docs.parent.mkdir(parents=True, exist_ok=True)
        docs.write_text(text)
    return text


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "isa": ops.info().isa,
        "version": avis_stream.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def measure_peaks(rounds: int = 0) -> Peaks:
    """What a plain matrix product and a plain copy reach, by number of threads: GFLOP/s and GB/s, best of a few."""
    peaks: Peaks = {}
    before = torch.get_num_threads()
    tries, size, copied = (2, 256, 1 << 20) if rounds else (20, 1024, 1 << 26)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            peaks[f"gflop_per_s {str(dtype)[6:]} {threads}"] = 2 * size**3 / _best(lambda: a @ b, tries) / 1e9  # noqa: B023
        source, target = torch.ones(copied), torch.empty(copied)
        peaks[f"gb_per_s {threads}"] = 8 * copied / _best(lambda: target.copy_(source), tries) / 1e9  # noqa: B023
    torch.set_num_threads(before)
    return peaks


def _best(run: Any, tries: int) -> float:
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- the table -------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    about, peaks = report["machine"], report["peaks"]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `make bench` on {about['date']}: {about['cpu']}, {about['cores']} cores, load {about['load']}, "
        f"torch {about['torch']}, kernels for {about['isa']}. How they are measured: `benchmarks/README.md`.",
        "",
    ]
    if report["cut_short"]:
        lines += ["**Cut short with `--rounds`: these figures say that the benchmarks run, and nothing else.**", ""]
    lines += [
        "## What this machine reaches",
        "",
        "| threads | float32 | bfloat16 | copy |",
        "| --- | --- | --- | --- |",
    ]
    for threads in (1, 2):
        products = [f"{peaks[f'gflop_per_s {name} {threads}']:.0f} GFLOP/s" for name in ("float32", "bfloat16")]
        lines.append(f"| {threads} | {products[0]} | {products[1]} | {peaks[f'gb_per_s {threads}']:.1f} GB/s |")
    rows = report["rows"]
    lines += _section("Against others", ["what", "threads", "ours", "others", "of the peak"], [
        _compared(row, peaks) for row in rows if "seconds" in row
    ])  # fmt: skip
    lines += _section("Streams", ["what", "threads", "p50", "p95", "p99", "last third slower by"], [
        _latency(row) for row in rows if "latency" in row
    ])  # fmt: skip
    lines += _section("Clips, by stage", ["what", "threads", "all", "stages"], [
        _stages(row) for row in rows if "stages" in row
    ])  # fmt: skip
    return "\n".join(lines) + "\n"


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"## {title}", "", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _compared(row: dict[str, Any], peaks: Peaks) -> list[str]:
    seconds = dict(row["seconds"])
    seconds.pop("peak", None)
    ours, threads = seconds.pop("ours"), row["threads"]
    bars = {
        name: f" (bar {bar:g}, {'met' if seconds[name] >= bar * ours else 'missed'})"
        for name, bar in row["bars"].items()
    }
    others = "; ".join(f"{name} {_time(s)}, **{s / ours:.2f}x**{bars.get(name, '')}" for name, s in seconds.items())
    share = ""
    if row["flops"]:
        rate, most = row["flops"] / ours / 1e9, peaks[f"gflop_per_s float32 {threads}"]
        share = f"{rate:.0f} GFLOP/s, {100 * rate / most:.0f} %"
    return [row["what"], str(threads), _time(ours), others + (" (noisy)" if row["noisy"] else ""), share]


def _latency(row: dict[str, Any]) -> list[str]:
    latency = row["latency"]
    steps = [_time(latency[name]) for name in ("p50", "p95", "p99")]
    later = f"{latency['last_third_slower_by']:+.1%}"
    return [f"{row['what']}, {latency['steps']} steps", str(row["threads"]), *steps, later]


def _stages(row: dict[str, Any]) -> list[str]:
    stages = dict(row["stages"])
    total = stages.pop("all")
    parts = "; ".join(f"{name} {_time(s)}" for name, s in stages.items())
    return [row["what"], str(row["threads"]), _time(total), parts]
