"""Kernels compiled at run time by NVRTC, from the same sources that libavis_cuda.so was built from.

For two purposes: GPUs that libavis_cuda.so has no code for, whose kernels `compile_kernels` brings; and the kernels of
`media.py`, which that library does not hold. All our kernels take one struct by value, so one launch serves them all.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from avis_stream.errors import NativeUnavailableError
from avis_stream.needs import install_extra
from avis_stream.ops._library import cuda_library_path

logger = logging.getLogger(__name__)
EXTRA = install_extra("cuda")
_PACKAGE = Path(__file__).parents[1]

OPERATOR_SOURCES = ("cache.cuh", "msda.cuh", "pages.cuh", "range_attn.cuh", "range_attn_backward.cuh", "upload.cuh")
MEDIA_SOURCES = ("frames.cuh", "logmel.cuh", "mask_bits.cuh")

Launcher = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
    ctypes.c_void_p,
)  # fmt: skip
"""`AvLauncher` of cuda_api.h."""


def unusable_reason() -> str:
    """Why nothing of this package can be used here; empty if it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f"cupy cannot be imported ({error}); {EXTRA}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a driver too old, none at all, a device in a bad state: cupy's words are the best
        return f"cupy finds no usable GPU: {error}"
    return "" if count else "cupy finds no GPU"


def require_gpu() -> Any:
    """The module cupy.

    Raises:
        NativeUnavailableError: It is not there, or there is no usable device.
    """
    if reason := unusable_reason():
        raise NativeUnavailableError(f"this needs a GPU and cupy: {reason}")
    return importlib.import_module("cupy")


def source_folders() -> tuple[Path, Path]:
    """Where the kernels' sources are, and their headers: in an installed package, or in the repository.

    Raises:
        NativeUnavailableError: In neither.
    """
    for root in (_PACKAGE / "ops" / "csrc", _PACKAGE.parent / "csrc"):
        if (root / "gpu" / "compat.h").is_file():
            return root / "gpu", root / "include"
    raise NativeUnavailableError(
        "the kernels' sources are not in this installation; install with AVIS_STREAM_BUILD=cpu, which brings them"
    )


def program(sources: tuple[str, ...]) -> str:
    """One source that holds all kernels of `sources`."""
    # Names come as g++ says them, from inside the namespace.
    return "".join(f'#include "{name}"\n' for name in sources) + "using namespace avis::gpu;\n"


def options() -> tuple[str, ...]:
    """What NVRTC is told."""
    return ("-std=c++20", *(f"-I{folder}" for folder in source_folders()))


def qualified(name: str) -> str:
    """A kernel's name without the namespace, as g++ and nvcc differ in whether they write it."""
    name = name.replace("avis::gpu::", "").replace("short unsigned int", "unsigned short")
    return re.sub(r"long long unsigned int", "unsigned long long", name)


def compile_program(sources: tuple[str, ...], names: tuple[str, ...], arch: str) -> tuple[bytes, dict[str, str]]:
    """Machine code for an architecture such as "75", and what each kernel is called in it. Needs NVRTC, but no GPU.

    What `Kernels` asks of cupy, without its cache, which asks the device for its architecture.

    Raises:
        NativeUnavailableError: cupy or NVRTC is missing, or a source does not compile; the message has NVRTC's words.
    """
    try:
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        made = nvrtc.createProgram(program(sources), "avis_stream.cu", (), ())
    except (ImportError, RuntimeError, OSError) as error:
        raise NativeUnavailableError(f"no NVRTC: {error}; {EXTRA}") from error
    for name in names:
        nvrtc.addNameExpression(made, name)
    try:
        nvrtc.compileProgram(made, (*options(), f"-arch=sm_{arch}"))
    except nvrtc.NVRTCError as error:
        raise NativeUnavailableError(f"{error}: {nvrtc.getProgramLog(made)}") from error
    return nvrtc.getCUBIN(made), {name: nvrtc.getLoweredName(made, name) for name in names}


class Kernels:
    """Kernels of some sources on the current device; each is compiled when it is first asked for."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        self._cupy = require_gpu()
        self._driver = importlib.import_module("cupy_backends.cuda.api.driver")
        self._sources = sources
        self._functions: dict[tuple[int, str], Any] = {}

    def _function(self, name: str) -> Any:
        device = int(self._cupy.cuda.runtime.getDevice())
        if (device, name) not in self._functions:
            module = self._cupy.RawModule(code=program(self._sources), options=options(), name_expressions=[name])
            self._functions[device, name] = module.get_function(name)
        return self._functions[device, name]

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared: int, args: int, stream: int) -> None:
        """Launches one kernel.

        Args:
            name: As in C++, without the namespace.
            grid: Blocks in x, y and z.
            threads: In a block.
            shared: Bytes of dynamic shared memory.
            args: Address of the struct that the kernel takes.
            stream: Native handle of a CUDA stream.
        """
        kernel = self._function(name)
        pointers = (ctypes.c_void_p * 1)(args)
        self._driver.launchKernel(
            kernel.kernel.ptr, *grid, threads, 1, 1, shared, stream, ctypes.addressof(pointers), 0
        )


_launcher: Any = None
"""Keeps what libavis_cuda.so calls alive."""


def compile_kernels(library: ctypes.CDLL | None = None) -> None:
    """Lets the CUDA operators compile each kernel for the GPU that is here, when it is first used.

    For GPUs that libavis_cuda.so was not built for; "no kernel image is available" is what they say otherwise. A kernel
    takes a second or two the first time; cupy keeps it on disk.

    Args:
        library: Another build of libavis_cuda.so than the one beside the operators.
    Raises:
        NativeUnavailableError: cupy, a usable GPU, the sources, or libavis_cuda.so is missing.
    """
    global _launcher
    kernels = Kernels(OPERATOR_SOURCES)
    target = _operator_library() if library is None else library

    def launch(name: bytes, dims: Any, shared: int, args: int, size: int, stream: int | None) -> int:
        try:
            kernels.launch(qualified(name.decode()), tuple(dims[:3]), dims[3], shared, args, stream or 0)
        except Exception as error:  # a C function calls this: there is nobody to raise to
            logger.error("%s: %s", name.decode(), error)
            return -1
        return 0

    _launcher = Launcher(launch)
    target.av_set_launcher(_launcher)


@lru_cache(maxsize=1)
def _operator_library() -> ctypes.CDLL:
    path = cuda_library_path()
    if path is None:
        raise NativeUnavailableError("there is no libavis_cuda.so; install with AVIS_STREAM_BUILD=cuda where nvcc is")
    return ctypes.CDLL(str(path))  # the same that the operators hold: loading it twice gives it once
