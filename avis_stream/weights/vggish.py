"""Public VGGish weights of either kind, under our names.

Two files circulate: AudioSet's TensorFlow checkpoint `vggish_model.ckpt`, and its torch port `vggish-10086976.pth`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from avis_stream.errors import CheckpointError
from avis_stream.weights.files import read_state
from avis_stream.weights.tensorflow import read_tf_checkpoint

_TF_LAYERS = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3/conv3_1": "features.6",
    "conv3/conv3_2": "features.8",
    "conv4/conv4_1": "features.11",
    "conv4/conv4_2": "features.13",
    "fc1/fc1_1": "embeddings.0",
    "fc1/fc1_2": "embeddings.2",
    "fc2": "embeddings.4",
}
"""Layers by their name below `vggish/` in the TensorFlow checkpoint, and by ours."""


def vggish_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads public VGGish weights.

    Args:
        path: `vggish_model.ckpt` or `vggish-10086976.pth`, or a `.safetensors` of ours.
    Raises:
        CheckpointError: Neither; the message lists what is missing.
    """
    path = Path(path)
    if path.suffix == ".ckpt":
        return state_from_tensorflow(path)
    state, _ = read_state(path)
    # The torch port carries PCA parameters in some copies; AVISM uses none.
    kept = {k: v for k, v in state.items() if k.startswith(("features.", "embeddings."))}
    _require_all(kept, path)
    return kept


def state_from_tensorflow(path: Path) -> dict[str, Tensor]:
    """The weights of a TensorFlow checkpoint, turned to torch's layouts."""
    arrays = read_tf_checkpoint(path)
    state = {}
    for theirs, ours in _TF_LAYERS.items():
        for kind, suffix in (("weights", "weight"), ("biases", "bias")):
            array = arrays.get(f"vggish/{theirs}/{kind}")
            if array is None:
                continue
            tensor = torch.from_numpy(array)
            if kind == "weights":  # [height, width, in, out] to [out, in, height, width]; [in, out] to [out, in]
                tensor = tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.T
            state[f"{ours}.{suffix}"] = tensor.contiguous()
    _require_all(state, path)
    return state


def _require_all(state: dict[str, Tensor], path: Path) -> None:
    wanted = {f"{layer}.{kind}" for layer in _TF_LAYERS.values() for kind in ("weight", "bias")}
    if set(state) != wanted:
        missing, more = sorted(wanted - set(state)), sorted(set(state) - wanted)
        raise CheckpointError(f"{str(path)!r} is not VGGish: missing {missing}, unexpected {more}")
