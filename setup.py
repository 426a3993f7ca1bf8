"""Hands the native build to CMake and Ninja; everything else about the package is in pyproject.toml.

`AVIS_STREAM_BUILD` decides what is compiled: `auto` (default), `cpu`, `cuda`, or `0` for a pure PyTorch install.
`auto` looks for nvcc, never for a GPU. A build that fails, fails the install: see `_FAILED` for its words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
OPERATORS = "avis_stream.ops.libavis_ops"
MODES = ("auto", "cpu", "cuda", "0")

_FAILED = """
avis_stream: building the native kernels failed ({reason}).
  AVIS_STREAM_BUILD=0 pip install ...     installs without them: correct, several times slower
  AVIS_STREAM_BUILD=cpu pip install ...   leaves out CUDA
A C++20 compiler (g++ 11, clang 14 or later), cmake 3.24 and torch 2.13 are needed; with torch already installed, add
--no-build-isolation, so that the build sees the torch that will run.
"""


def build_mode() -> str:
    """What `AVIS_STREAM_BUILD` asks for: `cpu`, `cuda` or `0`; `auto` is decided here."""
    mode = os.environ.get("AVIS_STREAM_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"AVIS_STREAM_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "cuda" and not shutil.which("nvcc"):
        raise SystemExit("AVIS_STREAM_BUILD=cuda: no nvcc on the PATH; install the CUDA toolkit 12.8, or use cpu")
    if mode == "auto":
        return "cuda" if shutil.which("nvcc") else "cpu"
    return mode


class CMakeBuild(build_ext):
    """Runs CMake once for all native libraries; they land in the package folder that is built.

    From there an in-place build, which editable installs are too, copies them to the source tree afterwards: while it
    builds, setuptools has `inplace` False.
    """

    def build_extensions(self) -> None:
        """Configures and builds; exits with what to set if that does not work."""
        package = Path(self.build_lib).resolve() / "avis_stream"
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DAVIS_PACKAGE_DIR={package}",
            f"-DAVIS_CUDA={'ON' if build_mode() == 'cuda' else 'OFF'}",
        ]
        ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if ninja:
            arguments.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        try:
            subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *arguments], check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(_FAILED.format(reason=error)) from error
        self._copy_kernel_sources(package / "ops" / "csrc")

    def copy_extensions_to_source(self) -> None:
        """Copies also the library of CUDA kernels, which is no extension of Python, so that setuptools does not."""
        super().copy_extensions_to_source()
        made = Path(self.build_lib, "avis_stream", "ops", "libavis_cuda.so")
        kept = ROOT / "avis_stream" / "ops" / made.name
        if made.exists():
            self.copy_file(str(made), str(kept))
        else:  # of a build before: it would be loaded all the same
            kept.unlink(missing_ok=True)

    def _copy_kernel_sources(self, target: Path) -> None:
        """What avis_stream.gpu compiles at run time, for GPUs that nobody had when the wheel was made."""
        source = ROOT / "csrc"
        for path in [*(source / "gpu").glob("*.cuh"), source / "gpu/compat.h", source / "include/avis/cuda_api.h"]:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def get_ext_filename(self, fullname: str) -> str:
        """Where a library lies; that of the operators has no Python ABI in its name."""
        if fullname.endswith(OPERATORS.rpartition(".")[-1]):
            return str(Path(*fullname.split("."))) + ".so"
        return str(super().get_ext_filename(fullname))


class WithGStreamerLoader(build_py):
    """Puts GStreamer's loader file, which the source tree has in `python/`, into the package."""

    LOADER = ("gst", "python", "gstavis.py")

    def run(self) -> None:
        """Copies it beside the modules; an editable install finds it in the tree."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "avis_stream", *self.LOADER)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(ROOT / "python" / "gstavis.py"), str(target))


if build_mode() == "0":
    setup(cmdclass={"build_py": WithGStreamerLoader})
else:
    has_headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    if not has_headers:
        sys.stderr.write("avis_stream: no Python.h, so _host (build information) is left out; nothing else needs it\n")
    names = (OPERATORS, "avis_stream._host") if has_headers else (OPERATORS,)
    extensions = [Extension(name, sources=[]) for name in names]
    setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild, "build_py": WithGStreamerLoader})
