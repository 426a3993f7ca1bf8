"""The weights that come with the package."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

from torch import Tensor

from avis_stream.audio.yamnet import is_published
from avis_stream.errors import CheckpointError
from avis_stream.models.avism import AVISM
from avis_stream.weights.files import read_state

BUNDLED = "bundled"
"""How whoever gives weights says that he means those of the package."""

_FOLDER = Path(__file__).parents[1] / "assets" / "weights"
_SINCE = {"avism_mini": ("input.clip_short_side_px=256", "postprocess.presence_threshold=0.4")}  # ADR 0014, 0016


def bundled_weights(name: str) -> Path | None:
    """Path of the weights of a model that ships with the package; None if it does not."""
    path = _FOLDER / f"{name}.safetensors"
    return path if path.is_file() else None


def weights_file(weights: str | os.PathLike[str], name: str) -> str | os.PathLike[str]:
    """The file that is meant by weights of a model: that of the package by `BUNDLED`, else themselves.

    Raises:
        CheckpointError: None ship with the package.
    """
    if os.fspath(weights) != BUNDLED:
        return weights
    path = bundled_weights(name)
    if path is None:
        raise CheckpointError(
            f"no weights of {name} come with the package: give a file of some (--weights FILE on the command line, of "
            'train --init FILE), an official .pth or a converted .safetensors, or --weights "random" for a dry run'
        )
    return path


def since_written(weights: str | os.PathLike[str]) -> tuple[str, ...]:
    """Settings of a weight file that were chosen after it was written; of bundled ones, which are replaced rarely.

    Wherever they lie: a copy of them answers as they do.
    """
    path = Path(weights)
    for name, settings in _SINCE.items():
        bundled = bundled_weights(name)
        if bundled is not None and path.is_file() and filecmp.cmp(path, bundled, shallow=False):
            return settings
    return ()


def stored_state(model: AVISM) -> dict[str, Tensor]:
    """What a weight file of a model holds: all but the sound encoder's published weights, where those ship with the
    package.
    """
    bundled = model.config.audio.encoder == "yamnet"
    return {k: v for k, v in model.state_dict().items() if not (bundled and of_published_encoder(k))}


def of_published_encoder(name: str) -> bool:
    """Whether a model's parameter is one of its sound encoder's published weights, which never learn."""
    return name.startswith("audio_encoder.") and is_published(name)


def bundled_yamnet() -> dict[str, Tensor]:
    """YAMNet's weights (TensorFlow model garden, Apache-2.0), float16 as stored."""
    state, _ = read_state(_FOLDER / "yamnet.safetensors")
    return state
