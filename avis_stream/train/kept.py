"""What is made once for a run and kept beside its checkpoints, so that a resumed run learns from the same."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from avis_stream.errors import CheckpointError
from avis_stream.files import atomic_path

T = TypeVar("T")


def save_kept(path: Path, kind: str, plain: Any, of: str) -> None:
    """Writes tensors, in lists, tuples and dictionaries, whole or not at all.

    Args:
        path: Where to.
        kind: What they are, in one word: `streams`.
        plain: They.
        of: What exactly they are, in words: whoever reads them must want the same.
    """
    with atomic_path(path) as temporary:
        torch.save({"of": of, kind: plain}, temporary)


def load_kept(path: Path, kind: str, build: Callable[[Any], T], of: str) -> T:
    """What `build` makes of that which `save_kept` wrote.

    Raises:
        CheckpointError: It cannot be read, or is another than `of`.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        there, built = kept["of"], build(kept[kind])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} holds no {kind} that can be read ({error}); remove it, they are made again"
        ) from error
    if there != of:
        raise CheckpointError(f"{path} holds {there}; the run is to learn from {of}: give the same as it began with")
    return built
