"""The kernels of libavis_cuda.so through their plain C interface, by ctypes: no compiled operator library is needed.

`CudaLibrary` has the operators of `torch.ops.avis` as methods, same arguments, same results. The registered operators
(`csrc/ops/cuda_*.cpp`) are the fast way and need torch 2.13; this is for older ones, for `make gpu-test`, and for the
emulated build of the same library, whose "device" is the CPU. The structs mirror `csrc/include/avis/cuda_api.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avis_stream.checks import describe
from avis_stream.errors import NativeUnavailableError, ShapeError
from avis_stream.ops.ms_deform_attn import check_arguments as check_msda
from avis_stream.ops.ms_deform_attn_fused import check_arguments as check_fused
from avis_stream.ops.range_attn import check_arguments as check_range
from avis_stream.ops.range_attn_paged import check_arguments as check_paged
from avis_stream.ops.range_attn_paged import check_write

ABI = 1
MAX_LEVELS = 8
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _fields(text: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in text.split()]


class Msda(Structure):
    """`AvMsda`."""

    _fields_ = [
        *_fields("value loc weight ref out grad_out grad_value grad_loc grad_weight grad_ref", c_void_p),
        *_fields("images tokens queries", c_int64),
        *_fields("heads channels levels points", c_int32),
        ("sizes", c_int32 * (2 * MAX_LEVELS)),
        ("storage", c_int32),
    ]


class Tokens(Structure):
    """`AvTokens`: a [B, tokens, H, D] tensor with contiguous channels."""

    _fields_ = [("data", c_void_p), *_fields("batch_stride token_stride head_stride", c_int64)]

    @classmethod
    def of(cls, x: Tensor) -> Tokens:
        return cls(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


class Groups(Structure):
    """`AvGroups`."""

    _fields_ = [*_fields("q_starts k_ranges", POINTER(c_int64)), *_fields("groups per_group", c_int64)]


class Range(Structure):
    """`AvRange`."""

    _fields_ = [
        *_fields("q k v", Tokens),
        *_fields("key_bias out lse", c_void_p),
        *_fields("batch heads queries keys channels storage", c_int32),
        ("scale", c_float),
        ("grad_out", Tokens),
        *_fields("grad_lse row dq dk dv dbias", c_void_p),
    ]


class Pages(Structure):
    """`AvPages`."""

    _fields_ = [
        *_fields("ranges init_out init_lse page_out page_lse", c_void_p),
        ("pages", c_int32),
        *_fields("grad_page_out grad_page_lse part_grad grad_init_out grad_init_lse", c_void_p),
    ]


class CacheWrite(Structure):
    """`AvCacheWrite`."""

    _fields_ = [
        *_fields("cache tokens", Tokens),
        ("slot", c_void_p),
        *_fields("batch heads slots count channels bytes", c_int32),
    ]


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None or x.numel() == 0 else x.data_ptr()


def _stream(x: Tensor) -> int | None:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None


def _by_channel(x: Tensor) -> Tensor:
    """Itself if its channels are contiguous, else a copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _storage(x: Tensor) -> int:
    if x.dtype not in STORAGE:
        raise ShapeError(
            f"the CUDA kernels take float32, bfloat16 and float16, got {describe(x)}; convert it, or compute on the CPU"
        )
    return STORAGE[x.dtype]


