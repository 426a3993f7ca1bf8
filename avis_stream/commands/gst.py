"""`avis-stream gst env`: what GStreamer's programs need to find the element avisseg."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from avis_stream.errors import AvisStreamError


def plugin_folder() -> Path:
    """The folder whose `python/gstavis.py` GStreamer loads.

    GStreamer looks into every file below its plugin path. The installed package has a folder with nothing else in it;
    for a source tree, with its `.venv` full of libraries, one is made that links to the file.

    Raises:
        AvisStreamError: The file is neither in the package nor in the tree.
    """
    package = Path(__file__).parents[1]
    if (package / "gst" / "python" / "gstavis.py").exists():
        return package / "gst"
    original = package.parent / "python" / "gstavis.py"
    if not original.exists():
        raise AvisStreamError(f"gst/python/gstavis.py must lie in {package}, it does not; install the package again")
    folder = Path(sys.prefix) / ".cache" / "avis-gst"
    link = folder / "python" / "gstavis.py"
    if link.resolve() != original.resolve():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(original)
    return folder


def registry_file() -> Path:
    """Our own registry: one that remembers a failure of ours must not harm others, and can be deleted."""
    return Path(sys.prefix) / ".cache" / "gst-registry.bin"


def environment() -> dict[str, str]:
    """Variables and values."""
    before = os.environ.get("GST_PLUGIN_PATH", "")
    folder = str(plugin_folder())
    others = [part for part in before.split(os.pathsep) if part and part != folder]
    return {
        "GST_PLUGIN_PATH": os.pathsep.join([folder, *others]),
        "GST_REGISTRY": str(registry_file()),
        "AVIS_STREAM_VENV": sys.prefix,
    }


def print_environment() -> str:
    """Lines for `eval` in a shell."""
    registry_file().parent.mkdir(parents=True, exist_ok=True)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment().items())
