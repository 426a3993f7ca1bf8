"""The kernels on Arm: the portable source, which compiles to NEON there, cross-built and run by qemu.

What they compute is held to the reference on this machine (`test_native.py`); here the same numbers must come out of
the other machine, up to rounding: NEON fuses multiplication and addition where SSE2 cannot.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from live_tools import need
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("kernels_alone.cpp")
# As CMakeLists.txt compiles them.
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi", "-static"]

CLOSE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest difference of a result, as a share of the largest number in it: some roundings of its storage."""


def printed(compiler: str, program: Path, *runner: str) -> dict[str, NDArray[np.float64]]:
    """What the program prints when built by one compiler: results by name."""
    folders = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cpu", "")]
    built = subprocess.run(
        [compiler, *FLAGS, *folders, str(SOURCE), "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=True)
    results = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(" D=")
        channels, *numbers = rest.split()
        results[f"{name} {channels}"] = np.array(numbers, np.float64)
    return results


def test_arm_computes_the_same(tmp_path: Path) -> None:
    programs = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [name for name in programs if shutil.which(name) is None]
    need(not missing, "arm", f"{', '.join(missing)} not there (make test prints what to install)")
    here = printed("g++", tmp_path / "here")
    arm = printed("aarch64-linux-gnu-g++", tmp_path / "arm", "qemu-aarch64")
    assert here.keys() == arm.keys()
    assert len(here) == 4 * (4 * 5 + 2 * 8)
    for name, expected in here.items():
        assert np.isfinite(expected).any(), name
        assert np.abs(expected[np.isfinite(expected)]).max() > 1e-3, name
        kind = next(kind for kind in CLOSE if kind in name)
        finite = np.isfinite(expected)
        assert (np.isfinite(arm[name]) == finite).all(), name
        worst = np.abs(arm[name] - expected, where=finite, out=np.zeros_like(expected)).max()
        assert worst <= CLOSE[kind] * np.abs(expected[finite]).max(), (name, worst)


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross-compiler")
def test_it_is_neon(tmp_path: Path) -> None:
    """The portable source becomes vector instructions there: fused multiply-adds of four lanes."""
    assembly = tmp_path / "kernels.s"
    folders = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cpu")]
    source = str(ROOT / "csrc/cpu/kernels_base.cpp")
    subprocess.run(["aarch64-linux-gnu-g++", *FLAGS, *folders, "-S", source, "-o", str(assembly)], check=True)
    text = assembly.read_text()
    assert text.count("fmla\tv") > 100
    assert ".4s" in text
