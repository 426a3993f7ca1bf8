"""Falling back is said once, and can be forbidden; in processes of their own, since both are decided once a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from avis_stream import ops
from avis_stream.errors import NativeUnavailableError
from avis_stream.ops import _library

CALL = """
import warnings, torch
from avis_stream import ops
from avis_stream.ops import _library
x = torch.zeros(1, 1, 1, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        ops.range_attn(x, x, x, [0, 1], [0, 1])
        ops.ms_deform_attn(x, [1, 1], torch.zeros(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def run_without_library(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    absent = {"AVIS_STREAM_REQUIRE": "", "AVIS_STREAM_OPS_LIBRARY": "/nowhere/libavis_ops.so"}
    env = os.environ | absent | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_fallback_warns_once_and_says_what_to_do() -> None:
    done = run_without_library(CALL)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("ReferenceKernelWarning avis::range_attn and its like run as plain PyTorch on cpu")
    assert "libavis_ops.so was not built; install with AVIS_STREAM_BUILD=cpu" in line


def test_require_native_turns_the_fallback_into_an_error() -> None:
    done = run_without_library(CALL, AVIS_STREAM_REQUIRE="gst,native")
    assert done.returncode == 1
    assert "NativeUnavailableError: AVIS_STREAM_REQUIRE=native, but avis::range_attn has no cpu kernel" in done.stderr


AUTOCAST = """
import torch
from avis_stream import ops
torch.manual_seed(0)
q, k, v = (torch.randn(1, n, 2, 8) for n in (4, 6, 6))
value, loc, weight, logits = (torch.rand(s) for s in ((1, 6, 1, 4), (1, 3, 1, 1, 2, 2), (1, 3, 1, 1, 2), (1, 3, 1, 2)))
ref = torch.rand(1, 3, 1, 2)
for name, leaves, run in (
    ("range_attn", (q, k, v), lambda q, k, v: ops.range_attn(q, k, v, [0, 4], [0, 6])),
    ("range_attn_paged", (q, k, v), lambda q, k, v: ops.range_attn_paged(q, k, v, [(0, 3), (3, 6)])[0]),
    ("ms_deform_attn", (value, loc, weight), lambda *x: ops.ms_deform_attn(x[0], [2, 3], *x[1:])),
    ("fused", (value, ref, loc, weight), lambda *x: ops.ms_deform_attn_fused(x[0], [2, 3], *x[1:3], x[3].flatten(3))),
):
    grads = []
    for inside in (False, True):
        own = [x.clone().requires_grad_() for x in leaves]
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(*own).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        grads.append([x.grad for x in own])
    print(name, all(torch.equal(a, b) for a, b in zip(*grads)))
"""


def test_references_may_be_differentiated_inside_autocast() -> None:
    """To the same numbers as outside of it, where a backward belongs."""
    done = run_without_library(AUTOCAST)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("range_attn", "range_attn_paged", "ms_deform_attn", "fused")
    assert done.stdout.splitlines() == [f"{name} True" for name in names]


def test_a_library_that_does_not_load_says_why(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libavis_ops.so"  # type: ignore[operator]
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_library, "_library_path", lambda: broken)
    library, why = _library._load()
    assert library is None
    assert "libavis_ops.so is there but does not load" in why


def test_an_old_torch_is_told(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libavis_ops.so"  # type: ignore[operator]
    path.write_bytes(b"")
    monkeypatch.setattr(_library, "_library_path", lambda: path)
    monkeypatch.setattr(torch, "__version__", "2.11.1+cpu")
    assert _library._load() == (None, "the native kernels need torch 2.13 or later, this is 2.11.1+cpu")


def test_info_lists_every_operator_and_device() -> None:
    info = ops.info()
    assert set(info.operators) >= {"ms_deform_attn", "ms_deform_attn_backward", "range_attn", "range_attn_backward"}
    for name, states in info.operators.items():
        assert set(states) == {"cpu", "cuda"}
        for device, state in states.items():
            assert (state == "native") == _library.has_kernel(name, device)
            assert state == "native" or len(state) > len("reference: ")
        assert name in str(info)


def test_require_native_names_what_is_missing() -> None:
    if _library.native_library() is not None and all(s["cpu"] == "native" for s in ops.info().operators.values()):
        ops.require_native("cpu")
    else:
        with pytest.raises(NativeUnavailableError, match="no native cpu kernel for"):
            ops.require_native("cpu")
    if not _library.has_kernel("ms_deform_attn", "cuda"):
        with pytest.raises(NativeUnavailableError, match="no native cuda kernel for ms_deform_attn"):
            ops.require_native("cuda")


def test_an_instruction_set_that_nobody_knows_is_told() -> None:
    code = "import avis_stream.ops as ops; print(ops.info().isa)"
    wrong = run_without_library(code, AVIS_STREAM_ISA="nonsense")
    assert "AVIS_STREAM_ISA must be one of avx512, avx2, neon, base, got 'nonsense'" in wrong.stderr
    assert "AVIS_STREAM_ISA" not in run_without_library(code, AVIS_STREAM_ISA="neon").stderr
