"""`avis-stream convert`: an official checkpoint, or a weight file of ours, to a weight file of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avis_stream.errors import CheckpointError
from avis_stream.weights.bundled import since_written, stored_state
from avis_stream.weights.files import read_state, save_weights
from avis_stream.weights.load import unfolded_model
from avis_stream.weights.official import config_of, is_official, rename_state
from avis_stream.weights.vggish import vggish_state


def convert(source: Path, target: Path, audio_weights: Path | None, *, half: bool, settings: Sequence[str] = ()) -> str:
    """Writes `target` (safetensors) with the weights of `source`, checked to fit; returns a line about it.

    Args:
        source: An official checkpoint, or weights of ours whose settings are to change (thresholds, say).
        target: Where to.
        audio_weights: VGGish weights to put in as well.
        half: Store as float16.
        settings: Changes to the configuration that is stored.
    Raises:
        CheckpointError: `source` cannot be read or does not fit, or `target` is no `.safetensors`.
        ConfigError: No such setting.
    """
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the target must end in .safetensors, got {target.name!r}")
    state, config = read_state(source)
    if is_official(state):
        state = rename_state(state)
        config = config_of(state, name=target.stem)
    if config is None:
        raise CheckpointError(f"{source} holds no AVISM or VITA weights, got keys like {sorted(state)[:3]}")
    config = config.with_overrides((*since_written(source), *settings))
    if audio_weights is not None:
        state |= {f"audio_encoder.{key}": value for key, value in vggish_state(audio_weights).items()}
    model = unfolded_model(config, state, str(source))
    stored = stored_state(model)
    save_weights(stored, model.config, target, half=half)
    parameters = sum(value.numel() for value in stored.values())
    return f"{target}: {parameters:,} weights, {target.stat().st_size / 2**20:.1f} MiB"
