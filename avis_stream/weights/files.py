"""Weight files: read safely, write atomically, account for every key."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from avis_stream.config import AVISMConfig
from avis_stream.errors import CheckpointError, ConfigError
from avis_stream.files import atomic_path

_CONFIG_KEY = "avis_stream_config"


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], AVISMConfig | None]:
    """Reads a weight file without running anything that it might contain.

    Args:
        path: Ours (`.safetensors`, or a run's `last.pt`), official or torch (`.pth`, `.pt`), detectron2 model zoo
            (`.pkl`).
    Returns:
        The tensors by their key in the file, wrapping (`{"model": ...}`, `module.`) removed; and the configuration if
        the file carries one.
    Raises:
        CheckpointError: Missing, broken, cut short or of a kind that is not read; the message says what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weight file {str(path)!r}; check the path")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        loaded = (
            _RestrictedUnpickler.load(path)
            if path.suffix == ".pkl"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as weights ({_first_line(error)}); is it complete? "
            "Wanted: .safetensors, a .pth of plain tensors, or a detectron2 .pkl"
        ) from error
    return _unwrap(loaded, path), _config_beside(loaded, path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], AVISMConfig | None]:
    with safetensors.safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping, it only has keys()
        text = (file.metadata() or {}).get(_CONFIG_KEY)
    return state, None if text is None else _parsed(text, path)


def _config_beside(loaded: object, path: Path) -> AVISMConfig | None:
    """What `train/checkpoint.py` keeps beside weights; None: another wrote the file."""
    ours = isinstance(loaded, Mapping) and {"config", "train", "model"} <= loaded.keys()
    text = loaded["config"] if ours else None  # type: ignore[index]
    return _parsed(text, path) if isinstance(text, str) else None


def _parsed(text: str, path: Path) -> AVISMConfig:
    try:
        return AVISMConfig.from_json(text)
    except ConfigError as error:
        raise CheckpointError(f"{str(path)!r} holds a configuration that cannot be read: {error}") from error


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{str(path)!r} holds no state dict, but a {type(loaded).__name__}")
    tensors = {name: torch.as_tensor(value) for name, value in loaded.items()}
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles the numpy arrays of detectron2's `.pkl` files, and refuses to call anything else."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"),
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        }
    )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> object:  # type: ignore[override]  # a factory from a path, not from an open pickler
        """Reads the file at `path`; latin1 because the model zoo's files were written by Python 2."""
        return pickle.Unpickler.load(cls(io.BytesIO(path.read_bytes()), encoding="latin1"))

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, which is refused")
        return super().find_class(module, name)


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copies `state` into `model`; every key must fit.

    Buffers that are computed, not trained (Swin's `relative_position_index`), may be missing.

    Raises:
        CheckpointError: Lists every missing, unexpected and mis-shaped key, and those that hold NaN or infinity.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith(".relative_position_index")]
    unexpected = [k for k in state if k not in own]
    misshaped = [
        f"{k} (model {list(own[k].shape)}, file {list(state[k].shape)})"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    broken = not_finite({k: state[k] for k in own if k in state})
    if missing or unexpected or misshaped or broken:
        lines = [f"{where} does not fit the model {type(model).__name__}:"]
        listed = (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
            ("not finite", broken),
        )
        for title, keys in listed:
            if keys:
                lines.append(f"  {len(keys)} {title}: " + ", ".join(keys))
        raise CheckpointError("\n".join(lines))
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]


def save_weights(
    state: Mapping[str, Tensor], config: AVISMConfig, path: str | os.PathLike[str], *, half: bool = False
) -> None:
    """Writes weights with their configuration as safetensors; the file appears complete or not at all.

    Args:
        state: A model's state dict, under our names.
        config: Kept as JSON in the file's metadata.
        path: Where to; replaced if there.
        half: Store floating-point tensors as float16.
    """
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={_CONFIG_KEY: config.to_json()})
        temporary.chmod(0o644)  # it makes files that only their owner may read


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
