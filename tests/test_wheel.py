"""The wheel: what is in it and what is not, and that it runs where nothing else of ours is."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    env = os.environ | {"AVIS_STREAM_BUILD": "cpu", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (made,) = folder.glob("*.whl")
    return made


def test_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    package = {name.removeprefix("avis_stream/") for name in sizes if name.startswith("avis_stream/")}
    assert "ops/libavis_ops.so" in package
    assert any(name.startswith("_host.") for name in package)
    assert "py.typed" in package
    assert any(name.startswith("assets/") for name in package)
    # For GPUs that nobody had when the wheel was made.
    assert {"ops/csrc/gpu/msda.cuh", "ops/csrc/gpu/compat.h", "ops/csrc/include/avis/cuda_api.h"} <= package
    # Everything else comes from where it is at home.
    libraries = [name for name in sizes if ".so" in Path(name).name]
    assert {Path(name).name.split(".")[0] for name in libraries} <= {"libavis_ops", "libavis_cuda", "_host"}
    assert all(name.startswith(("avis_stream/", "avis_stream-")) for name in sizes)
    assert not any(name.startswith(("tests", "benchmarks", "csrc/emu")) for name in package)


def test_libraries_need_nothing_that_torch_does_not_bring(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("avis_stream/ops/libavis_ops.so", tmp_path)
    dynamic = subprocess.check_output(
        ["readelf", "-d", str(tmp_path / "avis_stream" / "ops" / "libavis_ops.so")], text=True
    )
    needed = {line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert not any("gomp" in name or "cuda" in name for name in needed)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert needed <= {"libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libdl.so.2"}


def test_it_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """With torch and the other dependencies of this interpreter, and of us nothing but the wheel."""
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    home = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = """
import sys
sys.path.append(sys.argv[1])  # behind the wheel
import avis_stream as avs, torch
assert sys.argv[2] in avs.__file__, avs.__file__
avs.ops.require_native("cpu")
from avis_stream.gpu.runtime import source_folders
assert (source_folders()[0] / "msda.cuh").is_file()
print(avs.ops.info())
"""
    done = subprocess.run(
        [str(python), "-c", code, str(home), str(tmp_path / "env")], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "isa:" in done.stdout
