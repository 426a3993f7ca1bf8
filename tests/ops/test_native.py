"""What only the compiled kernels have: instruction sets, memory that ends where it ends, sanitizers."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_cases import fused_arguments, make_case, paged_arguments, relative_error
from torch import Tensor

from avis_stream import ops
from avis_stream.ops._library import native_library
from avis_stream.ops.range_attn import flat_ints

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    native_library() is None, reason="no compiled operators: AVIS_STREAM_BUILD=cpu builds them"
)


def results() -> dict[str, Tensor]:
    """Every kernel on a few shapes that take its different paths, from fixed seeds."""
    torch.manual_seed(5)
    found: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for d in (5, 16, 32, 64):
            case = make_case(d=d, m=3)
            value, shapes, loc, weight = case.args()
            if dtype == torch.float64:
                value, loc, weight, case.grad = value.double(), loc.double(), weight.double(), case.grad.double()
            value = value.to(dtype)
            fused = [x.to(dtype) if i == 0 else x for i, x in enumerate(fused_arguments(d=d, m=3))]
            if dtype == torch.float64:
                fused[2:] = [x.double() for x in fused[2:]]
            found[f"fused {dtype} D={d} out"] = torch.ops.avis.ms_deform_attn_fused(*fused)
            name = f"msda {dtype} D={d}"
            found[f"{name} out"] = torch.ops.avis.ms_deform_attn(value, shapes, loc, weight)
            grads = torch.ops.avis.ms_deform_attn_backward(case.grad.to(dtype), value, shapes, loc, weight, [True] * 3)
            found |= {f"{name} grad{i}": g for i, g in enumerate(grads)}
        for d in (5, 32):
            plan = ops.rolling_plan(9, 3, 7, 11, sink_frames=2)
            q, k, v = (torch.randn(2, n, 2, d).to(dtype) for n in (63, 99, 99))
            bias = torch.randn(2, 99).to(torch.promote_types(dtype, torch.float32))
            bias[:, ::3] = -torch.inf
            args = list(plan.q_starts), flat_ints(plan.k_ranges), bias, d**-0.5
            out, lse = torch.ops.avis.range_attn(q, k, v, *args)
            name = f"range {dtype} D={d}"
            found[f"{name} out"], found[f"{name} lse"] = out, lse
            grads = torch.ops.avis.range_attn_backward(torch.randn_like(q), None, q, k, v, out, lse, *args, [True] * 4)
            found |= {f"{name} grad{i}": g for i, g in enumerate(grads)}
            for initial in (False, True):
                outs = torch.ops.avis.range_attn_paged(*paged_arguments(dtype, d, initial))
                found |= {f"paged {dtype} D={d} {initial} {i}": x for i, x in enumerate(outs)}
    broken = torch.full((1, 1), 0x7FC00001, dtype=torch.int32).view(torch.float32)  # a NaN that carries something
    for name, bias in (("one", torch.cat([torch.zeros(1, 30), broken], 1)), ("all", broken.expand(1, 31))):
        q, k, v = (torch.randn(1, n, 1, 32) for n in (3, 31, 31))
        plan = ops.AttentionPlan((0, 3), (((0, 31),),))
        groups = list(plan.q_starts), flat_ints(plan.k_ranges)
        out, lse = torch.ops.avis.range_attn(q, k, v, *groups, bias.contiguous(), 1.0)
        assert out.isnan().all(), "NaN stays"
        found |= {f"NaN in {name} out": out.isnan(), f"NaN in {name} lse": lse.isnan()}
    return found


def run_elsewhere(path: Path, isa: str, **environment: str) -> dict[str, Tensor]:
    """`results` from a process of its own."""
    env = os.environ | {"AVIS_STREAM_ISA": isa} | environment
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAVE, str(path), isa],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    loaded: dict[str, Tensor] = torch.load(path)
    return loaded


def assert_agree(other: dict[str, Tensor], mine: dict[str, Tensor]) -> None:
    assert other.keys() == mine.keys()
    for name, want in mine.items():
        # They round at different places: fused multiply-add or not, sums in another order. A backward starts from a
        # rounded output, so beside half storage its float32 results differ as well.
        tolerance = 2**-7 if "bfloat16" in name else 2**-10 if "float16" in name else 1e-5
        got, want = other[name].double(), want.double()
        assert torch.equal(got.isinf(), want.isinf()), name
        finite = ~want.isinf()
        assert relative_error(got[finite], want[finite]) < tolerance, name


def build(folder: Path, *options: str, target: str = "avis_ops") -> Path:
    """Compiles the operators into `folder` with other options; the path of the library."""
    root = HERE.parents[1]
    package = folder / "avis_stream"
    configure = ["cmake", "-S", str(root), "-B", str(folder / "build"), "-G", "Ninja", f"-DAVIS_PACKAGE_DIR={package}"]
    for command in (
        [*configure, f"-DPython_EXECUTABLE={sys.executable}", *options],
        ["cmake", "--build", str(folder / "build"), "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return package / "ops" / f"lib{target}.so"


SAVE = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
import test_native
from avis_stream import ops
assert ops.info().isa == sys.argv[2], ops.info().isa
torch.save(test_native.results(), sys.argv[1])
"""


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_instruction_sets_agree(isa: str, tmp_path: Path) -> None:
    from avis_stream import _host

    if isa == "avx512" and ops.info().isa != "avx512":
        missing = [name for name, there in _host.cpu_features().items() if name.startswith("avx512") and not there]
        pytest.skip(f"this machine has no {', '.join(missing)}; see test_wide_vectors_agree")
    if isa == "avx2" and not _host.cpu_features().get("avx2"):
        pytest.skip("this machine has no avx2")
    assert_agree(run_elsewhere(tmp_path / "results.pt", isa), results())


