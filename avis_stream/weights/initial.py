"""Weights to start training from: of any model of the family, or of a backbone alone, whole or in part."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from avis_stream.config import MobileNetConfig, ResNetConfig
from avis_stream.errors import CheckpointError
from avis_stream.models.avism import AVISM
from avis_stream.weights.backbones import mobilenet_state
from avis_stream.weights.bundled import of_published_encoder
from avis_stream.weights.files import read_state
from avis_stream.weights.official import is_official, rename_state


@dataclass(frozen=True, slots=True)
class InitialReport:
    """What became of each weight."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    """In the file, but of another shape or unknown to the model; shapes stand behind the name."""
    fresh: tuple[str, ...]
    """Of the model, but not in the file: they begin at random."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded, {len(self.skipped)} skipped, {len(self.fresh)} fresh"]
        lines += [f"  skipped {name}" for name in self.skipped] + [f"  fresh {name}" for name in self.fresh]
        return "\n".join(lines)


def start_from(model: AVISM, path: str | os.PathLike[str]) -> InitialReport:
    """Copies what fits of a weight file into a model, and says what did not.

    Args:
        model: As `unfolded_model` gives it.
        path: Ours; official AVISM, VITA or Mask2Former-style; a backbone: detectron2's `.pkl` or torchvision's ResNet,
            official Swin, MobileNetV2.
    Raises:
        CheckpointError: The file cannot be read, or nothing of it fits.
    """
    state, _ = read_state(path)
    ours = _under_our_names(model, state)
    own = model.state_dict()
    fitting = {k: v for k, v in ours.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise CheckpointError(f"nothing in {path} fits {model.config.name}; keys are like {sorted(state)[:3]}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in fitting.items()}, strict=False)
    skipped = [
        f"{k} (file {list(v.shape)}, model {list(own[k].shape)})" if k in own else f"{k} (unknown)"
        for k, v in ours.items()
        if k not in fitting
    ]
    learnt = {k for k in own if not of_published_encoder(k) and not k.endswith(".relative_position_index")}
    return InitialReport(tuple(sorted(fitting)), tuple(sorted(skipped)), tuple(sorted(learnt - set(fitting))))


def _under_our_names(model: AVISM, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if is_official(state):
        return rename_state(state)
    if any(key.startswith(("backbone.", "tracker.", "localizer.")) for key in state):
        return dict(state)
    backbone = model.config.backbone
    if isinstance(backbone, MobileNetConfig) and "features.0.0.weight" in state:
        renamed = mobilenet_state(state)
    elif isinstance(backbone, ResNetConfig) and "layer1.0.conv1.weight" in state:
        renamed = torchvision_resnet_state(state)
    else:  # detectron2's and Swin's own names are ours
        renamed = dict(state)
    return {f"backbone.{key}": value for key, value in renamed.items()}


def torchvision_resnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's ResNet under detectron2's names: `layer1.0.bn1` is `res2.0.conv1.norm`."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
        name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
        name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
        renamed[re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)] = value
    return renamed
