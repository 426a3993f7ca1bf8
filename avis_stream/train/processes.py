"""The processes of a run under `torchrun`, each with clips of its own, and all of one mind; or one process alone.

Whatever a process does that others wait for (leave the loop, save, raise) all must do in the same step: else the rest
hang in the next exchange of gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from avis_stream.errors import AvisStreamError
from avis_stream.weights.load import usable_device

_PATIENCE = timedelta(hours=12)
"""How long processes wait for each other; the first of them validates while the others do."""


def device_of_process(name: str) -> torch.device:
    """The device that this process learns on: of `cuda` the one that is its own under `torchrun`.

    Raises:
        ConfigError: There is no such device here.
    """
    device = usable_device(
        f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def join_processes(device: torch.device) -> None:
    """Joins the other processes when started by `torchrun`; they exchange gradients where those are."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)


def leave_processes() -> None:
    """Undoes `join_processes`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Which of how many processes this is, from 0."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any process; all must ask."""
    if not dist.is_initialized():
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return count.item() > 0


@contextmanager
def all_or_none(what: str, device: torch.device) -> Iterator[None]:
    """Around what one process does while the others wait, `what` by name: where it fails, all stop at once.

    Raises:
        AvisStreamError: It failed in another process. Where it failed, the error is its own, also if the others could
            not be told.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    try:
        failed = any_of_all(failure is not None, device)
    except Exception as broken:  # most likely after the same failure: it is not what the user must know first
        if failure is None:
            raise
        failure.add_note(f"the other processes could not be told: {broken}")
        failed = True
    if failed:
        raise failure or AvisStreamError(f"{what} failed in another process, whose message says why")


def from_all(value: Any) -> list[Any]:
    """What each process gives, by rank; all must give something."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
