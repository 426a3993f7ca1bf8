"""What set-up says when it is asked for what it cannot do; it never asks for a GPU."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
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


def test_the_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    """`pip install` of it compiles; the tree is copied, since setuptools also packs what it once wrote down there."""
    tree = tmp_path / "tree"
    passing = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    for folder in ("avis_stream", "csrc", "python"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=passing)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = os.environ | {"AVIS_STREAM_BUILD": "0"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    alone = {"CHANGELOG.md", "CMakeLists.txt", "LICENSE", "README.md", "constraints.txt", "pyproject.toml", "setup.py"}
    parts = (path for folder in ("avis_stream", "csrc", "python") for path in (tree / folder).rglob("*"))
    wanted = alone | {str(path.relative_to(tree)) for path in parts if path.is_file()}
    assert wanted <= held, sorted(wanted - held)
