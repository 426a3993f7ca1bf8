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


def test_make_compiles_anew_after_clean_and_for_another_build(tmp_path: Path) -> None:
    """A Python in the place of the environment's notes what it is asked to compile."""
    for name in ("csrc/some.cpp", "CMakeLists.txt", "setup.py", "pyproject.toml", "constraints.txt", ".venv/.torch"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("torch==2.13.0\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho ${AVIS_STREAM_BUILD:-other} >>built\n")
    python.chmod(0o755)

    def built(*arguments: str) -> list[str]:
        (tmp_path / "built").write_text("")
        command = ["make", "-f", str(ROOT / "Makefile"), "PYTHON=none", *arguments]
        env = {name: value for name, value in os.environ.items() if name not in ("BUILD", "AVIS_STREAM_BUILD")}
        subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
        return (tmp_path / "built").read_text().split()

    assert built("setup") == ["cpu"]
    assert built("setup") == []
    assert built("setup", "BUILD=cuda") == ["cuda"]
    assert built("setup") == [], "what was asked for last stays"
    built("clean")
    assert built("setup") == ["cuda"]
    assert built("setup", "BUILD=0") == ["0"]
    assert built("setup", "BUILD=0") == []


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


@pytest.mark.parametrize("how", ["editable", "in place"])
def test_all_libraries_reach_the_tree(how: str, tmp_path: Path) -> None:
    """What setuptools knows of and what it does not; a script in the place of CMake makes the files."""
    tree, tools = tmp_path / "tree", tmp_path / "tools"
    for folder in ("csrc", "python"):
        shutil.copytree(ROOT / folder, tree / folder)
    (tree / "avis_stream" / "ops").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "avis_stream/_version.py"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("avis_stream/__init__.py", "avis_stream/ops/__init__.py"):
        (tree / name).touch()
    tools.mkdir()
    (tools / "nvcc").touch()
    (tools / "cmake").write_text(f"""#!{sys.executable}
import sys, sysconfig
from pathlib import Path
for argument in sys.argv:
    if argument.startswith("-DAVIS_PACKAGE_DIR="):
        package = Path(argument.partition("=")[2])
        (package / "ops").mkdir(parents=True, exist_ok=True)
        for name in ("ops/libavis_ops.so", "ops/libavis_cuda.so", "_host" + sysconfig.get_config_var("EXT_SUFFIX")):
            (package / name).touch()
""")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    code = {
        "editable": "from setuptools import build_meta; build_meta.build_editable(sys.argv[1])",
        "in place": "import runpy; sys.argv[1:] = ['build_ext', '--inplace']; runpy.run_path('setup.py')",
    }[how]
    env = os.environ | {"AVIS_STREAM_BUILD": "cuda", "PATH": f"{tools}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", f"import sys; {code}", str(tmp_path)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path.name.partition(".")[0] for path in (tree / "avis_stream").rglob("*.so")}
    assert made - {"_host"} == {"libavis_ops", "libavis_cuda"}  # without Python's headers there is no _host
