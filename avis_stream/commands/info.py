"""`avis-stream info`: what is installed, which kernels run, which models there are."""

from __future__ import annotations

import platform
from typing import TextIO

import torch

from avis_stream import ops
from avis_stream._version import __version__
from avis_stream.presets import PRESETS


def print_info(out: TextIO) -> None:
    """Writes the report to `out`."""
    lines = [
        f"avis_stream {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"machine: {platform.machine()}, {platform.system()}",
        f"threads: {torch.get_num_threads()}; CUDA: {'yes' if torch.cuda.is_available() else 'no'}",
        str(ops.info()),
        "models: " + ", ".join(PRESETS),
    ]
    out.write("\n".join(lines) + "\n")
