"""What may go in at the door, where only the values say so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avis_stream.checks import check_finite
from avis_stream.errors import ShapeError

HINT = "put zeros there"
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.0, -2.0]),
        torch.zeros(0, 3),
        torch.tensor(0.0),
        torch.tensor([3e38, 3e38]),
        torch.tensor([60_000.0, 60_000.0], dtype=torch.float16),
        torch.arange(3),
    ],
    ids=["usual", "empty", "single", "sum_overflows", "half_overflows", "whole_numbers"],
)
def test_finite_values_pass_as_they_are(value: Tensor) -> None:
    assert check_finite(value, "audio", HINT) is value


@pytest.mark.parametrize(
    ("values", "bad"),
    [([1.0, NAN, 2.0], 1), ([INF, 0.0], 1), ([INF, -INF, 1.0], 2), ([[NAN, NAN], [3e38, 3e38]], 2)],
    ids=["nan", "infinite", "that_cancel_out", "nan_beside_an_overflow"],
)
def test_others_are_counted(values: list[float], bad: int) -> None:
    value = torch.tensor(values)
    wanted = rf"^audio must be finite, got {bad} NaN or infinite values of {value.numel()}; put zeros there$"
    with pytest.raises(ShapeError, match=wanted):
        check_finite(value, "audio", HINT)


def test_an_exported_program_checks_nothing() -> None:
    """It cannot look at values; what leads to it can."""

    class Checked(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return check_finite(value, "audio", HINT) + 1

    program = torch.export.export(Checked(), (torch.zeros(2),)).module()
    assert program(torch.tensor([NAN, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("capturing", [True, False])
def test_while_a_cuda_graph_is_captured_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    class OnDevice(Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    value = torch.tensor([NAN]).as_subclass(OnDevice)
    if capturing:
        assert check_finite(value, "audio", HINT) is value
    else:
        with pytest.raises(ShapeError, match="got 1 NaN"):
            check_finite(value, "audio", HINT)
