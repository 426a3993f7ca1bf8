"""The official form of everything that the rest of the package computes in a cheaper, exactly equal way.

For comparison and benchmarks (`reference=True`), and for the tests that hold the two together. The parameters are the
same, so either form loads the other's weights. Nothing outside this file needs to know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from avis_stream.checks import require
from avis_stream.config import AVISMConfig, PostprocessConfig
from avis_stream.data import rle
from avis_stream.errors import ConfigError
from avis_stream.models.avism import AVISM
from avis_stream.models.localizer import Localizer
from avis_stream.models.pixel_decoder import DeformableAttention, PixelFeatures
from avis_stream.models.postprocess import Instances, MaskQuality, MaskSizes, mask_logits, resize_logits
from avis_stream.models.tracker import Tracker, WindowLayer
from avis_stream.ops.ms_deform_attn import ms_deform_attn_grid_sample

_MASK_FRAMES = 5
"""Frames whose masks are drawn together."""

_BLOCKED = -1000.0
"""Added to blocked scores of shifted windows, as the official code does instead of minus infinity (quirk Q5)."""


def attend_literally(
    value: Tensor, spatial_shapes: Sequence[Any] | Tensor, reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`ms_deform_attn_fused` step by step: softmax, sampling locations, `grid_sample` for each level."""
    weights = logits.softmax(dim=-1).view(offsets.shape[:-1])
    size = torch.as_tensor(spatial_shapes).to(offsets).view(-1, 2).flip(-1)  # [L, 2] as (W, H)
    locations = reference_points[:, :, None, :, None] + offsets / size[:, None]
    return ms_deform_attn_grid_sample(value, spatial_shapes, locations, weights)


class LiteralLocalizer(Localizer):
    """Makes 100 full mask maps before each layer and resizes each of them."""

    def mask_guides(self, features: PixelFeatures) -> list[Tensor]:
        """The mask features as they are, for every level."""
        return [features.mask_features.detach()] * len(features.levels)

    def visible(self, mask_embed: Tensor, guide: Tensor, size: torch.Size) -> Tensor:
        """Full masks, resized, thresholded as probabilities, copied for each head."""
        masks = torch.einsum("tnc,tchw->tnhw", mask_embed.detach(), guide)
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        blocked = masks.sigmoid().flatten(2) < 0.5
        blocked = torch.where(blocked.all(-1, keepdim=True), False, blocked)
        return ~blocked[:, None].repeat(1, self.heads, 1, 1)


