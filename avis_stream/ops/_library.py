"""The `avis` operator namespace: finds and loads the compiled kernels, and remembers why it could not.

Python defines every schema, fake, gradient and reference; the compiled library only adds implementations for a
device. So every operator exists without it, and the dispatcher chooses: no file here asks which device a tensor is on.
A reference runs only where no native kernel is registered, which is why the references themselves report it.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avis_stream.errors import NativeUnavailableError
from avis_stream.needs import Need, required

LIBRARY = torch.library.Library("avis", "DEF")
"""Keeps the registrations alive; its lifetime is the process's."""

OPERATORS: list[str] = []
"""Names of all operators that have a native form, in the order of their definition."""

_NATIVE_TORCH = (2, 13)
"""The stable ABI that the kernels are written against starts here."""

_FOLDER = Path(__file__).parent
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_warned: set[str] = set()


class ReferenceKernelWarning(UserWarning):
    """An operator runs as plain PyTorch, as no native kernel is there; the message says why. Given once a device."""


def define(schema: str, *, has_native: bool = True) -> None:
    """Adds an operator to the namespace; `has_native` operators are listed by `info()`."""
    LIBRARY.define(schema)
    if has_native:
        OPERATORS.append(schema.partition("(")[0])


def implement(name: str, reference: Callable[..., Any], *, quiet: bool = False) -> None:
    """Registers the plain PyTorch form for every device that has no kernel of its own.

    The dispatcher reaches it only in that case, so it warns (or raises, see `AVIS_STREAM_REQUIRE`) before it computes.
    `quiet` is for operators that are put together from others, which will speak for themselves. Autocast, which has had
    its say before or, in a backward, has none, leaves the reference's own products alone.
    """

    def fall_back(*args: Any) -> Any:
        if not quiet:
            note_fallback(name, next(arg.device.type for arg in args if isinstance(arg, torch.Tensor)))
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return reference(*args)

    LIBRARY.impl(name, fall_back, "CompositeExplicitAutograd")


def note_fallback(name: str, device: str) -> None:
    """Says once per device that the reference runs.

    Raises:
        NativeUnavailableError: `AVIS_STREAM_REQUIRE` lists `native`, or `cuda` and the device is one.
    """
    # A meta tensor is asked for its shape only; there is nothing to be slow at.
    if device == "meta":
        return
    reason = missing_reason(device)
    demand: Need | None = "native" if required("native") else None
    if device == "cuda" and required("cuda"):
        demand = "cuda"
    if demand is not None:
        raise NativeUnavailableError(f"AVIS_STREAM_REQUIRE={demand}, but avis::{name} has no {device} kernel: {reason}")
    if device not in _warned:
        _warned.add(device)
        warnings.warn(
            f"avis::{name} and its like run as plain PyTorch on {device}, correct but slower: {reason}",
            ReferenceKernelWarning,
            stacklevel=4,
        )


def _library_path() -> Path:
    """The library built with the package; tests put another build of it in its place by the environment."""
    return Path(os.environ.get("AVIS_STREAM_OPS_LIBRARY", _FOLDER / "libavis_ops.so"))


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Loads the compiled operators; the second value says why there are none, empty when all is well."""
    path = _library_path()
    if not path.is_file():
        return None, f"{path.name} was not built; install with AVIS_STREAM_BUILD=cpu and a C++ compiler"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _NATIVE_TORCH:
        wanted = ".".join(map(str, _NATIVE_TORCH))
        return None, f"the native kernels need torch {wanted} or later, this is {torch.__version__}"
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path)), ""
    except OSError as error:  # wrong machine, wrong torch, damaged file: the loader's own words are the best
        return None, f"{path.name} is there but does not load: {error}"


_native, _why_not = _load()

_ISAS = ("avx512", "avx2", "neon", "base")
if (_asked := os.environ.get("AVIS_STREAM_ISA")) is not None and _asked not in _ISAS:
    warnings.warn(
        f"AVIS_STREAM_ISA must be one of {', '.join(_ISAS)}, got {_asked!r}: the best that this machine runs is used",
        stacklevel=1,
    )


def native_library() -> ctypes.CDLL | None:
    """The loaded operator library, for the few plain C calls that are no operators; None without it."""
    return _native


def has_kernel(name: str, device: str) -> bool:
    """Whether `avis::name` has a native kernel for `device` ("cpu" or "cuda")."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"avis::{name}", _DEVICES[device]))


def missing_reason(device: str) -> str:
    """Why an operator has no native kernel on `device`."""
    if _why_not:
        return _why_not
    if device == "cuda":
        return f"libavis_cuda.so is {_cuda_status()}"
    return f"this build has no kernel of it for {device}"


def _cuda_status() -> str:
    """Where the library of CUDA kernels is and what it was compiled for, or why it is not used."""
    if _native is None:
        return "not loaded: there is no libavis_ops.so to load it"
    if not hasattr(_native, "avis_cuda_status"):
        return "not looked for: libavis_ops.so is older than this package; build it anew (make setup)"
    _native.avis_cuda_status.restype = ctypes.c_char_p
    return str(_native.avis_cuda_status().decode())


def cuda_library_path() -> Path | None:
    """The library of CUDA kernels that the operators use; None if they use none."""
    if _native is None or not hasattr(_native, "avis_cuda_usable") or not _native.avis_cuda_usable():
        return None
    return Path(os.environ.get("AVIS_STREAM_CUDA_LIBRARY", _FOLDER / "libavis_cuda.so"))


@dataclass(frozen=True, slots=True)
class OpsInfo:
    """Which operators are native, on which device, and why others are not."""

    operators: dict[str, dict[str, str]]
    """By operator, then device: `"native"`, or `"reference: <reason>"`."""
    isa: str
    """Instruction set the CPU kernels run with, `AVIS_STREAM_ISA` taken into account; `"none"` without kernels."""
    library: str
    """Path of the operator library, or why there is none."""
    cuda: str
    """Where the library of CUDA kernels is and what it was compiled for, or why it is not used."""

    def __str__(self) -> str:
        width = max(map(len, self.operators), default=0)
        why: dict[str, None] = {}
        """Each reason once, in order."""
        rows = []
        for name, by_device in self.operators.items():
            told = []
            for device, state in by_device.items():
                word, _, reason = state.partition(": ")
                told.append(f"{device}: {word}")
                why |= {f"reference on {device}: {reason}": None} if reason else {}
            rows.append(f"{name:<{width}}  {'; '.join(told)}")
        return "\n".join([f"library: {self.library}", f"isa: {self.isa}", f"cuda: {self.cuda}", *rows, *why])


def info() -> OpsInfo:
    """Says per operator and device whether it is native or the reference, and why; the ISA; the CUDA library's state.

    Asks no device anything.
    """

    def state(name: str, device: str) -> str:
        return "native" if has_kernel(name, device) else f"reference: {missing_reason(device)}"

    isa = "none"
    if _native is not None:
        _native.avis_isa.restype = ctypes.c_char_p
        isa = _native.avis_isa().decode()
    return OpsInfo(
        operators={name: {device: state(name, device) for device in _DEVICES} for name in OPERATORS},
        isa=isa,
        library=str(_library_path()) if _native is not None else _why_not,
        cuda=_cuda_status(),
    )


def require_native(device: str = "cpu") -> None:
    """Raises unless every operator has a native kernel on `device`.

    Raises:
        NativeUnavailableError: Names the operators that have none, and why.
    """
    missing = [name for name in OPERATORS if not has_kernel(name, device)]
    if missing:
        raise NativeUnavailableError(f"no native {device} kernel for {', '.join(missing)}: {missing_reason(device)}")
