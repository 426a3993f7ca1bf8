"""Kernels compiled at run time: what is said where they cannot be, and all of the way to the device but the device."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from avis_stream import gpu
from avis_stream.errors import NativeUnavailableError
from avis_stream.gpu import runtime
from avis_stream.ops._cuda_api import CudaLibrary

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "ops"))
import emulated  # noqa: E402
from operator_cases import make_case  # noqa: E402

# --- without a GPU, and without cupy ----------------------------------------------------------------------------------


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'cupy" in gpu.unusable_reason() or "pip install cupy" in gpu.unusable_reason()
    with pytest.raises(NativeUnavailableError, match="this needs a GPU and cupy: cupy cannot be imported"):
        gpu.compile_kernels()


def test_without_a_device_cupys_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver: the driver is too old")

    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=no_driver)))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert gpu.unusable_reason() == "cupy finds no usable GPU: cudaErrorInsufficientDriver: the driver is too old"
    fake.cuda.runtime.getDeviceCount = lambda: 0
    assert gpu.unusable_reason() == "cupy finds no GPU"
    fake.cuda.runtime.getDeviceCount = lambda: 1
    assert gpu.unusable_reason() == ""


# --- NVRTC: the same sources compile at run time, for a GPU that nobody built for -------------------------------------

TURING = "75"
OPERATOR_NAMES = (
    "msda_forward<float, 32, 12>",
    "msda_backward<Float16, 0>",
    "range_forward<BFloat16, 64, 2, true>",
    "range_dkv<float, 32, true>",
    "merge_pages<Float16, 4>",
    "write_cache<unsigned short>",
    "upload",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "names"),
    [(runtime.OPERATOR_SOURCES, OPERATOR_NAMES), (runtime.MEDIA_SOURCES, ("network_input", "log_mel", "pack_masks"))],
    ids=["operators", "media"],
)
def test_nvrtc_compiles_the_kernels(sources: tuple[str, ...], names: tuple[str, ...]) -> None:
    """To machine code; running it takes the device. The names are those that the launcher is given."""
    try:
        code, mangled = runtime.compile_program(sources, names, TURING)
    except NativeUnavailableError as error:
        if not str(error).startswith("no NVRTC"):
            raise
        pytest.skip(str(error))
    assert code[:4] == b"\x7fELF"
    assert all(mangled[name].encode() in code for name in names)


def test_names_are_said_one_way() -> None:
    """g++ and nvcc spell them differently."""
    assert runtime.qualified("avis::gpu::write_cache<short unsigned int>") == "write_cache<unsigned short>"
    assert runtime.qualified("write_cache<long long unsigned int>") == "write_cache<unsigned long long>"
    assert (
        runtime.qualified("range_forward<avis::gpu::BFloat16, 32, 2, true>") == "range_forward<BFloat16, 32, 2, true>"
    )


def test_sources_are_found_in_the_repository() -> None:
    kernels, headers = runtime.source_folders()
    assert all((kernels / name).is_file() for name in (*runtime.OPERATOR_SOURCES, *runtime.MEDIA_SOURCES))
    assert (headers / "avis" / "cuda_api.h").is_file()


# --- the way from an operator to a kernel of ours ---------------------------------------------------------------------


@pytest.fixture
def library() -> Iterator[CudaLibrary]:
    if emulated.compiler() is None:
        pytest.skip("the emulator needs g++")
    opened = CudaLibrary(emulated.build(ROOT / "csrc" / "emu" / "library.cpp"))
    yield opened
    opened.raw.av_set_launcher(None)


class Recorder:
    """In the place of `Kernels`, which need a device."""

    launches: list[tuple[Any, ...]] = []  # noqa: RUF012 - the class is made anew in each test

    def __init__(self, sources: tuple[str, ...]) -> None:
        self.sources = sources

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared: int, args: int, stream: int) -> None:
        images = ctypes.c_int64.from_address(args + 10 * ctypes.sizeof(ctypes.c_void_p)).value
        self.launches.append((name, grid, threads, shared, images, stream))


def test_an_operator_launches_through_us(library: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The struct arrives whole: its eleventh field is the number of images."""
    monkeypatch.setattr(runtime, "Kernels", type("Fresh", (Recorder,), {"launches": []}))
    gpu.compile_kernels(library.raw)
    library.ms_deform_attn(*make_case(n=3).args())
    ((name, grid, threads, shared, images, stream),) = runtime.Kernels.launches  # type: ignore[attr-defined]
    assert name == "msda_forward<float, 32, 12>"
    assert grid == (5, 1, 1)  # 3 images * 13 queries * 2 heads, 16 a block
    assert (threads, shared, images, stream) == (128, 16 * 13 * 32, 3, 0)


def test_a_kernel_that_does_not_compile_is_an_error(
    library: CudaLibrary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def launch(self, *args: Any) -> None:
            raise RuntimeError("NVRTC says no")

    monkeypatch.setattr(runtime, "Kernels", Broken)
    gpu.compile_kernels(library.raw)
    with pytest.raises(RuntimeError, match="av_msda_forward failed"):
        library.ms_deform_attn(*make_case().args())
    assert "NVRTC says no" in caplog.text


def test_without_the_library_there_is_nothing_to_compile_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Kernels", Recorder)
    monkeypatch.setattr(runtime, "cuda_library_path", lambda: None)
    runtime._operator_library.cache_clear()
    with pytest.raises(NativeUnavailableError, match=r"there is no libavis_cuda.so; install with"):
        gpu.compile_kernels()
