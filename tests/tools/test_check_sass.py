"""The gate on machine code: what it makes of what the tools say, and, where they are, of real kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tool_files import load_tool

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or later reads the table of limits")

ROOT = Path(__file__).parents[2]

check_sass = load_tool("check_sass")
LIMITS = tomllib.loads(check_sass.LIMITS.read_text())


def kernel(name: str = "msda_forward<float, 32, 12>", **changes: Any) -> Any:
    instructions = {"LDG.E.128.CONSTANT": 48, "STG.E.128": 1, "FFMA": 400} | changes.pop("instructions", {})
    usual = {"arch": "90", "registers": 48, "stack": 0, "local": 0, "shared": 1024, "instructions": instructions}
    return check_sass.Kernel(name, **(usual | changes))


def wrong_with(one: Any) -> list[str]:
    return list(check_sass.complaints(one, check_sass.limits_of(one, LIMITS["kernels"])))


def test_a_good_kernel_passes() -> None:
    assert wrong_with(kernel()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local": 16}, "16 of local memory"),
        ({"instructions": {"LDL.64": 1, "STL": 2}}, "3 loads and stores of spilled registers"),
        ({"instructions": {"DFMA": 5}}, "5 instructions in double precision"),
        ({"registers": 65}, "65 registers, limit 64"),
        ({"instructions": {"LDG.E.128.CONSTANT": 47}}, "47 wide loads of 16 bytes, want 48"),
        ({"instructions": {"STG.E.128": 0}}, "0 wide stores"),
        ({"shared": 60_000}, "of the threads fit at a time"),
        ({"name": "new_kernel<float>"}, "no line in sass_limits.toml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(changes: dict[str, Any], words: str) -> None:
    assert any(words in line for line in wrong_with(kernel(**changes))), wrong_with(kernel(**changes))


def test_atomics_are_wide_where_the_hardware_has_them() -> None:
    changes: dict[str, Any] = {"name": "msda_backward<float, 32>", "registers": 80}
    assert any("atomic additions of four floats" in line for line in wrong_with(kernel(**changes)))
    assert not any("atomic" in line for line in wrong_with(kernel(**changes, arch="89")))
    assert wrong_with(kernel(**changes, instructions={"REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU": 4})) == []


@pytest.mark.parametrize(
    ("registers", "shared", "arch", "share"),
    [(32, 1024, "90", 1.0), (64, 1024, "90", 0.5), (65, 1024, "90", 0.4375), (32, 50 << 10, "86", 2 * 128 / 1536)],
)
def test_occupancy(registers: int, shared: int, arch: str, share: float) -> None:
    """As NVIDIA's calculator has it: registers go in lots of 256 a warp, shared memory is the block's own."""
    assert kernel(registers=registers, shared=shared, arch=arch).occupancy(0) == share


def test_later_lines_add_to_earlier_ones() -> None:
    limits = check_sass.limits_of(kernel(), LIMITS["kernels"])
    assert limits["registers"] == LIMITS["kernels"]["msda_forward<*>"]["registers"]
    assert limits["wide_loads"] == 48


def test_without_the_library_nothing_is_claimed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_sass.py"), str(tmp_path / "libavis_cuda.so")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "nothing was checked" in done.stderr
    assert "was not built" in done.stderr


# --- with the tools ---------------------------------------------------------------------------------------------------

SPILLING = """
#include <cstddef>
// Indices that only the device knows: this array has to live on a stack.
extern "C" __global__ void upload(float* x, const int* at) {
  float own[64];
  for (int i = 0; i < 64; ++i) own[i] = x[i];
  for (int i = 0; i < 64; ++i) own[at[i]] += own[at[i + 64]];
  for (int i = 0; i < 64; ++i) x[i] = own[i];
}
"""


def compiled(source: Path, target: Path, *flags: str) -> Path:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: the CUDA toolkit compiles the kernels")
    try:
        check_sass.tool("cuobjdump")
        check_sass.tool("nvdisasm")
    except check_sass.NothingToCheckError as error:
        pytest.skip(str(error))
    subprocess.run([nvcc, "-std=c++20", "-O3", "-cubin", *flags, str(source), "-o", str(target)], check=True)
    return target


@pytest.mark.slow
def test_a_stack_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.cu").write_text(SPILLING)
    _, wrong = check_sass.check(
        compiled(tmp_path / "bad.cu", tmp_path / "bad.cubin", "-arch=sm_90"), LIMITS | {"architectures": ["90"]}
    )
    assert any("bytes of stack" in line for line in wrong), wrong


@pytest.mark.slow
@pytest.mark.parametrize("arch", LIMITS["architectures"])
def test_our_kernels_pass(arch: str, tmp_path: Path) -> None:
    """All of them, an architecture at a time; `make gate` checks the library that is shipped."""
    include = f"-I{ROOT / 'csrc' / 'include'}"
    cubin = compiled(ROOT / "csrc" / "gpu" / "library.cu", tmp_path / "all.cubin", f"-arch=sm_{arch}", include)
    kernels, wrong = check_sass.check(cubin, LIMITS | {"architectures": [arch]})
    assert len(kernels) > 100
    assert not wrong, "\n".join(wrong)
