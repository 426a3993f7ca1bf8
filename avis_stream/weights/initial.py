"""Weights to start training from: of any model of the family, or of a backbone alone, whole or in part."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from avis_stream.config import MobileNetConfig, ResNetConfig
from avis_stream.errors import CheckpointError
from avis_stream.models.avism import AVISM
from avis_stream.models.classes import CLASS_AXES, of_classes
from avis_stream.weights.backbones import mobilenet_state
from avis_stream.weights.bundled import of_published_encoder
from avis_stream.weights.files import not_finite, read_state
from avis_stream.weights.official import is_official, rename_state


@dataclass(frozen=True, slots=True)
class InitialReport:
    """What became of each weight."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    """In the file, but of another shape or unknown to the model; shapes stand behind the name."""
    fresh: tuple[str, ...]
    """Of the model, but not in the file: they begin at random."""
    fresh_classes: tuple[str, ...] = ()
    """Of the model, but not of a file that names its classes: what tells them begins at random."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded, {len(self.skipped)} skipped, {len(self.fresh)} fresh"]
        if self.fresh_classes:
            lines.append(f"  classes that begin afresh: {', '.join(self.fresh_classes)}")
        lines += [f"  skipped {name}" for name in self.skipped] + [f"  fresh {name}" for name in self.fresh]
        return "\n".join(lines)


def start_from(model: AVISM, path: str | os.PathLike[str]) -> InitialReport:
    """Copies what fits of a weight file into a model, and says what did not.

    What stands for a class is taken by the class's name from files that say their classes; of others as it comes.

    Args:
        model: As `unfolded_model` gives it.
        path: Ours, a run's `last.pt` too; official AVISM, VITA or Mask2Former-style; a backbone: detectron2's `.pkl` or
            torchvision's ResNet, official Swin, MobileNetV2.
    Raises:
        CheckpointError: The file cannot be read, nothing of it fits, or what fits holds NaN or infinity.
    """
    state, config = read_state(path)
    ours, own = _under_our_names(model, state), model.state_dict()
    if config is not None:
        ours = _by_class(ours, config.classes, own, model.classes)
    fitting = {k: v for k, v in ours.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise CheckpointError(f"nothing in {path} fits {model.config.name}; keys are like {sorted(state)[:3]}")
    if broken := not_finite(fitting):
        raise CheckpointError(f"{path} holds NaN or infinity, and cannot be begun with: {', '.join(broken)}")
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in fitting.items()}, strict=False)
    skipped = [
        f"{k} (file {list(v.shape)}, model {list(own[k].shape)})" if k in own else f"{k} (unknown)"
        for k, v in ours.items()
        if k not in fitting
    ]
    learnt = {k for k in own if not of_published_encoder(k) and not k.endswith(".relative_position_index")}
    fresh = tuple(sorted(learnt - set(fitting)))
    known = model.classes if config is None else config.classes
    fresh_classes = tuple(name for name in model.classes if name not in known)
    return InitialReport(tuple(sorted(fitting)), tuple(sorted(skipped)), fresh, fresh_classes)


def _by_class(
    state: Mapping[str, Tensor], classes: Sequence[str], own: Mapping[str, Tensor], own_classes: Sequence[str]
) -> dict[str, Tensor]:
    """A file's state with what stands for classes as a model of others can take it; what it cannot is left out."""
    taken: dict[str, Tensor] = {}
    for name, value in state.items():
        where = CLASS_AXES.get(name)
        if where is None or name not in own or where.shape(value, classes) != where.shape(own[name], own_classes):
            taken[name] = value
        elif (mixed := of_classes(name, own[name], value, own_classes, classes)) is not None:
            taken[name] = mixed
    return taken


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
