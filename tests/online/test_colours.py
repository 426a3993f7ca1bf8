"""Colours of what a mask covers."""

from __future__ import annotations

import pytest
import torch

from avis_stream.online.colours import COLOURS, apart, colours_of

MASKS = torch.zeros(2, 12, 16)
MASKS[0, 2:8, 2:8], MASKS[1, 4:11, 9:15] = 1, 1


def painted(height: int = 48, width: int = 64) -> torch.Tensor:
    """A picture: reddish where the first mask is, bluish at the second, grey elsewhere."""
    torch.manual_seed(0)
    grain = torch.randint(0, 40, (1, 12, 16))
    small = torch.full((3, 12, 16), 90) + grain
    small[0, 2:8, 2:8] += 60
    small[2, 4:11, 9:15] += 60
    scale = (height // 12, width // 16)
    return small.to(torch.uint8).repeat_interleave(scale[0], 1).repeat_interleave(scale[1], 2)


def test_they_are_mean_shares_and_spread() -> None:
    found = colours_of(painted(12, 16), MASKS)
    inside = painted(12, 16)[:, MASKS[0] > 0].double()
    mean = inside.mean(dim=1)
    spread = inside.std(dim=1, correction=0)
    wanted = torch.cat([3 * mean / mean.sum() - 1, spread / (mean.mean() + 1)])
    assert found.shape == (2, COLOURS)
    torch.testing.assert_close(found[0].double(), wanted, atol=1e-4, rtol=1e-4)
    assert found[0, 0] > 0.2 > 0 > found[0, 2]  # reddish
    assert found[1, 2] > 0.2


@pytest.mark.parametrize("size", [(48, 64), (120, 160), (360, 480), (1080, 1440)])
def test_the_pictures_size_does_not_matter(size: tuple[int, int]) -> None:
    torch.testing.assert_close(colours_of(painted(*size), MASKS), colours_of(painted(12, 16), MASKS), atol=0.02, rtol=0)


def test_brighter_or_darker_light_does_not_matter() -> None:
    picture = painted()
    darker = (picture.float() * 0.6).round().to(torch.uint8)
    near = apart(colours_of(picture, MASKS), colours_of(darker, MASKS))
    assert near.diagonal().max() < 0.02 < 0.2 < near[0, 1]


def test_what_is_unknown_is_infinitely_far() -> None:
    empty = colours_of(painted(), torch.zeros(1, 12, 16))
    assert empty.isnan().all()
    assert apart(empty, colours_of(painted(), MASKS)).isinf().all()
    assert apart(torch.zeros(0, COLOURS), torch.zeros(2, COLOURS)).shape == (0, 2)


def test_black_has_no_hue() -> None:
    found = colours_of(torch.zeros(3, 48, 64, dtype=torch.uint8), MASKS)
    assert found.isfinite().all()
