"""Builds the CUDA kernels for the CPU (`csrc/emu`), plain or under a sanitizer."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-g1", "-fsanitize=address"],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
}


def compiler() -> str | None:
    """The one that understands the kernels; clang has no `naked` functions with both sanitizers' fiber calls."""
    return shutil.which("g++")


def build(source: Path, sanitizer: str = "plain", *flags: str) -> Path:
    """The shared library of `source`, compiled once for each state of the sources: it is kept in build/emulator."""
    digest = hashlib.sha256(repr((FLAGS[sanitizer], flags)).encode())
    for path in sorted([*(ROOT / "csrc").glob("**/*"), source]):
        if path.is_file():
            digest.update(path.read_bytes())
    target = ROOT / "build" / "emulator" / f"{source.stem}-{sanitizer}-{digest.hexdigest()[:12]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".tmp")
        command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-shared", "-fPIC", *FLAGS[sanitizer], *flags]
        includes = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "gpu", "emu")]
        done = subprocess.run(
            [*command, *includes, str(source), "-o", str(unfinished)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        unfinished.replace(target)
    return target
