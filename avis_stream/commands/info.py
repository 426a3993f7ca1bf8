"""`avis-stream info`: what is installed, which kernels run, which models there are."""

from __future__ import annotations

import importlib
import platform
from typing import TextIO

import torch

from avis_stream import ops
from avis_stream._version import __version__
from avis_stream.config_text import settings_of
from avis_stream.gpu import unusable_reason
from avis_stream.presets import PRESETS, preset, training
from avis_stream.weights.bundled import bundled_weights, since_written
from avis_stream.weights.files import read_state


def print_info(out: TextIO) -> None:
    """Writes the report to `out`."""
    lines = [
        f"avis_stream {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"machine: {platform.machine()}, {platform.system()}",
        f"threads: {torch.get_num_threads()}; CUDA: {'yes' if torch.cuda.is_available() else 'no'}",
        f"build: {_build()}",
        str(ops.info()),
        f"avis_stream.gpu: {unusable_reason() or 'usable'}",
        "models: " + ", ".join(PRESETS),
    ]
    out.write("\n".join(lines) + "\n")


def print_settings(name: str, out: TextIO) -> None:
    """Writes what `--set` changes of a model, a line for each, and under `train.` what it changes of its training.

    Values are those of the weights that come with the package, if there are any.
    """
    weights = bundled_weights(name)
    stored = None if weights is None else read_state(weights)[1]
    config = preset(name) if weights is None or stored is None else stored.with_overrides(since_written(weights))
    for setting in (*settings_of(config), *settings_of(training(name), "train.")):
        out.write(setting + "\n")


def _build() -> str:
    """How the native part was made, where `_host` is there to tell."""
    try:
        host = importlib.import_module("avis_stream._host")
    except ImportError:
        return "not told (no compiler or no Python headers when it was installed)"
    facts = host.build_info()
    has = [name for name, there in host.cpu_features().items() if there]
    return f"{facts['compiler']}, torch {facts['torch']}, for {' '.join(facts['isas'])}; this CPU has {' '.join(has)}"
