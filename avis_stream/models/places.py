"""Masks that know where they are: each query's fall off with distance from a place, as wide as the query says.

A mask embedding times mask features is blind to place: where two things look alike, both products are high, and one
query draws them both. CondInst (Tian et al., ECCV 2020) hands coordinates relative to each instance to its mask head
for that; here a query lowers its logits by the squared distance from its own centre, along x and y by a factor each
(the Gaussian prior of SMCA, Gao et al., ICCV 2021, on masks instead of attention). Written out, that is a product too:

    -a (x - p)^2 - b (y - q)^2  =  (-a, 2 a p, -b, 2 b q, -a p^2 - b q^2) . (x^2, x, y^2, y, 1)

so five more mask channels hold it, and all that multiplies embeddings with features works as before (ADR 0011).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avis_stream.nn.layers import MLP

_FIRST = -2.0
"""First logarithm of a fall: at the picture's edge a mask loses an eighth of a logit, which says next to nothing."""
_MOST = 5.0
"""Most of it: a logit is lost within a twelfth of half the picture. Steeper ones would drown float16."""


def place_maps(like: Tensor) -> Tensor:
    """x^2, x, y^2, y and 1 at the pixels of maps `like` [..., h, w]: [5, h, w]; -1 and 1 are the edges."""
    height, width = like.shape[-2:]
    x = _centres(width, like).expand(height, width)
    y = _centres(height, like)[:, None].expand(height, width)
    return torch.stack((x.square(), x, y.square(), y, torch.ones_like(x)))


def centres_of(place: Tensor, like: Tensor) -> Tensor:
    """Centres (x, y) in [-1, 1], [..., 2], of row-major places int64 [...] on maps `like` [..., h, w]."""
    height, width = like.shape[-2:]
    return torch.stack((_centres(width, like)[place % width], _centres(height, like)[place // width]), dim=-1)


def _centres(count: int, like: Tensor) -> Tensor:
    return ((2 * torch.arange(count, device=like.device) + 1) / count - 1).to(like.dtype)


class MaskPlace(nn.Module):
    """What a query says of its mask's place, as the part of the mask embedding that multiplies `place_maps`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.says = MLP(channels, channels, 4, 3)
        last = self.says.layers[-1]
        assert isinstance(last, nn.Linear)
        # Begins at the query's own place and with hardly any fall, so that weights without it go on where they were.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor, begin: Tensor) -> Tensor:
        """Queries [T, N, C] that begin at `begin` [T, N, 2], x and y, to [T, N, 5]."""
        said = self.says(queries).float()  # of half precision too little would be left of the difference of squares
        x, y = (begin + said[..., :2]).unbind(-1)
        a, b = (said[..., 2:] + _FIRST).clamp(max=_MOST).exp().unbind(-1)
        parts = (-a, 2 * a * x, -b, 2 * b * y, -a * x.square() - b * y.square())
        return torch.stack(parts, dim=-1).to(queries.dtype)
