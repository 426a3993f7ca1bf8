"""Means of weights that began alike: `mean_weights.py OUT A.safetensors=0.4 B.safetensors=0.6`.

Runs that begin at the same weights and learn from other sounds end in one valley; a point between them hears better
than either on recordings that none of them knows (ADR 0013). What is averaged are the numbers in the files; of a change
of low rank (`AudioConfig.adapter_rank`) its two factors, which is near the mean of the changes while runs are near each
other. Source: Wortsman et al., "Model soups" (ICML 2022).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from avis_stream.files import atomic_path


def mean(files: Mapping[Path, float], target: Path, parts: Path | None = None, names: Sequence[str] = ()) -> None:
    """Writes the weighted mean of weight files of one model.

    Args:
        files: Files, and the share of each, which is positive; all shares together are 1.
        target: Gets the first file's configuration and number types.
        parts: Another file of the model, from which some weights are taken as they are.
        names: Beginnings of the names of those.
    Raises:
        SystemExit: Shares are not such, files hold weights of different names or shapes, or nothing is named so.
    """
    if min(files.values()) <= 0 or not math.isclose(sum(files.values()), 1.0, abs_tol=1e-6):
        raise SystemExit(f"shares must be above 0 and add up to 1, got {', '.join(f'{s:g}' for s in files.values())}")
    first = next(iter(files))
    with safe_open(first, "pt") as opened:
        metadata, kinds = opened.metadata(), {name: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
    summed: dict[str, Tensor] = {}
    for path, share in files.items():
        for name, value in alike(path, first).items():
            summed[name] = summed.get(name, torch.zeros(())) + share * value.double()
    taken = {n: v for n, v in alike(parts, first).items() if n.startswith(tuple(names))} if parts else {}
    if parts and not taken:
        raise SystemExit(f"{parts} holds no weights whose names begin with {' or '.join(names)}")
    state = {name: as_kind(value, kinds[name]) for name, value in (summed | taken).items()}
    with atomic_path(target) as path:
        save_file(state, path, metadata=metadata)


def alike(path: Path, first: Path) -> dict[str, Tensor]:
    """The weights in a file, which must be those of the first by names and shapes."""
    state = load_file(path)
    if path != first and {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in load_file(first).items()}:
        raise SystemExit(f"{path} holds other weights than {first}: means are of runs of one model")
    return state


def as_kind(value: Tensor, kind: torch.dtype) -> Tensor:
    """A sum as what it is stored as; counts are whole."""
    return (value if kind.is_floating_point else value.round()).to(kind).contiguous()


def shared(entry: str) -> tuple[Path, float]:
    """`FILE=SHARE` as given; the last `=` divides."""
    path, _, share = entry.rpartition("=")
    try:
        return Path(path), float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{entry!r} is no FILE=SHARE, as a.safetensors=0.4") from None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("files", nargs="+", type=shared, metavar="FILE=SHARE")
    parser.add_argument(
        "--of", nargs="+", metavar=("FILE", "NAME"), default=[], help="weights that begin so are FILE's"
    )
    options = parser.parse_args()
    if len(files := dict(options.files)) < len(options.files):
        parser.error("a file is there twice")
    if len(options.of) == 1:
        parser.error("--of FILE needs beginnings of names after it")
    mean(files, options.target, Path(options.of[0]) if options.of else None, options.of[1:])


if __name__ == "__main__":
    main()
