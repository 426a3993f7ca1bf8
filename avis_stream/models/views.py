"""A frame looked at several times, at other sizes and in a mirror; what the looks agree on is believed.

Every view is localized on its own. Frame queries of different views that draw the same thing become one: the views
vote on its class, where one that does not see it says "no object"; what they say of its sound, its look and its mask
is the mean. A mask is a product, and the mean of several is one product of longer vectors: mask embeddings of V views
stand side by side, on mask features that do so too. So nothing that comes after knows how often a frame was looked at.

Source: answers averaged over transformed pictures are as old as AlexNet (Krizhevsky et al., NeurIPS 2012); that a
detector which misses something lowers its score is from Weighted Boxes Fusion (Solovyev et al., 2021). ADR 0016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from avis_stream.config import InputConfig
from avis_stream.models.linking import feature_logits, mask_grids, mask_iou
from avis_stream.models.postprocess import MaskSizes, resize_logits
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images

if TYPE_CHECKING:
    from avis_stream.models.avism import FrameTokens

_SAME_THING = 0.5
"""Overlap above which two views see one thing."""

_COMPARED = 0.02
"""Least class score of a query that is compared with those of other views."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a picture."""

    input: InputConfig
    """How it is brought to the network's size."""
    mirrored: bool = False

    def sizes(self, frame_size: tuple[int, int], output: tuple[int, int]) -> MaskSizes:
        """What masks on a picture of (height, width) go through on their way to `output`."""
        network = network_size(*frame_size, self.input)
        height, width = (side + -side % self.input.size_divisor for side in network)
        return MaskSizes((height, width), network, output)

    def prepared(self, pictures: Tensor, device: torch.device) -> Tensor:
        """Pictures uint8 [T, 3, H, W] as the network wants them, float32 [T, 3, Hp, Wp]."""
        size = network_size(pictures.shape[-2], pictures.shape[-1], self.input)
        resized = resize_images(pictures.cpu(), size)  # Pillow's bytes, wherever they come from
        seen = resized.flip(-1) if self.mirrored else resized
        return normalise_and_pad(seen.to(device), self.input)

    def turned_back(self, features: Tensor, frame_size: tuple[int, int]) -> Tensor:
        """Mask features [T, Cm, h, w] where they show the picture, not its padding, and the right way round."""
        sizes = self.sizes(frame_size, frame_size)
        stride = sizes.padded[0] // features.shape[-2]
        height, width = (-(-side // stride) for side in sizes.network)
        inner = features[..., :height, :width]
        return inner.flip(-1) if self.mirrored else inner


def views_of(config: InputConfig) -> tuple[View, ...]:
    """How pictures of recordings segmented as a whole are looked at. Masks are drawn at the size of the first."""
    first = config.for_clips()
    sides = (first.short_side_px, *config.clip_more_sides_px)
    ways = (False, True) if config.clip_mirrored else (False,)
    return tuple(View(replace(first, short_side_px=side), way) for side in sides for way in ways)


def agreed(seen: Sequence[FrameTokens], views: Sequence[View], frame_size: tuple[int, int]) -> FrameTokens:
    """What V views of T frames say together, in as many queries as each of them has.

    Args:
        seen: What each view shows; with mask embeddings of frame queries.
        views: As many.
        frame_size: (height, width) of the frames.
    Returns:
        Tokens of V Cm mask channels, those of view v from v Cm on, at the first view's size. The embedding of a query
        is 0 in the part of a view that does not see it.
    """
    if len(seen) == 1:
        return seen[0]
    embeds = [tokens.mask_embed for tokens in seen if tokens.mask_embed is not None]
    features = [v.turned_back(s.clip_mask_features, frame_size) for s, v in zip(seen, views, strict=True)]
    whole = _beside(features, like=seen[0].clip_mask_features)
    embed = torch.stack([torch.block_diag(*of_frame) for of_frame in zip(*embeds, strict=True)])  # [T, V N, V Cm]
    probability = torch.cat([tokens.logits.float().softmax(-1) for tokens in seen], dim=1)
    sizes = views[0].sizes(frame_size, frame_size)
    parts = zip(probability, embed, whole, strict=True)
    share = torch.stack([_shares(*of_frame, sizes, len(views)) for of_frame in parts])  # [T, N, V N]
    votes = (share > 0).sum(dim=-1, keepdim=True) / len(views)
    classes = votes * (share @ probability)
    classes[..., -1:] += 1 - votes
    sounds = [tokens.sounding for tokens in seen if tokens.sounding is not None]
    odds = torch.logit(torch.cat(sounds, dim=1).float(), eps=1e-6) if sounds else None
    return replace(
        seen[0],
        frame_queries=share @ torch.cat([tokens.frame_queries for tokens in seen], dim=1),
        logits=classes.clamp(min=1e-12).log(),
        clip_mask_features=whole,
        sounding=None if odds is None else (share @ odds[..., None])[..., 0].sigmoid(),
        mask_embed=share @ embed,
    )


def of_one_view(mask_embed: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """The first view that sees an object, for who cannot look as often: drawing a film, say.

    Args:
        mask_embed: [I, V Cm], as `agreed` gives them.
        views: V.
    Returns:
        The number of the view, int64 [I], and mask embeddings [I, Cm] for its mask features.
    """
    parts = mask_embed.unflatten(-1, (views, -1))
    sees = parts.ne(0).any(dim=-1)
    first = sees.int().argmax(dim=-1)  # the first of several that are largest
    own = parts[torch.arange(len(parts), device=parts.device), first]
    return first, own * sees.sum(dim=-1, keepdim=True)


def _beside(features: Sequence[Tensor], like: Tensor) -> Tensor:
    """Mask features [T, Cm, h', w'] of several views at the first's size: channels side by side, padded as `like`."""
    height, width = features[0].shape[-2:]
    down, right = like.shape[-2] - height, like.shape[-1] - width
    sized = torch.cat([resize_logits(own, (height, width)) for own in features], dim=1)
    return F.pad(sized, (0, right, 0, down), mode="replicate")


def _shares(probability: Tensor, embed: Tensor, features: Tensor, sizes: MaskSizes, views: int) -> Tensor:
    """Which queries of all views [V N] become one: [N, V N], each row their mean.

    Args:
        probability: [V N, K + 1], view by view.
        embed: [V N, V Cm].
        features: [V Cm, h, w].
        sizes: Of the first view.
        views: V.
    """
    score = probability[:, :-1].amax(dim=-1)
    compared = (score >= _COMPARED).nonzero()[:, 0]
    alike = probability.new_zeros(len(score), len(score))
    if len(compared):
        grid = mask_grids(feature_logits(embed[compared], features, sizes, one_piece=True))
        overlap, named = mask_iou(grid, grid), F.normalize(probability[compared, :-1], dim=-1)
        alike[compared[:, None], compared] = torch.where(overlap > _SAME_THING, overlap + named @ named.T, 0)
    view = np.arange(len(score)) // (len(score) // views)
    groups = _groups(score.cpu().numpy(), alike.cpu().numpy(), view)
    share = probability.new_zeros(len(groups), len(score))
    for row, group in enumerate(groups):
        share[row, group] = 1 / len(group)
    votes = torch.tensor([len(group) / views for group in groups], device=share.device)
    believed = votes * (share @ probability)[:, :-1].amax(dim=-1)
    return share[believed.topk(len(score) // views).indices]


def _groups(score: NDArray[np.float32], alike: NDArray[np.float32], view: NDArray[np.int64]) -> list[list[int]]:
    """Queries that are one thing: the surest first takes, of each other view, the most alike that nobody has taken."""
    taken, groups = np.zeros(len(score), bool), []
    for leader in np.argsort(-score, kind="stable"):
        if taken[leader]:
            continue
        group = [int(leader)]
        for other in range(view[-1] + 1):
            rival = np.where((view == other) & ~taken, alike[leader], 0)
            if other != view[leader] and rival.any():
                group.append(int(rival.argmax()))
        taken[group] = True
        groups.append(group)
    return groups
