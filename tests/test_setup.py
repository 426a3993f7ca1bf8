"""What set-up says when it is asked for what it cannot do; it never asks for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("gpu", "AVIS_STREAM_BUILD must be one of auto, cpu, cuda, 0, got 'gpu'"),
        ("cuda", "AVIS_STREAM_BUILD=cuda: no nvcc on the PATH; install the CUDA toolkit"),
    ],
)
def test_a_build_that_cannot_be_is_refused(mode: str, words: str, tmp_path: Path) -> None:
    """`tmp_path` is all of the PATH, so there is no nvcc."""
    env = os.environ | {"AVIS_STREAM_BUILD": mode, "PATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    ("mode", "has_nvcc", "chosen"), [("auto", False, "cpu"), ("auto", True, "cuda"), ("0", True, "0")]
)
def test_what_auto_means(mode: str, has_nvcc: bool, chosen: str, tmp_path: Path) -> None:
    """Whether nvcc is there decides, not whether there is a GPU."""
    if has_nvcc:
        (tmp_path / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / "nvcc").chmod(0o755)
    code = f"""
import setuptools, runpy
setuptools.setup = lambda **more: None
print(runpy.run_path({str(ROOT / "setup.py")!r})["build_mode"]())
"""
    env = os.environ | {"AVIS_STREAM_BUILD": mode, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == chosen, done.stderr
