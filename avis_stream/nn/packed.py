"""Convolution and linear layers with their activation, and a fast form of both for inference on the CPU.

oneDNN can keep weights in the layout that its kernels want and add the residual and the activation before a result
leaves the cache; torch reaches these only from its compiler. `pack` prepares a layer for them once its weights are
final; training it again or loading other weights undoes that. Anything else (training, another device or precision,
export, a torch without these operators) takes the ordinary way; results differ by rounding. Wide 3x3 convolutions go by
Winograd's form, which oneDNN has no longer.

    conv, then ReLU, 64 to 256 channels at 96 x 160:   48 ms ordinary, 8 ms packed, same machine, same minute
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.nn.winograd import combined_weight, convolve

Activation = Literal["none", "relu", "relu6"]

_FUSED: dict[Activation, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""oneDNN's name of an activation, and its parameters."""

_LEAST_COMBINED = 128
"""Channels from which on a 3x3 convolution goes by `nn/winograd.py`."""


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Applies an activation, in place where gradients allow."""
    if activation == "none":
        return x
    return F.relu(x, inplace=True) if activation == "relu" else F.relu6(x, inplace=True)


class Packed:
    """A weight as inference wants it: in oneDNN's layout, or summed up. Copies of a layer begin without, as oneDNN's
    layouts cannot be copied or saved.
    """

    def __init__(self, weight: Tensor | None = None) -> None:
        self.weight = weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed()

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return (Packed, ())

    def serves(self, x: Tensor, training: bool) -> bool:
        """Whether the packed form may be used for an input."""
        return (
            self.weight is not None
            and not training
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
        )


def can_pack(weight: Tensor) -> bool:
    """Whether this torch can pack this weight."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Packable(nn.Module, ABC):
    """A layer whose packed weight goes as soon as its own may change: a stale one would answer in silence."""

    _packed: Packed

    @abstractmethod
    def pack(self) -> None:
        """Prepares for inference, until `train()` or `load_state_dict`; weights must not be changed in other ways."""

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._packed = Packed()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = Packed()
        super()._load_from_state_dict(*args, **kwargs)


class Conv2d(Packable, nn.Conv2d):
    """Convolution, then an addition, then an activation, where wanted; odd kernels, padded to keep the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = True,
        activation: Activation = "none",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
        self.activation: Activation = activation
        self._packed = Packed()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolves.

        Args:
            x: [B, in, H, W].
            residual: [B, out, H / stride, W / stride], added before the activation.
        """
        if self._packed.serves(x, self.training):
            return self._forward_packed(x, residual)
        y = self._between(super().forward(x))
        return activate(y if residual is None else y + residual, self.activation)

    def _between(self, y: Tensor) -> Tensor:
        """What a subclass does between convolution and addition."""
        return y

    def pack(self) -> None:
        """Prepares for inference, until `train()` or `load_state_dict`; weights must not be changed in other ways."""
        if not can_pack(self.weight):
            return
        if self._combines:
            weight = combined_weight(self.weight.detach())
        elif self._multiplies:
            weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.flatten(1), None)
        else:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._geometry(), None)
        self._packed = Packed(weight)

    @property
    def _combines(self) -> bool:
        """Whether Winograd's form is the faster one: channels enough that products outweigh what is combined."""
        square = self.kernel_size == (3, 3) and self.stride == (1, 1) and self.groups == 1
        return square and min(self.in_channels, self.out_channels) >= _LEAST_COMBINED

    @property
    def _multiplies(self) -> bool:
        """Whether this is a matrix product of each pixel's channels.

        oneDNN chooses the layout of a convolution's weight by the size of the picture, and at some sizes another one
        than it was packed in: 512 to 2048 channels at 12 x 20 then take 34 ms instead of 2.2 (AVX-512, two threads),
        160 to 960 at 6 x 11 on one thread 19 instead of 0.5. Layouts of linear layers hold for any number of rows.
        """
        return self.kernel_size == (1, 1) and self.groups == 1

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        padding = self.kernel_size[0] // 2
        return [padding, padding], list(self.stride), list(self.dilation), self.groups

    def _forward_packed(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self._combines:
            assert self._packed.weight is not None
            combined = convolve(x, self._packed.weight, self.bias)
            return activate(combined if residual is None else combined + residual, self.activation)
        if self._multiplies:
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1).contiguous()
            rows = None if residual is None else residual.permute(0, 2, 3, 1)
            return _linear(pixels, self._packed, self.bias, self.activation, rows).permute(0, 3, 1, 2)
        arguments = (self._packed.weight, self.bias, *self._geometry())
        y: Tensor
        if residual is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, *arguments, *_FUSED[self.activation], "")
        elif self.activation == "relu6":  # the one pair that oneDNN does not fuse
            y = activate(torch.ops.mkldnn._convolution_pointwise(x, *arguments, "none", [], "") + residual, "relu6")
        else:
            last = None if self.activation == "none" else self.activation
            y = torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *arguments, "add", 1.0, last, [], "")
        return y


class Linear(Packable, nn.Linear):
    """Linear layer with its activation."""

    def __init__(self, in_features: int, out_features: int, *, activation: Activation = "none") -> None:
        super().__init__(in_features, out_features)
        self.activation: Activation = activation
        self._packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        if self._packed.serves(x, self.training):
            return _linear(x, self._packed, self.bias, self.activation)
        return activate(super().forward(x), self.activation)

    def pack(self) -> None:
        """Prepares for inference, until `train()` or `load_state_dict`; weights must not be changed in other ways."""
        if can_pack(self.weight):
            self._packed = Packed(torch.ops.mkldnn._reorder_linear_weight(self.weight, None))


def _linear(
    x: Tensor, packed: Packed, bias: Tensor | None, activation: Activation, residual: Tensor | None = None
) -> Tensor:
    y: Tensor
    if residual is not None:
        y = torch.ops.mkldnn._linear_pointwise.binary(x, residual.contiguous(), packed.weight, bias, "add")
        return activate(y, activation)
    y = torch.ops.mkldnn._linear_pointwise(x, packed.weight, bias, *_FUSED[activation], "")
    return y


def lower_weights(module: nn.Module, precision: torch.dtype) -> None:
    """Puts weights of products into a lower precision for good, where autocast would do it anew at each call."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.to(precision)


def pack_layers(module: nn.Module) -> None:
    """Packs every layer inside `module` that can be."""
    for part in module.modules():
        if isinstance(part, Packable):
            part.pack()
