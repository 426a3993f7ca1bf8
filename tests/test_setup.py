"""What set-up says when it is asked for what it cannot do; it never asks for a GPU."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
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


def test_the_least_python_is_the_same_everywhere() -> None:
    """What is pinned must install on it, which this environment cannot show for any Python but its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == "3.11"
    assert "Python 3.11 or newer" in (ROOT / "README.md").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        with contextlib.suppress(PackageNotFoundError):
            wanted = metadata(line.partition("==")[0])["Requires-Python"]
            assert all(int(minor) <= 11 for minor in re.findall(r">=\s*3\.(\d+)", wanted or "")), (line, wanted)


@pytest.mark.parametrize("versions", [{}, {"python3": False}, {"python3": False, "python3.12": True}], ids=str)
def test_a_python_that_is_too_old_is_not_chosen(versions: dict[str, bool], tmp_path: Path) -> None:
    """`tmp_path` is all of the PATH, and there is no system Python."""
    script = (ROOT / "tools" / "choose-python").read_text().replace("/usr/bin/python3", str(tmp_path / "none"))
    for name, new_enough in versions.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {0 if new_enough else 1}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh"], input=script, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    chosen = [str(tmp_path / name) for name, new_enough in versions.items() if new_enough]
    assert done.stdout.split() == chosen


def test_make_says_which_python_is_wanted(tmp_path: Path) -> None:
    for python, words in (("", "no Python 3.11 or later"), ("/bin/false", "/bin/false is not Python 3.11 or later")):
        command = ["make", f"VENV={tmp_path}/venv", "BUILD=0", f"PYTHON={python}", f"{tmp_path}/venv/.torch"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