# What clang 14 takes; later versions and g++ take more.
NAMED_FEATURES = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16"}


def test_the_compiler_is_asked_for_no_feature_whose_name_clang_14_refuses() -> None:
    sources = [path for path in (HERE.parents[1] / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    asked = {name for path in sources for name in re.findall(r'__builtin_cpu_supports\("(\w+)"\)', path.read_text())}
    assert "avx2" in asked
    assert asked <= NAMED_FEATURES


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_features_are_those_that_linux_tells() -> None:
    from avis_stream import _host

    told = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if told is None:
        pytest.skip("not an x86 machine")
    flags = {name.replace("_", "") for name in told[1].split()}
    assert {name: name in flags for name in _host.cpu_features()} == _host.cpu_features()


@pytest.mark.slow
def test_wide_vectors_agree(tmp_path: Path) -> None:
    """The AVX-512 kernels, with their 16 lanes, where there is no AVX-512: the compiler splits each vector in two.

    What remains untested without the hardware is the compiler's own AVX-512 code and the half conversion intrinsic.
    """
    library = build(tmp_path, "-DAVIS_EMULATE_AVX512=ON")
    assert_agree(run_elsewhere(tmp_path / "results.pt", "avx512", AVIS_STREAM_OPS_LIBRARY=str(library)), results())


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_sanitizers(isa: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """All kernels under AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at the first finding."""
    folder = tmp_path_factory.getbasetemp() / "sanitized"
    library = build(folder, "-DAVIS_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        "AVIS_STREAM_OPS_LIBRARY": str(library),
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks at exit
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    assert_agree(run_elsewhere(tmp_path / "results.pt", isa, **environment), results())


def test_isa_cap_is_at_most() -> None:
    code = "from avis_stream import ops; print(ops.info().isa)"
    for cap, allowed in (("base", {"base"}), ("avx2", {"base", "avx2"}), ("nonsense", {ops.info().isa})):
        env = os.environ | {"AVIS_STREAM_ISA": cap}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() in allowed


# --- guard pages ------------------------------------------------------------------------------------------------------


class Fenced:
    """Memory between two pages that nobody may touch."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []

    def place(self, x: Tensor, end: bool) -> Tensor:
        """A copy of `x` whose last byte (or first, unless `end`) is the last (first) readable one."""
        page = mmap.PAGESIZE
        size = x.numel() * x.element_size()
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        self.maps.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for fence in (address, address + page + room):
            assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
        offset = page + (room - size if end else 0)
        copy = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=offset).view(x.dtype).view(x.shape)
        return copy.copy_(x)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes",
    [{"m": 8, "q": 9}, {"d": 16}, {"d": 5, "m": 1}, {"m": 1, "p": 1, "shapes": (2, 3), "q": 1}, {"m": 3, "p": 3}],
    ids=str,
)
def test_deformable_attention_reads_no_byte_too_far(sizes: dict[str, Any], dtype: torch.dtype, end: bool) -> None:
    case, fence = make_case(**sizes), Fenced()
    value, grad = case.value.to(dtype), case.grad.to(dtype)
    fenced = [fence.place(x, end) for x in (value, case.loc, case.weight, grad)]
    args = (fenced[0], case.shapes, fenced[1], fenced[2])
    out = torch.ops.avis.ms_deform_attn(*args)
    assert torch.equal(out, torch.ops.avis.ms_deform_attn(value, case.shapes, case.loc, case.weight))
    grads = torch.ops.avis.ms_deform_attn_backward(fenced[3], *args, [True] * 3)
    want = torch.ops.avis.ms_deform_attn_backward(grad, value, case.shapes, case.loc, case.weight, [True] * 3)
    assert all(torch.equal(a, b) for a, b in zip(grads, want, strict=True))


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "keys", "d"), [(1, 1, 1), (7, 13, 5), (50, 37, 32), (6, 300, 32), (3, 1100, 16)])
def test_range_attention_reads_no_byte_too_far(queries: int, keys: int, d: int, dtype: torch.dtype, end: bool) -> None:
    fence = Fenced()
    q, k, v = (torch.randn(1, n, 2, d).to(dtype) for n in (queries, keys, keys))
    bias, grad = torch.randn(1, keys), torch.randn_like(q)
    plan = [0, queries], [0, keys]

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
        out, lse = torch.ops.avis.range_attn(q, k, v, *plan, bias, 0.5)
        grads = torch.ops.avis.range_attn_backward(grad, None, q, k, v, out, lse, *plan, bias, 0.5, [True] * 4)
        return [out, lse, *grads]

    tensors = (q, k, v, bias, grad)
    fenced = run(*(fence.place(x, end) for x in tensors))
    assert all(torch.equal(a, b) for a, b in zip(fenced, run(*tensors), strict=True))


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [{"m": 8, "q": 9}, {"d": 5, "m": 1}, {"m": 1, "p": 1, "shapes": (2, 3), "q": 1}])
def test_fused_attention_reads_no_byte_too_far(sizes: dict[str, Any], dtype: torch.dtype, end: bool) -> None:
    fence = Fenced()
    value, shapes, *rest = fused_arguments(**sizes)
    value = value.to(dtype)
    fenced = torch.ops.avis.ms_deform_attn_fused(fence.place(value, end), shapes, *(fence.place(x, end) for x in rest))
    assert torch.equal(fenced, torch.ops.avis.ms_deform_attn_fused(value, shapes, *rest))


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 5, 32])
def test_paged_attention_reads_no_byte_too_far(d: int, dtype: torch.dtype, end: bool) -> None:
    fence = Fenced()
    args = paged_arguments(dtype, d, initial=True)
    fenced = [fence.place(x, end) if isinstance(x, Tensor) else x for x in args]
    for got, want in zip(torch.ops.avis.range_attn_paged(*fenced), torch.ops.avis.range_attn_paged(*args), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("end", [True, False])
def test_cache_is_written_to_its_last_byte_and_no_further(end: bool) -> None:
    fence = Fenced()
    caches = [fence.place(torch.zeros(1, 9, 2, 5), end) for _ in range(2)]
    new = [fence.place(torch.randn(1, 4, 2, 5), end) for _ in range(2)]
    torch.ops.avis.kv_write_(*caches, *new, torch.tensor(5 if end else 0, dtype=torch.int32))
    for cache, x in zip(caches, new, strict=True):
        assert torch.equal(cache[:, 5:] if end else cache[:, :4], x)
        assert not (cache[:, :5] if end else cache[:, 4:]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    paged, fused = paged_arguments(dtype, 32, initial=True), list(fused_arguments(m=8, q=700))
    fused[0] = fused[0].to(dtype)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append([*torch.ops.avis.range_attn_paged(*paged), torch.ops.avis.ms_deform_attn_fused(*fused)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_page_is_what_it_is_alone() -> None:
    """Bit for bit: a partial result does not depend on the other pages, nor on the other queries in the call."""
    q, k, v, pages, *rest = paged_arguments(torch.float32, 32, initial=False)
    _, _, page_out, page_lse = torch.ops.avis.range_attn_paged(q, k, v, pages, *rest)
    for i in range(len(pages)):
        _, _, out, lse = torch.ops.avis.range_attn_paged(q[:, 7:20].contiguous(), k, v, pages[i : i + 1], *rest)
        assert torch.equal(out[0], page_out[i, :, 7:20])
        assert torch.equal(lse[0], page_lse[i, ..., 7:20])


def test_paged_and_cache_refuse_what_does_not_fit() -> None:
    q, k, v, pages, *rest = paged_arguments(torch.float32, 32, initial=True)
    with pytest.raises(RuntimeError, match="page_ranges must lie within"):
        torch.ops.avis.range_attn_paged(q, k, v, pages + 1, *rest)
    with pytest.raises(RuntimeError, match="page_ranges must be int32"):
        torch.ops.avis.range_attn_paged(q, k, v, pages.long(), *rest)
    with pytest.raises(RuntimeError, match="got only one of them"):
        torch.ops.avis.range_attn_paged(q, k, v, pages, rest[0], None, rest[2], 1.0)
    slot = torch.tensor(121, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="must lie within 130 slots, got 10 and 10 from 121 on"):
        torch.ops.avis.kv_write_(k, v, k[:, :10].clone(), v[:, :10].clone(), slot)


def test_the_fence_holds() -> None:
    """The guard pages do what the tests above rely on: one element too far kills the process."""
    code = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import ctypes, torch
from test_native import Fenced
x = Fenced().place(torch.zeros(1000), end=True)
ctypes.c_float.from_address(x.data_ptr() + 4 * 999).value
print("inside", flush=True)
ctypes.c_float.from_address(x.data_ptr() + 4 * 1000).value
print("outside", flush=True)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "inside" in done.stdout
    assert "outside" not in done.stdout
