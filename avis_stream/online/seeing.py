"""From the tracker's answer and a frame's mask features to what the frame shows, and to masks on pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from avis_stream.models.avism import SAME_OBJECT
from avis_stream.models.linking import feature_logits, mask_grids, mask_iou
from avis_stream.models.postprocess import MaskSizes, best_of_their_place, mask_logits, resize_logits
from avis_stream.models.sounding_chain import log_odds
from avis_stream.models.tracker import ClipPrediction, likeliest, presence_of, same_object
from avis_stream.online.colours import COLOURS, colours_of
from avis_stream.online.config import OnlineConfig
from avis_stream.online.identity_table import Observation
from avis_stream.online.looking import FrameAnswer


@dataclass(frozen=True, slots=True)
class TrackerAnswer:
    """What the tracker says about a stream after a step, as offline about a clip; no gate has touched it.

    M video queries say it, or with `TrackerConfig.objects="frame"` the N frame queries of the frame.
    """

    pred_logits: Tensor
    """[M, K + 1]; the last class is "no object"."""
    pred_mask_embed: Tensor
    """[M, Cm]; with `TrackerConfig.masks="frame"` those of the frame's own queries."""
    similarity: Tensor
    """[M, C]: sigmoid of a dot product with another is the chance of being the same object."""
    presence: Tensor | None
    """[M], chance of sounding in this frame; None if nothing was said about the frame queries."""
    tokens: Tensor
    """[N, C], object tokens of the frame."""
    frame_similarity: Tensor
    """[N, C], their embeddings, to compare with `similarity`."""
    clip_mask_features: Tensor
    """[Cm, h, w] of the frame."""
    there: Tensor | None = None
    """Bool [M], whether some frame query is the object; None: its mask alone tells."""
    by_frame: bool = False
    """The N frame queries say it, which the next frame does not have."""

    @property
    def pred_masks(self) -> Tensor:
        """Mask logits of the frame, [M, h, w] at stride 4 of the padded input."""
        return torch.einsum("mc,chw->mhw", self.pred_mask_embed, self.clip_mask_features)


def said_by_frame_queries(seen: FrameAnswer, tokens: Tensor, of_frame: Tensor) -> TrackerAnswer:
    """What the frame queries say of themselves, where they are the objects (`TrackerConfig.objects="frame"`).

    Args:
        seen: What the frame shows, with `logits` [N, K + 1] and `mask_embed` [N, Cm] set; `features` [Cm, h, w].
        tokens: [N, C], object tokens of the frame.
        of_frame: [N, C], their similarity embeddings.
    Returns:
        An answer of M = N queries: `pred_logits` [N, K + 1], `pred_mask_embed` [N, Cm], `similarity` [N, C],
        `presence` [N] or None.
    """
    assert seen.mask_embed is not None
    assert seen.logits is not None
    return TrackerAnswer(
        pred_logits=seen.logits,
        pred_mask_embed=seen.mask_embed,
        similarity=of_frame,
        presence=seen.chance,
        tokens=tokens,
        frame_similarity=of_frame,
        clip_mask_features=seen.features,
        by_frame=True,
    )


def said_by_video_queries(
    answer: ClipPrediction, n: int, seen: FrameAnswer, tokens: Tensor, of_frame: Tensor
) -> TrackerAnswer:
    """What the video queries of a stream say, as the frame queries of its last frame bear out.

    Args:
        answer: Of B streams stepped together: logits [B, M, K + 1], mask embeddings [B, M, Cm], similarity [B, M, C].
        n: Which of them this is, in [0, B).
        seen: What its last frame shows: `features` [Cm, h, w], `chance` [N] or None, `mask_embed` [N, Cm] or None.
        tokens: [N, C], object tokens of the frame.
        of_frame: [N, C], their similarity embeddings.
    Returns:
        An answer of M queries: `pred_logits` [M, K + 1], `pred_mask_embed` [M, Cm], `similarity` [M, C], `presence`
        [M] or None, as `seen.chance`; `there` bool [M] or None, as `seen.mask_embed`.
    """
    similarity = answer.similarity[n]
    same = same_object(similarity[None], of_frame[None, None])  # [1, M, 1, N]
    sounds = None if seen.chance is None else presence_of(same, seen.chance[None, None])[0, :, 0]
    mask_embed, there = answer.mask_embed[n], None
    if seen.mask_embed is not None:
        number, likely = likeliest(same)
        mask_embed, there = seen.mask_embed[number[0, :, 0]], likely[0, :, 0] > SAME_OBJECT
    return TrackerAnswer(
        pred_logits=answer.logits[n],
        pred_mask_embed=mask_embed,
        similarity=similarity,
        presence=sounds,
        tokens=tokens,
        frame_similarity=of_frame,
        clip_mask_features=seen.features,
        there=there,
    )


@dataclass(frozen=True, slots=True)
class Gates:
    """What may be shown in one step."""

    presence: float | None
    """Least chance of sounding; None: any."""
    silent: bool
    """The second of sound holds nothing: nothing is shown."""
    born_unheard: bool
    """Whether an object that does not sound may become an identity: the model finds silent objects too."""

    @property
    def least_odds(self) -> float:
        """Log-odds of sounding above which something is shown."""
        if self.presence is None or self.presence <= 0:
            return -math.inf
        return float(log_odds(torch.tensor(self.presence)))


