"""The packed form of a layer computes what the ordinary one does, and steps aside where it may not be used."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from avis_stream.nn.layers import ConvFrozenNorm, fold_frozen_norms
from avis_stream.nn.packed import Conv2d, Linear, can_pack, pack_layers

CONVS = [
    {"kernel": 1},
    {"kernel": 3},
    {"kernel": 3, "stride": 2},
    {"kernel": 7, "stride": 2},
    {"kernel": 3, "groups": 16},
    {"kernel": 1, "bias": False},
    {"out_channels": 8, "kernel": 1},
    {"out_channels": 8, "kernel": 1, "bias": False},
    {"out_channels": 8, "kernel": 1, "stride": 2},
]


def filled(layer: Conv2d | Linear) -> Conv2d | Linear:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer.eval()


def packs() -> None:
    """These tests mean nothing where torch cannot pack; it can everywhere CI runs."""
    assert can_pack(torch.zeros(1))


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("size", [(1, 9, 13), (3, 24, 40)], ids=str)
@torch.no_grad()
def test_convolution(options: dict[str, int], activation: str, size: tuple[int, int, int]) -> None:
    packs()
    layer = filled(Conv2d(16, **{"out_channels": 32} | options, activation=activation))  # type: ignore[arg-type]
    x = torch.randn(size[0], 16, *size[1:]) * 3
    ordinary = layer(x)
    residual = torch.randn_like(ordinary)
    added = layer(x, residual)
    layer.pack()
    kept = residual.clone()
    torch.testing.assert_close(layer(x), ordinary, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(layer(x, residual), added, atol=2e-4, rtol=1e-4)
    assert torch.equal(residual, kept), "the residual is somebody else's"


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16), (1, 16), (0, 16)], ids=str)
@torch.no_grad()
def test_linear(activation: str, shape: tuple[int, ...]) -> None:
    packs()
    layer = filled(Linear(16, 24, activation=activation))  # type: ignore[arg-type]
    x = torch.randn(shape)
    ordinary = layer(x)
    layer.pack()
    torch.testing.assert_close(layer(x), ordinary, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_frozen_norm_folds_and_packs() -> None:
    layer = filled(ConvFrozenNorm(16, 32, 3, activation="relu"))
    assert isinstance(layer, ConvFrozenNorm)
    for buffer in layer.norm.buffers():
        torch.nn.init.uniform_(buffer, 0.5, 1.5)
    x, residual = torch.randn(1, 16, 9, 9), torch.randn(1, 32, 9, 9)
    expected = layer(x, residual)
    fold_frozen_norms(layer)
    pack_layers(layer)
    torch.testing.assert_close(layer(x, residual), expected, atol=2e-4, rtol=1e-4)


def test_the_ordinary_way_is_taken_where_it_must_be() -> None:
    layer = filled(Linear(16, 24, activation="relu"))
    x = torch.randn(5, 16, requires_grad=True)
    before = layer(x)
    layer.pack()
    torch.nn.init.zeros_(layer.weight)  # the packed copy still holds the old weight: who uses which now shows
    with torch.no_grad():
        torch.testing.assert_close(layer(x), before)
        assert not torch.allclose(layer(x.double().float()).double(), layer.double()(x.double()))
        layer.float()
        assert not torch.allclose(layer.train()(x), before)
        layer.eval()
    assert not torch.allclose(layer(x), before), "gradients need the ordinary way"
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("layer", [Linear(16, 16), Conv2d(16, 16, 3)], ids=repr)
@pytest.mark.parametrize("how", ["trained", "loaded"])
@torch.no_grad()
def test_changed_weights_are_the_ones_that_answer(layer: Conv2d | Linear, how: str) -> None:
    packs()
    model = torch.nn.Sequential(filled(layer)).eval()
    x = torch.randn(2, 16) if isinstance(layer, Linear) else torch.randn(1, 16, 5, 5)
    pack_layers(model)
    assert layer._packed.weight is not None
    before = model(x)
    if how == "trained":
        model.train()
        layer.weight.mul_(2.0)
        model.eval()
    else:
        model.load_state_dict({name: 2 * values for name, values in model.state_dict().items()})
    fresh = copy.deepcopy(model)  # copies begin without a packed weight
    torch.testing.assert_close(model(x), fresh(x))
    assert not torch.allclose(model(x), before)
    pack_layers(model)
    torch.testing.assert_close(model(x), fresh(x), atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_copies_begin_without() -> None:
    layer = filled(Linear(16, 24))
    layer.pack()
    x = torch.randn(2, 16)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(copied, Linear)
        assert copied._packed.weight is None
        torch.testing.assert_close(copied(x), layer(x))
    assert set(layer.state_dict()) == {"weight", "bias"}


@torch.no_grad()
def test_export_takes_the_ordinary_way() -> None:
    layer = filled(Conv2d(4, 4, 3, activation="relu"))
    layer.pack()
    x: Tensor = torch.randn(1, 4, 8, 8)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), atol=2e-4, rtol=1e-4)
