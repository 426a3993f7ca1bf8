"""Runs the CUDA kernels on a GPU: against the CPU, in a captured graph, under compute-sanitizer, and against the clock.

    make gpu-test                                  # builds the library where nvcc is, then runs this
    python tools/gpu_test.py --library build/libavis_cuda.so --json out/gpu.json

Needs torch with CUDA, 2.10 or later, and libavis_cuda.so; of this package only `avis_stream/ops`, so that it also runs
where the other dependencies are not installed. With torch 2.13 and the compiled operators, these are tested besides the
plain C interface. Exit status 0: all is well; 1: something is not; 3: nothing to run on, and why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ops"), str(ROOT / "benchmarks")]
try:
    import avis_stream
except ModuleNotFoundError:  # a machine with torch alone: the operators need nothing else
    avis_stream = types.ModuleType("avis_stream")
    avis_stream.__path__ = [str(ROOT / "avis_stream")]
    sys.modules["avis_stream"] = avis_stream

import cuda_cases  # noqa: E402
import cuda_speed  # noqa: E402
import torch  # noqa: E402
from operator_cases import make_case, paged_arguments  # noqa: E402

from avis_stream import ops  # noqa: E402
from avis_stream.ops._cuda_api import CudaLibrary  # noqa: E402
from avis_stream.ops._library import has_kernel  # noqa: E402


def agrees(run: Any, device: str, few: bool) -> str:
    """Every kernel against the CPU."""
    expected = cuda_cases.results(torch.ops.avis, few=few)
    cuda_cases.assert_agree(cuda_cases.results(run, device=device, few=few), expected)
    return f"{len(expected)} results agree with the CPU"


def repeats(run: Any, device: str) -> str:
    """The same bits every time, but for the gradient of the value."""
    first, second = (cuda_cases.results(run, device=device, few=True) for _ in range(2))
    differ = [name for name, x in first.items() if not torch.equal(x, second[name])]
    wrong = [name for name in differ if not (name.startswith("msda") and name.endswith("grad0"))]
    assert not wrong, f"not the same bits twice: {wrong}"
    return "the same bits twice"


def replays(run: Any, device: str) -> str:
    """A captured graph sees page table, ring position and contents change."""
    q, k, v, pages, *rest = cuda_cases.to_device(paged_arguments(torch.float32, 32, initial=True), device)
    new = [torch.randn(2, 6, 3, 32, device=device) for _ in range(2)]
    slot = torch.tensor(0, dtype=torch.int32, device=device)
    caches = [k.cpu(), v.cpu()]
    run.range_attn_paged(q, k, v, pages, *rest)  # torch asks for a run before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.kv_write_(k, v, *new, slot)
        outs = run.range_attn_paged(q, k, v, pages, *rest)
        plan = run.range_attn(q, k, v, [0, 20, 50], [0, 60, 30, 130], rest[0], rest[-1])
    for step in range(3):
        slot.fill_(40 * step)
        table = torch.tensor([[10 * step, 60], [60, 60 + step], [100, 120], [125, 130]], dtype=torch.int32)
        pages.copy_(table)
        graph.replay()
        torch.ops.avis.kv_write_(*caches, *(x.cpu() for x in new), slot.cpu())
        host = [q.cpu(), *caches]
        others = [None if x is None else x.cpu() for x in rest[:-1]]
        wanted = [
            *torch.ops.avis.range_attn_paged(*host, table, *others, rest[-1]),
            *torch.ops.avis.range_attn(*host, [0, 20, 50], [0, 60, 30, 130], others[0], rest[-1]),
        ]
        for got, want in zip([*outs, *plan], wanted, strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-5)
    return "a graph replayed three times with other pages and slots"


def differentiates(device: str) -> str:
    """The registered operators under autograd and autocast, on another stream than the default one."""
    case = make_case()
    with torch.cuda.stream(torch.cuda.Stream(device)):
        value, shapes, loc, weight = cuda_cases.to_device(case.args(), device)
        leaves = [x.requires_grad_() for x in (value, loc, weight)]
        out = ops.ms_deform_attn(leaves[0], shapes, *leaves[1:])
        grads = torch.autograd.grad(out, leaves, case.grad.to(device))
        with torch.autocast("cuda", torch.bfloat16):
            assert ops.ms_deform_attn(*cuda_cases.to_device(case.args(), device)).dtype == torch.bfloat16
        torch.cuda.current_stream().synchronize()
    host = case.leaves()
    own = [x for x in host if isinstance(x, torch.Tensor)]
    wanted = torch.autograd.grad(ops.ms_deform_attn(*host), own, case.grad)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)
    return "gradients on a stream of its own, bfloat16 under autocast"


def sanitize(tool: str, library: Path) -> str:
    """The float32 kernels under a tool of compute-sanitizer."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    own = [sys.executable, __file__, "--library", str(library), "--only-results"]
    done = subprocess.run([*command, *own], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return f"compute-sanitizer {tool} finds nothing"


def find_library() -> Path | None:
    """The library as it was built before, or compiled for the GPU that is here; None without nvcc."""
    inside = Path("avis_stream", "ops", "libavis_cuda.so")
    for path in (ROOT / inside, ROOT / "build" / "cuda" / inside):
        if path.is_file():
            return path
    if not shutil.which("nvcc"):
        return None
    target = ROOT / "build" / "gpu-test" / "libavis_cuda.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-O3", "-arch=native", "-shared", "-cudart", "static"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc' / 'include'}", '-DAVIS_CUDA_ARCHS="native"']
    source = str(ROOT / "csrc" / "gpu" / "library.cu")
    subprocess.run(["nvcc", *flags, source, "-o", str(target)], check=True)
    return target


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="default: that of the package, of `make gate`, or built by nvcc")
    parser.add_argument("--device", default="cuda", help='"cpu" with an emulated library, to test this program')
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "gpu-test.json")
    parser.add_argument("--only-results", action="store_true", help="one pass in float32, as the sanitizer wants it")
    parser.add_argument("--tiny", action="store_true", help="benchmarks at toy sizes, a round each")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        why = "this torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU"
        remedy = "run it with one that has: make gpu-test GPU_PYTHON=..., torch with CUDA 2.10 or later"
        sys.stderr.write(f"nothing was run: {why} (torch {torch.__version__}); {remedy}\n")
        return 3
    path = options.library or find_library()
    if path is None or not path.is_file():
        missing = f"there is no {path}" if path else "there is no libavis_cuda.so, and no nvcc to build it"
        sys.stderr.write(f"nothing was run: {missing}; `make gate` builds it where the CUDA toolkit is\n")
        return 3
    os.environ.setdefault("AVIS_STREAM_REQUIRE", "")
    library = CudaLibrary(path)
    if options.only_results:
        cuda_cases.results(library, device=options.device, few=True)
        return 0

    tests: list[tuple[str, Callable[[], str]]] = [
        ("C interface", lambda: agrees(library, options.device, few=options.tiny)),
        ("C interface", lambda: repeats(library, options.device)),
    ]
    if on_gpu:
        tests.append(("C interface", lambda: replays(library, options.device)))
    if on_gpu and has_kernel("ms_deform_attn", "cuda"):
        tests += [
            ("operators", lambda: agrees(torch.ops.avis, options.device, few=False)),
            ("operators", lambda: replays(torch.ops.avis, options.device)),
            ("operators", lambda: differentiates(options.device)),
        ]
    else:
        sys.stdout.write(f"operators: left out, {ops.info().cuda}\n")
    if on_gpu and shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck", "synccheck"):
            tests.append(("sanitizer", partial(sanitize, tool, path)))
    else:
        sys.stdout.write("sanitizer: left out, no compute-sanitizer on the PATH\n")

    outcome: list[dict[str, str]] = []
    for what, test in tests:
        try:
            outcome.append({"what": what, "passed": "yes", "words": test()})
        except Exception as error:  # the rest is still worth knowing
            outcome.append({"what": what, "passed": "no", "words": f"{type(error).__name__}: {error}"})
        sys.stdout.write(f"{what}: {outcome[-1]['words']}\n")
    rows = cuda_speed.measure(library, options.device, tiny=options.tiny)
    for row in rows:
        sys.stdout.write(cuda_speed.words(row) + "\n")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(options.device), "tests": outcome, "benchmarks": rows}
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    failed = sum(test["passed"] == "no" for test in outcome)
    sys.stdout.write(f"{len(outcome) - failed} of {len(outcome)} tests passed; figures are in {options.json}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
