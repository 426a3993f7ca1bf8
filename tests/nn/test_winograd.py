"""The combined form of a 3x3 convolution is the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from avis_stream.nn import winograd
from avis_stream.nn.packed import Conv2d


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (3, 18), (24, 41)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_as_torch_convolves(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, *size), torch.randn(7, 5, 3, 3)
    added = torch.randn(7) if bias else None
    got = winograd.convolve(x, winograd.combined_weight(weight), added)
    wanted = F.conv2d(x.double(), weight.double(), None if added is None else added.double(), padding=1)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-4)
    assert got.stride(1) == 1, "channels last in memory, as the layers around it want"


@torch.no_grad()
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_a_wide_layer_goes_by_it(activation: str) -> None:
    torch.manual_seed(0)
    layer = Conv2d(128, 160, 3, activation=activation).eval()  # type: ignore[arg-type]
    x, residual = torch.randn(2, 128, 10, 13), torch.randn(2, 160, 10, 13)
    wanted, added, kept = layer(x), layer(x, residual), residual.clone()
    layer.pack()
    assert layer._packed.weight is not None
    assert layer._packed.weight.shape == (36, 128, 160)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x, residual), added, rtol=1e-4, atol=1e-4)
    assert torch.equal(residual, kept), "the residual is somebody else's"


@torch.no_grad()
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 128}, {"kernel": 1}], ids=str)
def test_what_is_no_such_convolution_does_not(options: dict[str, int]) -> None:
    layer = Conv2d(128, 128, **{"kernel": 3} | options).eval()
    layer.pack()
    x = torch.randn(1, 128, 9, 12)
    torch.testing.assert_close(layer(x), torch.nn.Conv2d.forward(layer, x), rtol=1e-4, atol=1e-4)
