"""What the tracker learns from: clips whose frames a localizer has seen, however long ago, and the truth about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from avis_stream.config import LossConfig
from avis_stream.models.tracker import ClipPrediction, Tracker, presence_of, same_object
from avis_stream.train.losses import Predictions, Targets, criterion, similarity_loss
from avis_stream.train.matcher import Match
from avis_stream.train.points import DrawPoints


@dataclass(frozen=True, slots=True)
class FoundInFrame:
    """Which frame queries of a frame answer for which objects."""

    query: Tensor
    """int64 [F]."""
    ids: Tensor
    """int64 [F], as `Targets.ids` of the clip."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalizedClips:
    """V clips of T frames as the tracker gets them, and what is true of them."""

    queries: Tensor
    """[V, T, N, C]."""
    audio: Tensor
    """[V, T, A]."""
    mask_features: Tensor
    """[V, T, Cm, h, w]."""
    targets: list[Targets]
    """[V]; their `sounding` is bool [G, T]."""
    found: list[list[FoundInFrame]]
    """[V][T]."""
    chance: Tensor | None = None
    """[V, T, N], each frame query's chance of sounding; None without a sounding head."""


def clip_losses(tracker: Tracker, clips: LocalizedClips, config: LossConfig, draw: DrawPoints) -> dict[str, Tensor]:
    """Unweighted losses by name: the clip criterion after each decoder layer, similarity, presence.

    Source: official `AVISM.train_model` and VITA's criterion; presence is ours.
    """
    predictions, tokens = tracker(clips.queries, clips.audio)
    return losses_of_answers(tracker, predictions, tokens, clips, config, draw)


def losses_of_answers(
    tracker: Tracker,
    predictions: Sequence[ClipPrediction],
    tokens: Tensor,
    clips: LocalizedClips,
    config: LossConfig,
    draw: DrawPoints,
) -> dict[str, Tensor]:
    """The same for answers that are there already: one `ClipPrediction` a decoder layer, tokens [V, T, N, C]."""
    losses: dict[str, Tensor] = {}
    count = mask_count(sum(len(t.labels) for t in clips.targets), clips.queries.device)
    matches: list[Match] = []
    for i in [len(predictions) - 1, *range(len(predictions) - 1)]:
        masks = torch.einsum("vmc,vtchw->vmthw", predictions[i].mask_embed, clips.mask_features)
        answers = Predictions(predictions[i].logits.float(), masks.float())
        compared, own = criterion(answers, clips.targets, count, config, draw)
        matches = matches or own  # those of the last layer, which comes first
        parts = {"class": compared.classes, "mask": compared.mask, "dice": compared.dice}
        note(losses, "clip", i, len(predictions), parts)
    of_frames = tracker.similarity_of_frames(tokens)  # [V, T, N, C]
    losses["clip_similarity"] = _similarity(predictions[-1].similarity, of_frames, clips, matches)
    if clips.chance is not None and config.presence_weight > 0:
        losses["clip_presence"] = _presence(predictions[-1].similarity, of_frames, clips.chance, clips.targets, matches)
    return losses


def _similarity(videos: Tensor, frames: Tensor, clips: LocalizedClips, matches: list[Match]) -> Tensor:
    """Compares the embeddings of all matched frame and video queries of each clip."""
    embeddings: list[Tensor] = []
    ids: list[Tensor] = []
    clip: list[Tensor] = []
    for v, (target, pairs) in enumerate(zip(clips.targets, matches, strict=True)):
        own = [frames[v, t, there.query] for t, there in enumerate(clips.found[v])]
        embeddings += [*own, videos[v, pairs.query]]
        ids += [*(there.ids for there in clips.found[v]), target.ids[pairs.target]]
        clip.append(torch.full((sum(map(len, own)) + len(pairs.query),), v))
    return similarity_loss(torch.cat(embeddings).float(), torch.cat(ids), torch.cat(clip).to(videos.device))


def _presence(videos: Tensor, frames: Tensor, chance: Tensor, targets: list[Targets], matches: list[Match]) -> Tensor:
    """Binary cross entropy of `presence_of` on matched video queries, against who sounds in which frame.

    A frame in which an object is to be seen but is silent is a negative: what its frame query says must not be drowned
    by that of a look-alike which sounds.
    """
    total, count = videos.sum() * 0.0, 0
    for v, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
        if target.sounding is None:
            continue
        same = same_object(videos[v, pairs.query].float()[None], frames[v].float()[None])
        said = presence_of(same, chance[v][None])[0].clamp(1e-4, 1 - 1e-4)  # [G, T]
        wanted = target.sounding[pairs.target].to(said.dtype)
        # Written out: torch's own refuses to work under CUDA's autocast.
        total = total - (wanted * said.log() + (1 - wanted) * (1 - said).log()).sum()
        count += wanted.numel()
    return total / max(1, count)


def note(losses: dict[str, Tensor], level: str, head: int, heads: int, parts: dict[str, Tensor]) -> None:
    """Adds the parts of one prediction head; those of the last head bear no number."""
    suffix = "" if head == heads - 1 else f"_{head}"
    for kind, value in parts.items():
        losses[f"{level}_{kind}{suffix}"] = value


def weighted(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    """The weighted sum of losses that is trained on."""
    weights = {
        "class": config.class_weight,
        "mask": config.mask_weight,
        "dice": config.dice_weight,
        "similarity": config.similarity_weight,
        "presence": config.presence_weight,
        "sounding": config.sounding_weight,
        "tags": config.tag_weight,
        "peaks": config.peak_weight,
    }
    return torch.stack([weights[name.split("_")[1]] * value for name, value in losses.items()]).sum()


def mask_count(own: int, device: torch.device) -> float:
    """Objects that mask losses are divided by: the mean over processes, at least 1."""
    if not (dist.is_available() and dist.is_initialized()):
        return float(max(1, own))
    count = torch.tensor(float(own), device=device)
    dist.all_reduce(count)
    return max(1.0, count.item() / dist.get_world_size())