def observe(
    answer: TrackerAnswer,
    sizes: MaskSizes,
    config: OnlineConfig,
    gates: Gates,
    *,
    one_piece: bool = False,
    picture: Tensor | None = None,
) -> Observation:
    """What a frame shows: the queries with a mask in it, best first, on the CPU.

    Args:
        answer: Of the step.
        sizes: Through which masks go.
        config: Thresholds.
        gates: Of the step.
        one_piece: As `PostprocessConfig.one_piece`.
        picture: uint8 [3, H, W], for the colours of what is seen; None: they stay unknown.
    """
    probability = answer.pred_logits.float().softmax(-1)[:, :-1]
    best, query = probability.amax(-1).topk(min(config.max_candidates, len(probability)))
    query = query[best >= config.candidate_score]
    if not len(query):
        return Observation.nothing(probability.shape[1], answer.similarity.shape[1], answer.pred_mask_embed.shape[1])
    logits = _candidate_logits(answer, query, sizes, config, one_piece)
    hard = (logits > 0).float()
    area = hard.sum(dim=(1, 2))
    certain = (logits.sigmoid() * hard).sum(dim=(1, 2))
    visible = area >= max(1.0, config.min_area * logits.shape[1] * logits.shape[2])
    if answer.there is not None:
        visible &= answer.there[query]
    grid = mask_grids(logits)
    unknown = logits.new_full((len(query), COLOURS), math.nan, dtype=torch.float32)
    colours = unknown if picture is None else colours_of(picture, hard)
    order = (probability[query].amax(-1) * certain / (area + 1e-6)).argsort(descending=True, stable=True)
    order = order[visible[order]]
    if config.duplicate_iou is not None:
        overlaps = mask_iou(grid[order], grid[order]).cpu().numpy()
        order = order[best_of_their_place(overlaps, config.duplicate_iou)]
    query = query[order]
    evidence = _evidence(answer, query, gates)
    token, slot = _likest_token(answer, query)
    return Observation(
        query=torch.full_like(query, -1).cpu() if answer.by_frame else query.cpu(),
        probability=probability[query].cpu(),
        similarity=answer.similarity[query].float().cpu(),
        certain=certain[order].double().cpu(),
        area=area[order].double().cpu(),
        grid=grid[order].cpu(),
        mask_embed=answer.pred_mask_embed[query].float().cpu(),
        evidence=evidence.cpu(),
        may_be_born=((evidence > gates.least_odds) | gates.born_unheard).cpu(),
        colours=colours[order].cpu(),
        token=token.float().cpu(),
        token_slot=slot.cpu(),
    )


def _candidate_logits(
    answer: TrackerAnswer, query: Tensor, sizes: MaskSizes, config: OnlineConfig, one_piece: bool
) -> Tensor:
    """Mask logits [J, h, w] by which queries are judged, of the picture without its padding."""
    embed, features = answer.pred_mask_embed[query], answer.clip_mask_features
    if config.judge_at == "network":
        return mask_logits(embed, features[None], sizes, one_piece=one_piece)[0].float()
    return feature_logits(embed, features, sizes, one_piece=one_piece)


def _evidence(answer: TrackerAnswer, query: Tensor, gates: Gates) -> Tensor:
    """Log-odds float32 [J] that each query's object sounds in this frame, by this frame alone."""
    if gates.silent or gates.presence is None or answer.presence is None:
        return torch.full_like(query, -math.inf if gates.silent else math.inf, dtype=torch.float32)
    return log_odds(answer.presence[query])


def _likest_token(answer: TrackerAnswer, query: Tensor) -> tuple[Tensor, Tensor]:
    """Token [J, C] of the frame that is likest each query's object, and its slot [J]: a frame query is its own."""
    slot = query if answer.by_frame else (answer.similarity[query] @ answer.frame_similarity.T).argmax(-1)
    return answer.tokens[slot], slot


def draw(
    mask_embed: Tensor, features: Tensor, sizes: MaskSizes, threshold: float = 0.5, *, one_piece: bool = False
) -> tuple[Tensor, Tensor]:
    """Masks on a picture.

    Args:
        mask_embed: [I, Cm].
        features: [Cm, h, w] of the frame.
        sizes: Through which masks go.
        threshold: Probability above which a pixel belongs to a mask.
        one_piece: As `PostprocessConfig.one_piece`.
    Returns:
        Masks bool [I, H, W] on the CPU, and their boxes float32 [I, 4].
    """
    if not len(mask_embed):
        return torch.zeros(0, *sizes.output, dtype=torch.bool), torch.zeros(0, 4)
    logits = mask_logits(mask_embed.to(features), features[None], sizes, one_piece=one_piece)
    masks = (resize_logits(logits, sizes.output)[0] > math.log(threshold / (1 - threshold))).cpu()
    return masks, boxes_of(masks)


def boxes_of(masks: Tensor) -> Tensor:
    """Boxes float32 [I, 4] of masks bool [I, H, W]: x, y, width, height in pixels; zeros for empty ones."""
    parts = []
    for axis in (1, 2):  # columns, then rows
        there = masks.any(dim=axis)  # [I, W], then [I, H]
        first = there.int().argmax(dim=1)
        last = there.shape[1] - 1 - there.flip(1).int().argmax(dim=1)
        parts.append((first, torch.where(there.any(dim=1), last + 1 - first, 0)))
    (x, width), (y, height) = parts
    return torch.stack([x, y, width, height], dim=1).float()
