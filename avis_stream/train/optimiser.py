"""AdamW with the official groups: a slower backbone, no weight decay on norms, embeddings and position biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from avis_stream.checks import require
from avis_stream.config import TrainConfig
from avis_stream.config_text import settings_of
from avis_stream.errors import ConfigError
from avis_stream.models.avism import AVISM

_OF_CLIPS = ("tracker.", "clip_mask_features.")
_DECIDING = tuple(
    f"train.{name}" for name in ("frozen", "backbone_factor", "query_layers", "streams.count", "sounds.count")
)
"""Settings that say what learns."""


def all_but(model: nn.Module, *learning: str) -> tuple[str, ...]:
    """What `TrainConfig.frozen` must be so that nothing learns but some parts: as few names as can say it.

    Args:
        model: Whose parts.
        learning: First words of their names, each up to its dot: `tracker.`.
    """
    names = [name for name, _ in model.named_parameters()]
    learns = [name for name in names if name.startswith(learning)]
    frozen: dict[str, None] = {}
    for name in names:
        if not name.startswith(learning):
            words = name.split(".")
            wholes = [".".join(words[:n]) + "." for n in range(1, len(words))] + [name]
            frozen[next(part for part in wholes if not any(other.startswith(part) for other in learns))] = None
    return tuple(frozen)


def learning_parameters(model: AVISM, config: TrainConfig, still: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that learn, by name. The audio encoder's do from sounds alone, never from clips; `frozen` parts do
    not, nor the backbone at factor 0, nor the tracker at 0 `query_layers`.

    Args:
        model: Whose weights.
        config: Schedule.
        still: First words of the names of what else does not learn: what the stage at hand cannot teach.
    Raises:
        ConfigError: A `frozen` prefix names nothing, or nothing is left to learn.
    """
    for prefix in config.frozen:
        there = any(name.startswith(prefix) for name, _ in model.named_parameters())
        require(there, "TrainConfig.frozen", prefix, "the first words of a parameter's name, as `backbone.stem`")
    deaf = () if config.sounds.count else ("audio_encoder.",)
    resting = () if config.backbone_factor > 0 else ("backbone.",)
    fixed = (*still, *deaf, *resting, *config.frozen, *(() if config.query_layers else _OF_CLIPS))
    learns = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(fixed)}
    if not learns:
        deciding = (setting for setting in settings_of(config, "train.") if setting.partition("=")[0] in _DECIDING)
        raise ConfigError(f"nothing is left to learn with {' '.join(deciding)}; change one of them")
    return learns


def build_optimiser(model: AVISM, config: TrainConfig, still: Sequence[str] = ()) -> torch.optim.AdamW:
    """An optimiser over the weights that are `learning_parameters`; the others get no gradients.

    Raises:
        ConfigError: As `learning_parameters`.
    """
    learns = learning_parameters(model, config, still)
    undecayed = {
        id(parameter)
        for part in model.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm, nn.Embedding)) or name == "relative_position_bias_table"
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learns)
    for name, parameter in learns.items():
        factor = config.backbone_factor if name.startswith("backbone.") else 1.0
        decay = 0.0 if id(parameter) in undecayed else config.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": config.learning_rate * factor, "factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=config.learning_rate,
    )


def set_rate(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Sets every group's learning rate for a step; returns that of the fastest."""
    rate = config.learning_rate * config.rate_at(step)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    return rate
