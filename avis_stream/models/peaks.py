"""Queries that begin where objects are: at the peaks of a map of object centres.

Source: centre maps from "Objects as Points" (Zhou et al., 2019), as first queries from TransFusion (CVPR 2022). With
few training steps they learn much faster than learned queries, which must first agree on who looks where (ADR 0007).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.models.pixel_decoder import ConvGroupNorm
from avis_stream.models.places import centres_of
from avis_stream.nn.packed import Conv2d

_RARE = -4.0
"""First logit everywhere: nearly every place is no centre."""


@dataclass(frozen=True, slots=True)
class FirstQueries:
    """The N queries of T frames with which decoding begins."""

    embed: Tensor
    """Their position encodings, [T, N, C], or [N, C] where all frames have the same."""
    state: Tensor
    """[T, N, C]."""
    begin: Tensor
    """[T, N, 2], where they are: x and y in [-1, 1]."""
    centres: Tensor | None = None
    """Logits [T, K, h, w] of the map whose peaks they are; None: they are learned."""


class PeakQueries(nn.Module):
    """Features at stride 8 to N queries a frame."""

    def __init__(self, channels: int, queries: int, classes: int) -> None:
        super().__init__()
        self.queries = queries
        self.conv = ConvGroupNorm(channels, channels, 3)
        self.centre = Conv2d(channels, classes, 1)
        assert self.centre.bias is not None
        nn.init.constant_(self.centre.bias, _RARE)
        self.feature_proj = nn.Linear(channels, channels)
        self.class_proj = nn.Linear(classes, channels)
        self.position_proj = nn.Linear(channels, channels)

    def forward(self, features: Tensor, position: Tensor) -> FirstQueries:
        """Finds the peaks, best first.

        Args:
            features: [T, C, h, w] at stride 8.
            position: [h w, C], their position encoding.
        """
        logits = self.centre(F.relu(self.conv(features)))
        chance = logits.detach().sigmoid()
        best = chance.amax(dim=1, keepdim=True)
        # Where fewer peaks than queries are, the next best places; they cannot come before a peak of a tenth of a
        # per cent.
        rank = best * (F.max_pool2d(best, 3, 1, 1) == best) + 1e-3 * best
        place = rank.flatten(1).topk(min(self.queries, rank[0].numel())).indices  # [T, N]
        state = self.feature_proj(_at(features, place)) + self.class_proj(_at(chance, place))
        return FirstQueries(self.position_proj(position[place]), state, centres_of(place, features), logits)


def _at(maps: Tensor, place: Tensor) -> Tensor:
    """Vectors [T, N, C] of maps [T, C, h, w] at row-major places int64 [T, N]."""
    return torch.gather(maps.flatten(2).transpose(1, 2), 1, place[..., None].expand(-1, -1, maps.shape[1]))
