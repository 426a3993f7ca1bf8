"""Means of weights that began alike: `python tools/mean_weights.py OUT A.safetensors=0.4 B.safetensors=0.6`.

Runs that begin at the same weights and learn from other sounds end in one valley; a point between them hears better
than either on recordings that none of them knows (ADR 0013). Source: Wortsman et al., "Model soups" (ICML 2022).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avis_stream.files import atomic_path


def mean(files: dict[Path, float], target: Path) -> None:
    """Writes the weighted mean of weight files of one model.

    Args:
        files: Files, and the share of each; all shares together are 1.
        target: Gets the first file's configuration and number types.
    Raises:
        SystemExit: Shares do not add up to 1, or the files hold other weights than the first.
    """
    if not math.isclose(total := sum(files.values()), 1.0, abs_tol=1e-6):
        raise SystemExit(f"shares must add up to 1, these to {total:g}")
    first, *others = files
    summed = {name: value.double() * files[first] for name, value in load_file(first).items()}
    for path in others:
        state = load_file(path)
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in summed.items()}:
            raise SystemExit(f"{path} holds other weights than {first}: means are of runs of one model")
        for name, value in state.items():
            summed[name] += value.double() * files[path]
    with safe_open(first, "pt") as opened:
        metadata, kinds = opened.metadata(), {name: opened.get_tensor(name).dtype for name in summed}
    with atomic_path(target) as path:
        save_file({name: _as(value, kinds[name]) for name, value in summed.items()}, path, metadata=metadata)


def _as(value: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return (value if kind.is_floating_point else value.round()).to(kind)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("files", nargs="+", metavar="FILE=SHARE")
    options = parser.parse_args()
    pairs = [entry.rpartition("=") for entry in options.files]
    mean({Path(path): float(share) for path, _, share in pairs}, options.target)


if __name__ == "__main__":
    main()
