"""GStreamer loads every file in `python/` of its plugin path; this one brings the element `avisseg`.

It runs inside GStreamer's own Python, which knows of no virtual environment, so the environment that holds torch and
avis_stream is put on the path first: the one that this file is installed in, else $AVIS_STREAM_VENV, else $VIRTUAL_ENV.
The element's own file is loaded by its path: it needs nothing but `gi`, so that this import does not fail. If it did,
GStreamer would remember the element as absent until its registry is deleted.
"""

import importlib.util
import os
import site
import sys
from pathlib import Path

_HERE = Path(__file__).resolve()
_NAME = "avis_stream.interop.gst_element"


def _packages():
    """Folders of packages, the most fitting first."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    yield from (parent for parent in _HERE.parents if parent.name in ("site-packages", "dist-packages"))
    for variable in ("AVIS_STREAM_VENV", "VIRTUAL_ENV"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "lib" / version / "site-packages"
            yield Path(os.environ[variable]) / "Lib" / "site-packages"
    if (_HERE.parents[1] / "avis_stream").is_dir():  # the source tree, where make setup puts .venv
        yield _HERE.parents[1] / ".venv" / "lib" / version / "site-packages"


def _prepare_path():
    for folder in _packages():
        if folder.is_dir():
            before = list(sys.path)
            site.addsitedir(str(folder))  # follows .pth files, as editable installs need
            # In front: numpy of the system must not hide the one that torch was built for.
            new = [entry for entry in sys.path if entry not in before]
            sys.path[:] = new + [entry for entry in sys.path if entry not in new]
            return


def _element():
    if _NAME in sys.modules:
        return sys.modules[_NAME].AvisSeg
    installed = _HERE.parents[2] / "interop" / "gst_element.py"  # avis_stream/gst/python/gstavis.py
    tree = _HERE.parents[1] / "avis_stream" / "interop" / "gst_element.py"
    spec = importlib.util.spec_from_file_location(_NAME, installed if installed.exists() else tree)
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module.AvisSeg


_prepare_path()

import gi  # noqa: E402

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

__gstelementfactory__ = ("avisseg", Gst.Rank.NONE, _element())
