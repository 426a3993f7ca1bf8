"""Training state on disk: everything a run needs to go on as if it had never stopped, written whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from avis_stream.config import AVISMConfig
from avis_stream.errors import CheckpointError
from avis_stream.files import atomic_path
from avis_stream.models.avism import AVISM


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done; also the state of the sampler, since clips are numbered."""
    best: float = float("-inf")
    """Best validation figure so far."""


def save_checkpoint(path: Path, model: AVISM, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes the state of a run."""
    state = {
        "config": model.config.to_json(),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": progress.step,
        "best": progress.best,
        "random": torch.get_rng_state(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, model: AVISM, optimiser: torch.optim.Optimizer) -> Progress:
    """Takes a run up where `save_checkpoint` left it, torch's generator included.

    Raises:
        CheckpointError: Missing, cut short, or of another configuration.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = AVISMConfig.from_json(state["config"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path} cannot be resumed from ({reason}); is it complete?") from error
    if stored != model.config:
        raise CheckpointError(f"{path} is of another configuration; give the same --model and --set as when it began")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return Progress(step=state["step"], best=state["best"])
