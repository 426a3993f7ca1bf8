"""`avis-stream convert`: an official checkpoint to a weight file of ours."""

from __future__ import annotations

from pathlib import Path

from avis_stream.errors import CheckpointError
from avis_stream.weights.files import read_state, save_weights
from avis_stream.weights.load import unfolded_model
from avis_stream.weights.official import config_of, is_official, rename_state
from avis_stream.weights.vggish import vggish_state


def convert(official: Path, target: Path, audio_weights: Path | None, *, half: bool) -> str:
    """Writes `target` (safetensors) with the weights of `official`, checked to fit; returns a line about it.

    Raises:
        CheckpointError: `official` cannot be read or does not fit, or `target` is no `.safetensors`.
    """
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the target must end in .safetensors, got {target.name!r}")
    state, _ = read_state(official)
    if not is_official(state):
        raise CheckpointError(f"{official} holds no official AVISM or VITA weights, got keys like {sorted(state)[:3]}")
    state = rename_state(state)
    config = config_of(state, name=target.stem)
    if audio_weights is not None:
        state |= {f"audio_encoder.{key}": value for key, value in vggish_state(audio_weights).items()}
    model = unfolded_model(config, state, str(official))
    save_weights(model.state_dict(), model.config, target, half=half)
    parameters = sum(p.numel() for p in model.parameters())
    return f"{target}: {parameters:,} weights, {target.stat().st_size / 2**20:.1f} MiB"
