"""Published MobileNetV2 weights, of either key layout, compute what batch norm unfolded would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avis_stream.errors import CheckpointError
from avis_stream.models.mobilenet import _STAGES, MobileNet
from avis_stream.weights.backbones import mobilenet_state


class Published(nn.Module):
    """MobileNetV2 as published: convolution, batch norm, ReLU6 in one flat `Sequential` a block."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
        channels = 32
        for expansion, out, count, stride in _STAGES:
            for i in range(count):
                hidden = channels * expansion
                first = [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
                rest = [
                    nn.Conv2d(hidden, hidden, 3, stride if i == 0 else 1, 1, groups=hidden, bias=False),
                    nn.BatchNorm2d(hidden),
                    nn.ReLU6(),
                    nn.Conv2d(hidden, out, 1, bias=False),
                    nn.BatchNorm2d(out),
                ]
                block = nn.Module()
                block.conv = nn.Sequential(*(first if expansion > 1 else []), *rest)
                block.residual = channels == out and (i > 0 or stride == 1)
                blocks.append(block)
                channels = out
        self.features = nn.ModuleList(blocks)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_mean, -0.5, 0.5)
                nn.init.uniform_(part.running_var, 0.5, 2)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features[0](x)
        outputs = []
        for block in list(self.features)[1:]:
            x = x + block.conv(x) if block.residual else block.conv(x)
            outputs.append(x)
        return [outputs[i] for i in (2, 5, 12, 16)]


def todays_layout(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's own names: each convolution with its norm in a `Sequential`, except the last pair of a block."""
    renamed = {}
    for key, value in flat.items():
        block, inner, rest = key.partition(".conv.")
        index, _, kind = rest.partition(".")
        if inner:
            last_pair = 6 if f"{block}.conv.7.weight" in flat else 3
            i = int(index)
            index = f"{last_pair // 3 + i - last_pair}" if i >= last_pair else f"{i // 3}.{i % 3}"
            key = f"{block}.conv.{index}.{kind}"
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("layout", [lambda s: s, todays_layout], ids=["flat", "today"])
@torch.no_grad()
def test_folded_weights_compute_the_same(layout: object) -> None:
    assert callable(layout)
    torch.manual_seed(0)
    published, ours = Published().eval(), MobileNet()
    ours.load_state_dict(mobilenet_state(layout(published.state_dict())))
    images = torch.randn(1, 3, 64, 96)
    for expected, got in zip(published(images), ours(images), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert [f.shape[1] for f in ours(images)] == [24, 32, 96, 320]


def test_what_is_no_mobilenet_says_so() -> None:
    with pytest.raises(CheckpointError, match=r"features\.0 has 0 batch norms"):
        mobilenet_state({"conv1.weight": torch.zeros(1)})
