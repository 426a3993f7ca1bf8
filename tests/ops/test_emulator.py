"""The CUDA kernels, run on the CPU by the emulator: results, races, overruns, replays; and that it finds faults."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from cuda_cases import assert_agree, range_arguments, results
from operator_cases import make_case, paged_arguments
from torch import Tensor

from avis_stream.errors import NativeUnavailableError, ShapeError
from avis_stream.ops._cuda_api import CudaLibrary

HERE = Path(__file__).parent
LIBRARY = emulated.ROOT / "csrc" / "emu" / "library.cpp"
FAULTS = HERE / "faulty_kernels.cpp"
pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="the emulator needs g++")


@pytest.fixture(scope="module")
def library() -> CudaLibrary:
    return CudaLibrary(emulated.build(LIBRARY))


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return results(torch.ops.avis)


# --- results ----------------------------------------------------------------------------------------------------------


def test_every_kernel_agrees_with_the_cpu(library: CudaLibrary, expected: dict[str, Tensor]) -> None:
    assert_agree(results(library), expected)
    library.raw.emu_launched.restype = ctypes.c_char_p
    launched = set(library.raw.emu_launched().decode().split("\n")) - {""}
    # Nothing else takes one struct by value. If a kernel did not run, add a case that takes it.
    symbols = subprocess.run(["nm", "-C", library.path], capture_output=True, text=True, check=True).stdout
    structs = "(?:avis::gpu::)?(?:RangeArgs|PagedArgs|Chunk|AvMsda|AvCacheWrite)"
    compiled = set(re.findall(rf"avis::gpu::(\w+(?:<.*>)?)\({structs}\)\n", symbols))
    # Other libraries on the emulator share its list of launches: theirs are kernels of other names.
    names = {kernel.split("<")[0] for kernel in compiled}
    ran = {kernel for kernel in launched if kernel.split("<")[0] in names}
    assert len(compiled) == len(ran) > 100, (sorted(compiled), sorted(ran))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_threads_does_not_matter(library: CudaLibrary, seed: int) -> None:
    """Bit for bit, but for the gradient of the value, which is summed by atomics."""
    usual = results(library, few=True)
    library.raw.emu_seed(seed)
    library.raw.emu_threads(2)
    try:
        shuffled = results(library, few=True)
    finally:
        library.raw.emu_seed(0)
        library.raw.emu_threads(1)
    assert_agree(shuffled, usual)
    for name, x in usual.items():
        assert torch.equal(shuffled[name], x) or (name.startswith("msda") and name.endswith("grad0")), name


def test_a_group_gives_the_same_bits_alone(library: CudaLibrary) -> None:
    """Whatever the other groups, and whatever tiles their number leads to."""
    q, k, v, starts, key_ranges, *rest = range_arguments(torch.float32, 32, "many")
    out, lse = library.range_attn(q, k, v, starts, key_ranges, *rest)
    for g in (8, 33):
        alone, alone_lse = library.range_attn(q[:, g : g + 1], k, v, [0, 1], key_ranges[2 * g : 2 * g + 2], *rest)
        assert torch.equal(alone, out[:, g : g + 1])
        assert torch.equal(alone_lse, lse[..., g : g + 1])


@pytest.mark.parametrize("offset", [0, 1])
def test_any_strides_and_alignment(library: CudaLibrary, offset: int) -> None:
    """Views of a projection's output; an odd offset keeps them from being read 16 bytes at a time."""
    torch.manual_seed(0)
    packed = torch.randn(2, 20, 3 * 64 + 1)[..., offset : offset + 192]
    q, k, v = packed.view(2, 20, 3, 2, 32).unbind(2) if offset == 0 else packed.unflatten(-1, (3, 2, 32)).unbind(2)
    args = [0, 20], [0, 20], None, 0.2
    got, want = library.range_attn(q, k, v, *args), torch.ops.avis.range_attn(q, k, v, *args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_to_compute(library: CudaLibrary) -> None:
    q, k = torch.randn(1, 3, 2, 8), torch.randn(1, 0, 2, 8)
    out, lse = library.range_attn(q, k, k, [0, 3], [0, 0], None, 1.0)
    assert not out.any()
    assert (lse == -torch.inf).all()
    pages = torch.zeros(0, 2, dtype=torch.int32)
    out, lse, page_out, _ = library.range_attn_paged(q, k, k, pages, None, None, None, 1.0)
    assert not out.any()
    assert (lse == -torch.inf).all()
    assert page_out.shape == (0, *q.shape)
    case = make_case(q=0)
    assert library.ms_deform_attn(*case.args()).shape == (2, 0, 64)


def test_points_outside_read_nothing(library: CudaLibrary) -> None:
    """NaN in the map reaches only the queries that look at it; NaN and Inf as locations are skipped."""
    case = make_case(n=1, shapes=(4, 4), m=1, q=3, p=1)
    case.value[:, 15] = torch.nan
    case.loc[0, :, 0, 0, 0] = torch.tensor([[0.1, 0.1], [torch.nan, 0.5], [torch.inf, 3.0]])
    out = library.ms_deform_attn(*case.args())
    torch.testing.assert_close(out, torch.ops.avis.ms_deform_attn(*case.args()))
    assert not out[0, 1:].any()


def test_a_part_without_keys_takes_no_nan_from_the_lse_gradient(library: CudaLibrary) -> None:
    """`torch.logaddexp` of two lses of -inf sends one."""
    q, k, v, _, bias, init_out, init_lse, scale = paged_arguments(torch.float32, 32, initial=True)
    init_lse[0] = bias[0] = -torch.inf
    pages = torch.tensor([[0, 60]], dtype=torch.int32)
    args = q, k, v, pages, bias, init_out, init_lse
    outs = library.range_attn_paged(*args, scale)
    grad_lse = torch.where(outs[1] == -torch.inf, torch.nan, 1.0)
    assert grad_lse.isnan().any()
    given = torch.randn_like(q), grad_lse, None, None, *args, *outs, scale, [True] * 6
    for got, want in zip(
        library.range_attn_paged_backward(*given), torch.ops.avis.range_attn_paged_backward(*given), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert got.isfinite().all()


UNALIGNED = f"""
import ctypes, sys, torch
sys.path.insert(0, {str(HERE)!r})
from operator_cases import make_case, paged_arguments
from avis_stream.ops._cuda_api import CudaLibrary
library = CudaLibrary(sys.argv[1])

def shifted(x):
    room = torch.empty(x.numel() + 1, dtype=x.dtype)
    room[1:] = x.flatten()
    view = room[1:].view(x.shape)
    assert view.data_ptr() % 16
    return view

def agree(name, *args):
    got, want = (getattr(where, name)(*args) for where in (library, torch.ops.avis))
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

for channels in (16, 32, 64):
    case = make_case(d=channels)
    value, *rest = case.args()
    agree("ms_deform_attn", shifted(value), *rest)
    agree("ms_deform_attn_backward", case.grad, shifted(value), *rest, [True] * 3)
    agree("ms_deform_attn_backward", shifted(case.grad), value, *rest, [True] * 3)
q, k, v, pages, bias, init_out, *rest = paged_arguments(torch.float32, 32, initial=True)
agree("range_attn_paged", q, k, v, pages, bias, shifted(init_out), *rest)
library.raw.emu_launched.restype = ctypes.c_char_p
print(library.raw.emu_launched().decode())
"""


def test_what_begins_between_16_bytes_is_read_number_by_number(library: CudaLibrary) -> None:
    """In a process of its own: reading it otherwise may end one, as it does on a GPU, and launches are counted."""
    command = [sys.executable, "-c", UNALIGNED, str(library.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    launched = re.findall(r"(msda_forward|msda_backward|merge_pages)<([^>]+)>", done.stdout)
    assert {name for name, _ in launched} == {"msda_forward", "msda_backward", "merge_pages"}
    assert {sizes.split(", ")[1] for name, sizes in launched if name != "merge_pages"} == {"0"}
    assert {sizes.split(", ")[1] for name, sizes in launched if name == "merge_pages"} == {"1"}


# --- what a captured graph sees ---------------------------------------------------------------------------------------


def replay(library: CudaLibrary) -> None:
    assert library.raw.emu_replay() == 0


def test_replay_reads_the_page_table_anew(library: CudaLibrary) -> None:
    """Recorded once, as a CUDA graph is; then the caller changes page table, ring position and contents in place."""
    q, k, v, pages, *rest = paged_arguments(torch.float32, 32, initial=True)
    new, slot = [torch.randn(2, 6, 3, 32) for _ in range(2)], torch.tensor(0, dtype=torch.int32)
    k_mine, v_mine = k.clone(), v.clone()
    library.raw.emu_record()
    library.kv_write_(k, v, *new, slot)
    outs = library.range_attn_paged(q, k, v, pages, *rest)
    for step in range(3):
        slot.fill_(40 * step)
        pages.copy_(torch.tensor([[10 * step, 60], [60, 60 + step], [100, 120], [125, 130]]))
        replay(library)
        torch.ops.avis.kv_write_(k_mine, v_mine, *new, slot)
        for got, want in zip(outs, torch.ops.avis.range_attn_paged(q, k_mine, v_mine, pages, *rest), strict=True):
            torch.testing.assert_close(got, want)


def test_replay_keeps_a_plan(library: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan travels in the arguments of a launch: gone on the host, and overwritten on the device, it comes back."""
    rooms: list[Tensor] = []
    empty = torch.empty

    def kept(*args: Any, **options: Any) -> Tensor:  # a CUDA graph has a pool of its own for this
        rooms.append(empty(*args, **options))
        return rooms[-1]

    q, k, v, *rest = range_arguments(torch.float32, 32, "rolling")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", kept)
        library.raw.emu_record()
        out, lse = library.range_attn(q, k, v, *rest)
    assert len(rooms) == 1
    for _ in range(2):
        rooms[0].fill_(-1)
        q.normal_()
        replay(library)
        want, want_lse = torch.ops.avis.range_attn(q, k, v, *rest)
        torch.testing.assert_close(out, want)
        torch.testing.assert_close(lse, want_lse)


def test_a_table_that_reaches_out_is_cut(library: CudaLibrary) -> None:
    q, k, v, _, *rest = paged_arguments(torch.float32, 32, initial=False)
    wild = torch.tensor([[-50, 10], [100, 100000], [70, 20]], dtype=torch.int32)
    tame = torch.tensor([[0, 10], [100, 130], [0, 0]], dtype=torch.int32)
    got, want = library.range_attn_paged(q, k, v, wild, *rest), torch.ops.avis.range_attn_paged(q, k, v, tame, *rest)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    for first in (-3, 127, 2**31 - 1):
        cache = [torch.zeros(1, 130, 2, 8) for _ in range(2)]
        new = torch.ones(1, 6, 2, 8)
        library.kv_write_(*cache, new, new, torch.tensor(first, dtype=torch.int32))
        assert cache[0].sum() == 16 * 3 * (first != 2**31 - 1)


# --- what the interface refuses ---------------------------------------------------------------------------------------


def test_what_no_kernel_serves_is_said(library: CudaLibrary) -> None:
    case = make_case()
    with pytest.raises(ShapeError, match=r"take float32, bfloat16 and float16, got .* float64"):
        library.ms_deform_attn(*case.args(torch.float64))
    q = torch.randn(1, 2, 1, 136)
    with pytest.raises(ShapeError, match="up to 128 channels a head"):
        library.range_attn(q, q, q, [0, 2], [0, 2], None, 1.0)
    many = make_case(shapes=(1, 1) * 9)
    with pytest.raises(ShapeError, match="up to 8 levels, got 9"):
        library.ms_deform_attn(*many.args())
    wide = make_case(p=200)
    with pytest.raises(RuntimeError, match="av_msda_forward failed: no kernel serves these arguments"):
        library.ms_deform_attn(*wide.args())


def test_another_version_of_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("avis_stream.ops._cuda_api.ABI", 99)
    with pytest.raises(NativeUnavailableError, match=r"version 1 of the kernel interface, this package needs 99"):
        CudaLibrary(emulated.build(LIBRARY))
    broken = tmp_path / "libavis_cuda.so"
    broken.write_text("no library")
    with pytest.raises(NativeUnavailableError, match="does not load"):
        CudaLibrary(broken)


def test_someone_else_may_launch(library: CudaLibrary) -> None:
    """The door for kernels compiled at run time: names as C++ has them, the arguments by value."""
    calls: list[tuple[str, list[int], int]] = []

    def launch(name: bytes, dims: Any, shared: int, args: int, size: int, stream: int) -> int:
        calls.append((name.decode(), dims[:6], size))
        return 0

    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, ctypes.c_void_p,
        ctypes.c_size_t, ctypes.c_void_p,
    )  # fmt: skip
    launcher = kind(launch)
    library.raw.av_set_launcher(launcher)
    try:
        library.ms_deform_attn(*make_case().args())
    finally:
        library.raw.av_set_launcher(None)
    ((name, dims, size),) = calls
    assert name.endswith("msda_forward<float, 32, 12>")
    assert dims == [4, 1, 1, 128, 1, 1]  # 2 images * 13 queries * 2 heads, 16 a block
    assert size > 100


# --- sanitizers -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=0"},  # Python itself leaks at exit
    # Python and torch are not instrumented; what they do is not looked at.
    "tsan": {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"},
}


@cache
def can_fix_addresses() -> bool:
    """Containers may forbid it."""
    return (
        shutil.which("setarch") is not None and subprocess.run(["setarch", "-R", "true"], check=False).returncode == 0
    )


def under(sanitizer: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the runtime of a sanitizer."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    if sanitizer != "plain":
        found = subprocess.run(
            ["g++", f"-print-file-name=lib{sanitizer}.so"], capture_output=True, text=True, check=True
        )
        env |= {"LD_PRELOAD": found.stdout.strip()} | OPTIONS[sanitizer]
        # ThreadSanitizer of gcc 12 and addresses that are random in 32 bits do not go together.
        if sanitizer == "tsan" and can_fix_addresses():
            command = ["setarch", "-R", *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


RUN = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
import cuda_cases
from pathlib import Path
from avis_stream.ops._cuda_api import CudaLibrary
library = CudaLibrary(Path(sys.argv[1]))
library.raw.emu_seed(int(sys.argv[3]))
library.raw.emu_threads(int(sys.argv[4]))
torch.save(cuda_cases.results(library, few=sys.argv[5] == "few"), sys.argv[2])
"""


def run_sanitized(sanitizer: str, target: Path, *, seed: int, threads: int, few: bool) -> dict[str, Tensor]:
    library = emulated.build(LIBRARY, sanitizer, *(["-DAVIS_FEW_KERNELS"] if few else []))
    done = under(sanitizer, RUN, str(library), str(target), str(seed), str(threads), "few" if few else "all")
    assert done.returncode == 0, done.stderr[:6000]
    found: dict[str, Tensor] = torch.load(target)
    return found


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_float32(sanitizer: str, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    found = run_sanitized(sanitizer, tmp_path / "results.pt", seed=3, threads=2, few=True)
    assert len(found) > 50
    assert_agree(found, {name: expected[name] for name in found})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizers_find_nothing(sanitizer: str, seed: int, tmp_path: Path, expected: dict[str, Tensor]) -> None:
    assert_agree(run_sanitized(sanitizer, tmp_path / "results.pt", seed=seed, threads=2, few=False), expected)


# --- the emulator itself: what is wrong must be found -----------------------------------------------------------------

FAULT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.error.restype = ctypes.c_char_p
malloc = ctypes.CDLL(None).malloc  # whose end a sanitizer watches
malloc.restype = ctypes.c_void_p
x = ctypes.cast(malloc(ctypes.c_size_t(512)), ctypes.POINTER(ctypes.c_float))
ctypes.memset(x, 0, 512)
library.seed(int(sys.argv[4]))
code = getattr(library, sys.argv[2])(x, int(sys.argv[3]))
print(library.error().decode() if code else "ended", *(x[i] for i in range(32)))
"""
CAUGHT = [
    ("missing_barrier", "tsan", "data race"),
    ("missing_syncwarp", "tsan", "data race"),
    ("shuffle_as_barrier", "tsan", "data race"),
    ("plain_add", "tsan", "data race"),
    ("shared_overrun", "asan", "heap-buffer-overflow"),
    ("global_overrun", "asan", "heap-buffer-overflow"),
    ("divergent_barrier", "plain", "__syncthreads() reached by 64 of 128 threads"),
    ("absent_lane", "plain", "a warp waits for a lane that never comes"),
    ("unwritten", "plain", "nan"),
    ("missing_barrier", "plain", "nan"),
]


@pytest.mark.parametrize(("fault", "sanitizer", "words"), CAUGHT)
def test_faults_are_caught(fault: str, sanitizer: str, words: str) -> None:
    library = str(emulated.build(FAULTS, sanitizer))
    wrong, right = (under(sanitizer, FAULT, library, fault, fixed, "0") for fixed in "01")
    assert words in wrong.stdout + wrong.stderr
    assert right.returncode == 0, right.stderr[:4000]
    assert right.stdout.startswith("ended")
    assert "nan" not in right.stdout


def test_another_order_of_lanes_shows_a_missing_syncwarp() -> None:
    """In ascending order lane 0 reads what lane 1 has not written yet; in some other order that goes well."""
    library = str(emulated.build(FAULTS))
    outs = {under("plain", FAULT, library, "missing_syncwarp", "0", seed).stdout for seed in "012"}
    assert len(outs) > 1
