"""`make gpu-test` itself, where there is no GPU: on the emulator, and what it says when it can do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "ops"))
import emulated  # noqa: E402


def gpu_test(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "gpu_test.py"), *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(emulated.compiler() is None, reason="the emulator needs g++")
def test_it_checks_measures_and_writes(tmp_path: Path) -> None:
    library = emulated.build(ROOT / "csrc" / "emu" / "library.cpp")
    report = tmp_path / "out" / "gpu.json"
    done = gpu_test("--library", str(library), "--device", "cpu", "--tiny", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert all(test["passed"] == "yes" for test in found["tests"])
    assert len(found["tests"]) == 2
    assert {row["what"].partition(",")[0] for row in found["benchmarks"]} == {
        "peaks", "deformable forward", "deformable backward", "attention forward", "attention backward", "pages",
    }  # fmt: skip
    assert all(seconds > 0 for row in found["benchmarks"] for seconds in row["seconds"].values())
    assert found["machine"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_without_a_gpu_nothing_is_claimed() -> None:
    done = gpu_test()
    assert done.returncode == 3
    assert done.stderr.startswith("nothing was run: ")
    assert not done.stdout


@pytest.mark.skipif(emulated.compiler() is None, reason="the wrong library needs gcc")
def test_a_library_that_computes_wrongly_fails(tmp_path: Path) -> None:
    """Every function does nothing and says that all is well."""
    operators = ("msda_forward", "msda_backward", "range_forward", "range_backward", "paged_forward", "paged_backward")
    names = (*operators, "cache_write")
    source = tmp_path / "wrong.c"
    source.write_text(
        '#include <stdlib.h>\nint av_abi(void) { return 1; }\nconst char* av_archs(void) { return "none"; }\n'
        'const char* av_error(int code) { (void)code; return ""; }\nvoid* av_plan_new(void) { return malloc(1); }\n'
        "long long av_plan_ints(void) { return 4; }\nvoid av_plan_delete(void* p) { free(p); }\n"
        + "".join(f"int av_{name}(void) {{ return 0; }}\n" for name in names)
    )
    library = tmp_path / "libwrong.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    done = gpu_test("--library", str(library), "--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 1
    assert "C interface: AssertionError" in done.stdout
