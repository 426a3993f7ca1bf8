"""What all operators share in autograd and autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avis_stream.ops._library import LIBRARY


def forbid_double_backward(name: str) -> None:
    """Makes differentiating through `avis::name`, itself a backward, an error instead of a silent zero."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"avis::{name} cannot be differentiated again; second derivatives are not implemented"
        )

    torch.library.register_autograd(f"avis::{name}", refuse, lib=LIBRARY)


def wants_fixed_order(x: Tensor) -> bool:
    """Whether a sum by atomics, as CUDA kernels make it, must be replaced by one with a fixed order."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def register_autocast(name: str, cast: Callable[..., tuple[Any, ...]]) -> None:
    """Registers how arguments are cast when autocast is on, on the CPU and on CUDA.

    `torch.library.register_autocast` casts every floating tensor alike; our operators keep coordinates and softmax
    statistics in float32, so each says for itself: `cast(dtype, *args)` returns the arguments to call with.
    """
    for device in ("cpu", "cuda"):
        key = f"Autocast{device.upper()}"
        excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def with_autocast(*args: Any, device: str = device, excluded: Any = excluded) -> Any:
            # Below the autocast key, or the call would come straight back here.
            with torch._C._ExcludeDispatchKeyGuard(excluded):
                operator = getattr(torch.ops.avis, name)
                return operator(*cast(torch.get_autocast_dtype(device), *args))

        LIBRARY.impl(name, with_autocast, key)


def lower(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in the autocast dtype; float64 is left alone, as PyTorch does."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor`, widened to float32 if it is a half type."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
