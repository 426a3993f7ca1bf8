"""Models by name, and from official checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from avis_stream.audio.yamnet import YAMNet
from avis_stream.checks import require
from avis_stream.config import AVISMConfig
from avis_stream.errors import CheckpointError, ConfigError
from avis_stream.models.avism import AVISM
from avis_stream.models.literal import LiteralAVISM
from avis_stream.presets import preset
from avis_stream.weights.bundled import BUNDLED, bundled_yamnet, since_written, weights_file
from avis_stream.weights.files import fill, read_state
from avis_stream.weights.official import config_of, is_official, rename_state
from avis_stream.weights.vggish import vggish_state

StrPath = str | os.PathLike[str]
Precision = Literal["float32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    name: str,
    weights: StrPath | None = None,
    device: str | torch.device = "cpu",
    *,
    audio_weights: StrPath | None = None,
    settings: Sequence[str] = (),
    precision: Precision = "float32",
    reference: bool = False,
) -> AVISM:
    """A model, ready for inference.

    Args:
        name: One of the presets (`avism_r50_coco`, ...).
        weights: An official `.pth`, our `.safetensors` or a run's `last.pt`; None or `"bundled"`: the bundled ones;
            `"random"`: for benchmarks.
        device: Where to put it.
        audio_weights: Public VGGish weights, for models that hear through it; None: none, unless `weights` holds them.
        settings: Changes to the configuration, `"tracker.token_window=3"`.
        precision: Of backbone and pixel decoder. "bfloat16" is for GPUs and for CPUs that have it, on others it is
            slow; weights take half the memory, masks move by a pixel here and there, identities stay float32.
        reference: Build the literal official form, for comparison; slow and large.
    Raises:
        ConfigError: No such model, setting, precision or device.
        CheckpointError: The weights cannot be read or do not fit.
    """
    device = usable_device(device)
    require(precision in PRECISIONS, "precision", precision, "one of " + ", ".join(PRECISIONS))
    config = preset(name).with_overrides(settings)
    weights = weights_file(BUNDLED if weights is None else weights, name)
    if weights == "random":
        model = unfolded_model(config, None, "", reference=reference)
        return model.prepare_for_inference(PRECISIONS[precision]).to(device)
    state, stored = read_state(weights)
    if is_official(state):
        state = rename_state(state)
    if stored is not None:
        config = stored.with_overrides((*since_written(weights), *settings))
    state = _with_sound(state, audio_weights)
    model = unfolded_model(config, state, str(weights), reference=reference)
    return model.prepare_for_inference(PRECISIONS[precision]).to(device)


def usable_device(wanted: str | torch.device) -> torch.device:
    """The device, if this torch can compute on it.

    Raises:
        ConfigError: It cannot, or there is no such thing.
    """
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by what it lacks for the device
        why = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"device must be one that this torch can use, such as cpu, got {str(wanted)!r} ({why}); leave it out to "
            "compute on the CPU, or install a torch that is built for your GPU"
        ) from error
    return device


def from_official(
    path_or_state_dict: StrPath | Mapping[str, Tensor],
    attention_heads: int = 8,
    token_window: int = 6,
    top_k: int = 100,
    *,
    classes: Sequence[str] | None = None,
    audio_weights: StrPath | None = None,
    reference: bool = False,
) -> AVISM:
    """A model from an official AVISM or VITA checkpoint, of either variant and any size, ready for inference.

    Args:
        path_or_state_dict: A `.pth` file or its contents; sizes are read off the tensors.
        attention_heads: What no tensor tells: heads of all attention but Swin's.
        token_window: Frames in an attention window of the tracker.
        top_k: (query, class) pairs that a clip may give.
        classes: Names of the classes; None: those of AVISeg if there are 26.
        audio_weights: Public VGGish weights; None: the model takes audio features only.
        reference: Build the literal official form.
    Raises:
        CheckpointError: Missing, unexpected and mis-shaped keys are listed.
    """
    if isinstance(path_or_state_dict, Mapping):
        official, where = dict(path_or_state_dict), "the state dict"
    else:
        (official, _), where = read_state(path_or_state_dict), str(path_or_state_dict)
    if not is_official(official):
        raise CheckpointError(f"{where} holds no official AVISM or VITA weights, got keys like {sorted(official)[:3]}")
    state = rename_state(official)
    config = config_of(state, attention_heads=attention_heads, token_window=token_window, top_k=top_k, classes=classes)
    state = _with_sound(state, audio_weights)
    return unfolded_model(config, state, where, reference=reference).prepare_for_inference()


def unfolded_model(
    config: AVISMConfig, state: dict[str, Tensor] | None, where: str, *, reference: bool = False
) -> AVISM:
    """A model filled with `state` (None: untrained), every part in the form in which it trains.

    Without VGGish weights in `state` there is no audio encoder; YAMNet's come with the package.
    """
    hears = state is None or any(key.startswith("audio_encoder.") for key in state)
    if config.audio.encoder == "vggish" and not hears:
        config = replace(config, audio=replace(config.audio, encoder="none"))
    model = (LiteralAVISM if reference else AVISM)(config)
    if isinstance(model.audio_encoder, YAMNet):  # what is published is the same for every model, so it is stored once
        untrained = model.state_dict() if state is None else {}
        state = untrained | {f"audio_encoder.{k}": v for k, v in bundled_yamnet().items()} | (state or {})
    if state is not None:
        fill(model, state, where)
    return model


def untrained_model(config: AVISMConfig, audio_weights: StrPath | None = None) -> AVISM:
    """A model to be trained. Its sound encoder, which is not, has its public weights, or is not there at all.

    Args:
        config: Its sizes.
        audio_weights: Public VGGish weights, for models that hear through it; None: such a model takes features that
            were made beforehand, as AVISeg has them. YAMNet's weights come with the package.
    """
    if config.audio.encoder != "vggish":
        return unfolded_model(config, None, "")
    if audio_weights is None:
        return unfolded_model(replace(config, audio=replace(config.audio, encoder="none")), None, "")
    model = unfolded_model(config, None, "")
    fill(model, _with_sound(model.state_dict(), audio_weights), str(audio_weights))
    return model


def _with_sound(state: dict[str, Tensor], audio_weights: StrPath | None) -> dict[str, Tensor]:
    if audio_weights is None:
        return state
    return state | {f"audio_encoder.{key}": value for key, value in vggish_state(audio_weights).items()}
