"""Training state on disk: everything a run needs to go on as if it had never stopped, written whole or not at all."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avis_stream.config import AVISMConfig, TrainConfig
from avis_stream.errors import CheckpointError
from avis_stream.files import atomic_path
from avis_stream.models.avism import AVISM
from avis_stream.train.processes import all_or_none, from_all, rank_and_count

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done; also the state of the sampler, since clips are numbered."""
    best: float = float("-inf")
    """Best validation figure so far."""
    validated: int = 0
    """The step after which it was last judged."""


def save_checkpoint(
    path: Path, model: AVISM, optimiser: torch.optim.Optimizer, config: TrainConfig, progress: Progress
) -> None:
    """Writes the state of a run. All processes must call it: each has random numbers of its own; the first writes."""
    random = from_all({"cpu": torch.get_rng_state(), "cuda": _cuda_random(model.device)})
    with all_or_none("writing a checkpoint", model.device):
        if rank_and_count()[0] == 0:
            _write(path, model, optimiser, config, progress, random)


def _write(
    path: Path,
    model: AVISM,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    progress: Progress,
    random: list[dict[str, torch.Tensor | None]],
) -> None:
    state = {
        "config": model.config.to_json(),
        "train": config.to_json(),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": progress.step,
        "best": progress.best,
        "validated": progress.validated,
        "random": random,
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, model: AVISM, optimiser: torch.optim.Optimizer) -> Progress:
    """Takes a run up where `save_checkpoint` left it, this process's random numbers included.

    Raises:
        CheckpointError: Missing, cut short, of another configuration, or other parameters were learning.
    """
    state = _read(path)
    if AVISMConfig.from_json(state["config"]) != model.config:
        raise CheckpointError(
            f"{path} is of another configuration, and a run goes on with its own model: leave out --set of the model; "
            "convert changes settings of what it has learnt"
        )
    model.load_state_dict(state["model"])
    _continue(optimiser, state["optimiser"], path)
    (rank, count), random = rank_and_count(), state["random"]
    if count != len(random):
        logger.warning(
            "%s was written by %d processes and %d go on: clips and random numbers will be others",
            path, len(random), count,
        )  # fmt: skip
    if rank < len(random):
        torch.set_rng_state(random[rank]["cpu"])
        if random[rank]["cuda"] is not None and model.device.type == "cuda":
            torch.cuda.set_rng_state(random[rank]["cuda"], model.device)
    step = state["step"]
    validated = state.get("validated", step)  # once, checkpoints did not say so and were written after validation
    return Progress(step=step, best=state["best"], validated=validated)


def _continue(optimiser: torch.optim.Optimizer, stored: dict[str, Any], path: Path) -> None:
    """Takes what an optimiser has gathered; rates and decay are those of the schedule at hand, which may be another."""
    wanted = [{key: group[key] for key in ("factor", "weight_decay")} for group in optimiser.param_groups]
    sizes = [[len(group["params"]) for group in groups] for groups in (optimiser.param_groups, stored["param_groups"])]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{path} was learning {sum(sizes[1])} parameters in {len(sizes[1])} groups, now {sum(sizes[0])} in "
            f"{len(sizes[0])} are to learn; leave train.frozen and what else decides that as they were, or begin anew "
            "with --init"
        )
    optimiser.load_state_dict(stored)
    for group, own in zip(optimiser.param_groups, wanted, strict=True):
        group.update(own)


def stored_configuration(path: Path) -> tuple[AVISMConfig, TrainConfig]:
    """The model and the schedule of a run that stopped.

    Raises:
        CheckpointError: Missing or cut short.
    """
    state = _read(path, mmap=True)
    return AVISMConfig.from_json(state["config"]), TrainConfig.from_json(state["train"])


def stored_step(path: Path) -> int:
    """The step after which the state of a run was last saved.

    Raises:
        CheckpointError: Missing or cut short.
    """
    step: int = _read(path, mmap=True)["step"]
    return step


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if missing := {"config", "train", "model", "optimiser", "step", "best", "random"} - set(state):
            raise KeyError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} cannot be resumed from ({reason}); is it complete?") from error
    return state


def _cuda_random(device: torch.device) -> torch.Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None