class LiteralTracker(Tracker):
    """Pads the clip to whole windows, rolls it for shifted ones, masks by adding, asks one audio query an object."""

    def encode(self, frame_queries: Tensor) -> Tensor:
        """As `Tracker.encode`."""
        frames = frame_queries.shape[1]
        x, padding = self._pad(self.input_proj_dec(frame_queries))
        shifts = self.config.shift_in_training or not self.training
        for i, layer in enumerate(self.encoder):
            x = self._layer(layer, x, x, padding, shifted=shifts and i % 2 == 1)
        return x[:, :frames]

    def listen(self, objects: Tensor, audio: Tensor) -> Tensor:
        """As `Tracker.listen`, but with one answer an object: [B, T, N, C]."""
        if self.audio_proj is None:
            return objects.new_zeros(1)
        batch, frames, slots, _ = objects.shape
        y, padding = self._pad(repeat(self.audio_proj(audio), "t c -> b t n c", b=batch, n=slots))
        keys, _ = self._pad(objects)
        for i, layer in enumerate(self.fusion):
            y = self._layer(layer, y, keys, padding, shifted=i % 2 == 1)
        return y[:, :frames]

    def _pad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        window = self.config.token_window
        missing = -x.shape[1] % window
        padding = torch.arange(x.shape[1] + missing, device=x.device) >= x.shape[1]
        return F.pad(x, (0, 0, 0, 0, 0, missing)), padding

    def _layer(self, layer: nn.Module, x: Tensor, keys: Tensor, padding: Tensor, shifted: bool) -> Tensor:
        window = self.config.token_window
        shift = math.ceil(window / 2) if shifted else 0
        batch, _, slots, _ = x.shape
        bias = self._shift_bias(padding, slots) if shifted else self._pad_bias(padding, slots)  # [windows, W N, W N]
        x, keys = (rearrange(part.roll(shift, dims=1), "b (g w) n c -> (b g) (w n) c", w=window) for part in (x, keys))
        assert isinstance(layer, WindowLayer)
        x = layer.attn.masked(x, x, keys, keys, bias.repeat(batch, 1, 1)[:, None].to(x.dtype))
        x = rearrange(layer.ffn(x), "(b g) (w n) c -> b (g w) n c", b=batch, w=window)
        return x.roll(-shift, dims=1)

    def _pad_bias(self, padding: Tensor, slots: int) -> Tensor:
        hidden = rearrange(padding, "(g w) -> g 1 w", w=self.config.token_window).expand(
            -1, self.config.token_window, -1
        )
        bias = torch.zeros(hidden.shape, device=padding.device).masked_fill(hidden, -torch.inf)
        return self._per_slot(bias, slots)

    def _shift_bias(self, padding: Tensor, slots: int) -> Tensor:
        window = self.config.token_window
        shift = math.ceil(window / 2)
        hidden = rearrange(padding.roll(shift), "(g w) -> g w", w=window)
        blocked = hidden[:, :, None].expand(-1, -1, window).clone()  # a padded row sees nothing ...
        for end in (0, -1):  # ... and in the windows where padding can be, nobody sees it
            blocked[end] |= hidden[end][None, :]
        blocked[0, :shift, shift:] = True  # the clip's end, rolled to the front, and its beginning are strangers
        blocked[0, shift:, :shift] = True
        return self._per_slot(blocked * _BLOCKED, slots)

    def _per_slot(self, bias: Tensor, slots: int) -> Tensor:
        return repeat(bias, "g i j -> g (i n) (j m)", n=slots, m=slots)


@torch.no_grad()
def find_instances_literally(
    logits: Tensor,
    mask_embed: Tensor,
    features: Iterable[tuple[int, Tensor]],
    sizes: MaskSizes,
    config: PostprocessConfig,
    presence: Tensor | None = None,
    there: Tensor | None = None,
) -> Instances:
    """Draws the masks of all `top_k` pairs on all frames, keeps them as bool, and looks at scores last (quirk Q17)."""
    if presence is not None or there is not None:
        raise ConfigError(
            "the literal form is AVISM's own, which has no sounding head and draws video queries; build the model "
            'without localizer.sounding_head and with tracker.masks="video"'
        )
    scores = logits.softmax(-1)[:, :-1]
    best, index = scores.flatten().topk(min(config.top_k, scores.numel()))
    class_id, query_id = index % scores.shape[1], index // scores.shape[1]
    quality = MaskQuality(len(best), best.device)
    parts = []
    for _, stored in features:
        for part in stored.split(_MASK_FRAMES):
            drawn = mask_logits(mask_embed[query_id], part, sizes)
            quality.add(drawn)
            parts.append(resize_logits(drawn, sizes.output) > 0)
    masks = torch.cat(parts).transpose(0, 1)  # [I, T, H, W]
    score = best * quality.value()
    order = score.argsort(descending=True)
    order = order[score[order] > config.score_threshold]
    tracks = tuple(tuple(rle.encode(mask) for mask in masks[i]) for i in order.tolist())
    return Instances(score[order], class_id[order], query_id[order], tracks)


class LiteralAVISM(AVISM):
    """AVISM in the official form: slow, large, and what `AVISM` is measured against."""

    localizer_type = LiteralLocalizer
    tracker_type = LiteralTracker
    find_instances = staticmethod(find_instances_literally)
    frames_at_once = 18  # the official TEST_RUN_CHUNK_SIZE

    def __init__(self, config: AVISMConfig) -> None:
        super().__init__(config)
        for part in self.modules():
            if isinstance(part, DeformableAttention):
                part.attend = attend_literally

    def prepare_for_inference(self, precision: torch.dtype = torch.float32) -> AVISM:
        """Evaluation mode without gradients; norms stay as they are.

        Raises:
            ConfigError: Another precision than float32.
        """
        require(precision == torch.float32, "precision", precision, "float32 for the literal form, as it is official")
        return self.eval().requires_grad_(False)