class CudaLibrary:
    """libavis_cuda.so, or another build of the same interface."""

    def __init__(self, path: Path) -> None:
        """Loads it; a GPU is first needed when a method is called.

        Raises:
            NativeUnavailableError: It is not there, does not load, or has another version of the interface.
        """
        self.path = path
        try:
            self._lib = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailableError(f"{path} does not load: {error}") from error
        if (abi := self._lib.av_abi()) != ABI:
            raise NativeUnavailableError(
                f"{path.name} has version {abi} of the kernel interface, this package needs {ABI}; build both anew"
            )
        self._lib.av_archs.restype = self._lib.av_error.restype = c_char_p
        self._lib.av_plan_new.restype = c_void_p
        self._lib.av_plan_ints.argtypes = self._lib.av_plan_delete.argtypes = [c_void_p]
        self._lib.av_plan_ints.restype = c_int64

    @property
    def archs(self) -> list[str]:
        """Architectures that it has kernels for, such as "90"."""
        return str(self._lib.av_archs().decode()).split()

    @property
    def raw(self) -> ctypes.CDLL:
        """The library itself."""
        return self._lib

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._lib, name)(*args)
        if code != 0:
            reason = self._lib.av_error(code).decode()
            raise RuntimeError(f"{name} failed: {reason} (the kernels are compiled for {' '.join(self.archs)})")

    # --- deformable attention --------------------------------------------------------------------------------------

    def _msda(
        self, value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor, ref: Tensor | None, **more: Tensor
    ) -> tuple[Msda, list[Tensor]]:
        """The struct, and the tensors that it points to."""
        n, tokens, m, d = value.shape
        q, levels, points = loc.shape[1], loc.shape[3], loc.shape[4]
        if levels > MAX_LEVELS:
            raise ShapeError(f"the CUDA kernels take up to {MAX_LEVELS} levels, got {levels}")
        kept = {"value": value.contiguous(), "loc": loc.contiguous(), "weight": weight.float().contiguous(), **more}
        if ref is not None:
            kept["ref"] = ref.contiguous()
        args = Msda(
            **{name: _pointer(x) for name, x in kept.items()},
            images=n, tokens=tokens, queries=q, heads=m, channels=d, levels=levels, points=points,
            sizes=(c_int32 * (2 * MAX_LEVELS))(*shapes), storage=_storage(value),
        )  # fmt: skip
        return args, list(kept.values())

    def ms_deform_attn(self, value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor) -> Tensor:
        """`avis::ms_deform_attn`."""
        return self._forward(value, shapes, loc, weight, None)

    def ms_deform_attn_fused(
        self, value: Tensor, shapes: Sequence[int], ref: Tensor, offsets: Tensor, logits: Tensor
    ) -> Tensor:
        """`avis::ms_deform_attn_fused`."""
        return self._forward(value, shapes, offsets, logits, ref)

    @staticmethod
    def _check(value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor, ref: Tensor | None) -> None:
        """Of the plain operator, or, with `ref`, of the fused one, whose `loc` are offsets and `weight` logits."""
        if ref is None:
            check_msda(value, shapes, loc, weight)
        else:
            check_fused(value, shapes, ref, loc, weight)

    def _forward(self, value: Tensor, shapes: Sequence[int], loc: Tensor, weight: Tensor, ref: Tensor | None) -> Tensor:
        self._check(value, shapes, loc, weight, ref)
        out = value.new_empty(value.shape[0], loc.shape[1], value.shape[2] * value.shape[3])
        if out.numel() == 0 or weight.numel() == 0:
            return out.zero_()
        args, _kept = self._msda(value, shapes, loc, weight, ref, out=out)
        self._call("av_msda_forward", byref(args), c_void_p(_stream(value)))
        return out

    def ms_deform_attn_backward(
        self,
        grad_out: Tensor,
        value: Tensor,
        shapes: Sequence[int],
        loc: Tensor,
        weight: Tensor,
        mask: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """`avis::ms_deform_attn_backward`."""
        grad_value, _, grad_loc, grad_weight = self._backward(
            grad_out, value, shapes, loc, weight, None, [mask[0], False, mask[1], mask[2]]
        )
        return grad_value, grad_loc, grad_weight

    def ms_deform_attn_fused_backward(
        self,
        grad_out: Tensor,
        value: Tensor,
        shapes: Sequence[int],
        ref: Tensor,
        offsets: Tensor,
        logits: Tensor,
        mask: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """`avis::ms_deform_attn_fused_backward`."""
        return self._backward(grad_out, value, shapes, offsets, logits, ref, mask)

    def _backward(
        self,
        grad_out: Tensor,
        value: Tensor,
        shapes: Sequence[int],
        loc: Tensor,
        weight: Tensor,
        ref: Tensor | None,
        mask: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """Gradients of value, ref, loc and weight; [0] where the mask does not ask for them."""
        self._check(value, shapes, loc, weight, ref)
        wide = {
            "grad_value": torch.zeros(value.shape if mask[0] else 0, device=value.device),
            "grad_ref": loc.new_empty(ref.shape if ref is not None and mask[1] else 0),
            # The kernel sums grad_ref from grad_loc.
            "grad_loc": loc.new_zeros(loc.shape if mask[1] or mask[2] else 0),
            "grad_weight": torch.zeros(weight.shape if mask[3] else 0, device=value.device),
        }
        if value.numel() == 0 or weight.numel() == 0:
            wide["grad_ref"].zero_()
        else:
            grad = grad_out.to(value.dtype).contiguous()
            args, _kept = self._msda(value, shapes, loc, weight, ref, grad_out=grad, **wide)
            self._call("av_msda_backward", byref(args), c_void_p(_stream(value)))
        if not mask[2]:
            wide["grad_loc"] = loc.new_empty(0)
        return (
            wide["grad_value"].to(value.dtype),
            wide["grad_ref"],
            wide["grad_loc"],
            wide["grad_weight"].to(weight.dtype),
        )

    # --- attention over ranges -------------------------------------------------------------------------------------

    def _range(
        self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float, out: Tensor, lse: Tensor
    ) -> tuple[Range, list[Tensor | None]]:
        batch, queries, heads, channels = q.shape
        if channels > 128:
            raise ShapeError(f"the CUDA kernels take up to 128 channels a head, q has {describe(q)}")
        tokens = [_by_channel(x) for x in (q, k, v)]
        bias = None if key_bias is None else key_bias.contiguous()
        args = Range(
            *map(Tokens.of, tokens), _pointer(bias), _pointer(out), _pointer(lse), batch, heads, queries, k.shape[1],
            channels, _storage(q), scale,
        )  # fmt: skip
        kept = [*tokens, bias]
        return args, kept

    def _with_plan(self, name: str, args: Range, q: Tensor, starts: Sequence[int], k_ranges: Sequence[int]) -> None:
        """Calls `name` with the plan, and room for it on the device."""
        groups = len(starts) - 1
        per_group = len(k_ranges) // (2 * groups) if groups else 0
        numbers = (c_int64 * len(starts))(*starts), (c_int64 * max(len(k_ranges), 1))(*k_ranges)
        plan = self._lib.av_plan_new(
            byref(Groups(*numbers, groups, per_group)), byref(args), int(name == "av_range_backward")
        )
        if plan is None:
            raise ShapeError(f"q_starts and k_ranges are no plan for {args.queries} queries and {args.keys} keys")
        try:
            room = torch.empty(self._lib.av_plan_ints(plan), dtype=torch.int32, device=q.device)
            self._call(name, byref(args), c_void_p(plan), c_void_p(room.data_ptr()), c_void_p(_stream(q)))
        finally:
            self._lib.av_plan_delete(plan)

    def range_attn(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_starts: Sequence[int],
        k_ranges: Sequence[int],
        key_bias: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """`avis::range_attn`."""
        check_range(q, k, v, q_starts, k_ranges, key_bias)
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        if lse.numel() > 0:
            args, _kept = self._range(q, k, v, key_bias, scale, out, lse)
            self._with_plan("av_range_forward", args, q, q_starts, k_ranges)
        return out, lse

    def range_attn_backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        q_starts: Sequence[int],
        k_ranges: Sequence[int],
        key_bias: Tensor | None,
        scale: float,
        mask: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """`avis::range_attn_backward`."""
        check_range(q, k, v, q_starts, k_ranges, key_bias)
        grads = self._range_grads(q, k, mask)
        if lse.numel() > 0 and k.numel() > 0:
            args, _kept = self._range(q, k, v, key_bias, scale, out.contiguous(), lse.contiguous())
            grad = _by_channel(grad_out.to(q.dtype))
            direct, row = None if grad_lse is None else grad_lse.contiguous(), torch.empty_like(lse)
            args.grad_out, args.grad_lse, args.row = Tokens.of(grad), _pointer(direct), _pointer(row)
            args.dq, args.dk, args.dv, args.dbias = map(_pointer, grads)
            self._with_plan("av_range_backward", args, q, q_starts, k_ranges)
        dq, dk, dv, dbias = grads
        return dq, dk, dv, dbias.sum(1) if mask[3] else dbias

    @staticmethod
    def _range_grads(q: Tensor, k: Tensor, mask: Sequence[bool]) -> list[Tensor]:
        """Room for dq, dk, dv and dbias; the last with heads apart."""
        shapes = [q.shape, k.shape, k.shape, (k.shape[0], k.shape[2], k.shape[1])]
        types = [q.dtype, q.dtype, q.dtype, torch.float32]
        return [
            torch.zeros(shape if wanted else 0, dtype=dtype, device=q.device)
            for shape, wanted, dtype in zip(shapes, mask, types, strict=False)
        ]

    # --- pages and cache -------------------------------------------------------------------------------------------

    def range_attn_paged(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: Tensor,
        key_bias: Tensor | None,
        init_out: Tensor | None,
        init_lse: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`avis::range_attn_paged`."""
        check_paged(q, k, v, pages, key_bias, init_out, init_lse)
        batch, queries, heads, _ = q.shape
        out, lse = q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=torch.float32)
        page_out = q.new_empty(len(pages), *q.shape, dtype=torch.float32)
        page_lse = q.new_empty(len(pages), *lse.shape, dtype=torch.float32)
        if lse.numel() > 0:
            args, _kept = self._range(q, k, v, key_bias, scale, out, lse)
            more = [pages.contiguous(), *(None if x is None else x.contiguous() for x in (init_out, init_lse))]
            table = Pages(*map(_pointer, [*more, page_out, page_lse]), pages=len(pages))
            self._call("av_paged_forward", byref(args), byref(table), c_void_p(_stream(q)))
        return out, lse, page_out, page_lse

    def range_attn_paged_backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        grad_page_out: Tensor | None,
        grad_page_lse: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: Tensor,
        key_bias: Tensor | None,
        init_out: Tensor | None,
        init_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        page_out: Tensor,
        page_lse: Tensor,
        scale: float,
        mask: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        """`avis::range_attn_paged_backward`."""
        check_paged(q, k, v, pages, key_bias, init_out, init_lse)
        grads = self._range_grads(q, k, mask)
        init_grads = [
            torch.zeros(x.shape if x is not None and wanted else 0, device=q.device)
            for x, wanted in zip((init_out, init_lse), mask[4:], strict=True)
        ]
        if lse.numel() > 0:
            args, _kept = self._range(q, k, v, key_bias, scale, out.contiguous(), lse.contiguous())
            grad, row, part_grad = (
                grad_out.to(q.dtype).contiguous(),
                torch.empty_like(page_lse),
                torch.empty_like(page_out),
            )
            direct = [None if x is None else x.contiguous() for x in (grad_lse, grad_page_out, grad_page_lse)]
            args.grad_out, args.grad_lse, args.row = Tokens.of(grad), _pointer(direct[0]), _pointer(row)
            args.dq, args.dk, args.dv, args.dbias = map(_pointer, grads)
            inputs = [None if x is None else x.contiguous() for x in (pages, init_out, init_lse, page_out, page_lse)]
            table = Pages(*map(_pointer, inputs), len(pages), *map(_pointer, [*direct[1:], part_grad, *init_grads]))
            self._call("av_paged_backward", byref(args), byref(table), c_void_p(_stream(q)))
        dq, dk, dv, dbias = grads
        return dq, dk, dv, dbias.sum(1) if mask[3] else dbias, *init_grads

    def kv_write_(self, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot: Tensor) -> None:
        """`avis::kv_write_`."""
        check_write(k_cache, v_cache, k, v, None)
        for cache, new in ((k_cache, k), (v_cache, v)):
            tokens = _by_channel(new)
            batch, count, heads, channels = tokens.shape
            args = CacheWrite(
                Tokens.of(cache), Tokens.of(tokens), slot.data_ptr(), batch, heads, cache.shape[1], count, channels,
                cache.element_size(),
            )  # fmt: skip
            self._call("av_cache_write", byref(args), c_void_p(_stream(cache)))
