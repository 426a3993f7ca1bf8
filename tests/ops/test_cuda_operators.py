"""The registered CUDA operators: how they find their kernels, and, on an emulated device, what they compute.

`avis_ops_emulated` is the code of `csrc/ops/cuda_*.cpp`, registered for CPU tensors, with the emulated kernels behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from cuda_cases import assert_agree, results
from operator_cases import fused_arguments, make_case
from test_native import build

from avis_stream import ops
from avis_stream.ops import _autograd
from avis_stream.ops._library import native_library

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    native_library() is None or emulated.compiler() is None, reason="needs the compiled operators and g++"
)


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"AVIS_STREAM_REQUIRE": ""} | environment
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=False
    )


# --- how kernels are found --------------------------------------------------------------------------------------------

INFO = """
from avis_stream import ops
from avis_stream.ops import _library
info = ops.info()
print(info.cuda)
print(all(state["cuda"] == "native" for state in info.operators.values()))
print(info.operators["ms_deform_attn"]["cuda"])
"""


def test_without_kernels_the_references_serve_and_the_reason_is_told() -> None:
    done = python(INFO, AVIS_STREAM_CUDA_LIBRARY="/nowhere/libavis_cuda.so")
    status, native, state = done.stdout.splitlines()
    assert status == "not built; install with AVIS_STREAM_BUILD=cuda where nvcc is (no /nowhere/libavis_cuda.so)"
    assert native == "False"
    assert state == f"reference: libavis_cuda.so is {status}"


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "libavis_cuda.so"
    broken.write_text("no library")
    done = python(INFO, AVIS_STREAM_CUDA_LIBRARY=str(broken))
    assert done.stdout.startswith("there, but does not load: ")
    assert "libavis_cuda.so" in done.stdout


def test_another_version_of_the_interface_is_not_used(tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("int av_abi(void) { return 77; }")
    library = tmp_path / "libavis_cuda.so"
    subprocess.run(["gcc", "-shared", "-o", str(library), str(source)], check=True)
    done = python(INFO, AVIS_STREAM_CUDA_LIBRARY=str(library))
    assert "has version 77 of the kernel interface, libavis_ops.so needs 1; build both anew" in done.stdout


def test_with_kernels_all_operators_are_native() -> None:
    """Found out without a GPU: the library is loaded, and its functions are there."""
    library = emulated.build(emulated.ROOT / "csrc" / "emu" / "library.cpp")
    done = python(INFO, AVIS_STREAM_CUDA_LIBRARY=str(library))
    status, native, state = done.stdout.splitlines()
    assert status == f"{library}, for sm_emulated"
    assert native == "True"
    assert state == "native"


# --- deterministic algorithms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_fixed_order_is_kept_where_torch_asks_for_it(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, but with CPU tensors: the kernel is not asked for what it would sum by atomics."""
    case = make_case()
    args = fused_arguments() if fused else case.args()
    operator = ops.ms_deform_attn_fused if fused else ops.ms_deform_attn
    leaves = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in args]
    own = [x for x in leaves if isinstance(x, torch.Tensor)]
    usual = torch.autograd.grad(operator(*leaves), own, case.grad)
    asked: list[bool] = []
    monkeypatch.setattr(_autograd, "wants_fixed_order", lambda x: asked.append(True) or True)
    fixed = torch.autograd.grad(operator(*leaves), own, case.grad)
    assert asked
    for a, b in zip(usual, fixed, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(usual[0], fixed[0])  # another order than the kernel's: the reference's


def test_a_fixed_order_is_not_kept_for_nothing() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert not _autograd.wants_fixed_order(torch.zeros(1))  # the CPU kernels have one anyway
    finally:
        torch.use_deterministic_algorithms(False)


# --- what they compute ------------------------------------------------------------------------------------------------

RUN = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
import cuda_cases
from avis_stream import ops
assert ops.info().isa == "emulated"
saved = torch.load(sys.argv[2])
torch.save(cuda_cases.results(torch.ops.avis, saved=saved), sys.argv[1])
"""

REFUSE = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
from operator_cases import make_case
from avis_stream import ops
for case in (make_case().args(torch.float64), make_case(shapes=(1, 1) * 9).args(), make_case(p=200).args()):
    try:
        torch.ops.avis.ms_deform_attn(*case)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
q = torch.zeros(1, 2, 1, 8)
for plan in (([0, 2], [0, 3]), ([0, 1], [0, 2])):
    try:
        torch.ops.avis.range_attn(q, q, q, *plan, None, 1.0)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kernels = emulated.build(emulated.ROOT / "csrc" / "emu" / "library.cpp")
    operators = build(tmp_path_factory.mktemp("operators"), target="avis_ops_emulated")
    return {"AVIS_STREAM_CUDA_LIBRARY": str(kernels), "AVIS_STREAM_OPS_LIBRARY": str(operators)}


def test_operators_agree_with_the_cpu(environment: dict[str, str], tmp_path: Path) -> None:
    saved: dict[str, tuple[torch.Tensor, ...]] = {}
    expected = results(torch.ops.avis, saved=saved)
    torch.save(saved, tmp_path / "saved.pt")
    done = python(RUN, str(tmp_path / "results.pt"), str(tmp_path / "saved.pt"), **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_agree(torch.load(tmp_path / "results.pt"), expected)


def test_operators_refuse_in_the_same_words(environment: dict[str, str]) -> None:
    wide, levels, points, out, queries = python(REFUSE, **environment).stdout.splitlines()
    assert "value must be float32, bfloat16 or float16 on CUDA, got [2, 40, 2, 32] float64; convert it" in wide
    assert "the CUDA kernels take up to 8 levels, got 9" in levels
    assert "ms_deform_attn failed: no kernel serves these arguments" in points
    assert "k_ranges must lie within [0, Nk=2], group 0 has (0, 3)" in out
    assert "q_starts must begin with 0 and end with Nq=2" in queries
