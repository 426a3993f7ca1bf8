"""`avis-stream gst env`: what GStreamer's programs need to find the element avisseg."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from avis_stream.errors import AvisStreamError


def _caches() -> Iterator[Path]:
    """Where our files for GStreamer may lie, the best first: with the environment that they are of."""
    yield Path(sys.prefix) / ".cache"
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        home = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # there are users without one
        return
    yield home / "avis-stream" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def cache_folder() -> Path:
    """The folder for GStreamer's registry and a link to the loader, made if it is not there.

    In the environment; where that is read-only, in the user's cache, apart for each environment.

    Raises:
        AvisStreamError: Neither can be written to.
    """
    for folder in _caches():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise AvisStreamError(
        "GStreamer's registry must lie in a folder that can be written to, none of these can: "
        f"{', '.join(map(str, _caches()))}; set XDG_CACHE_HOME to one that can"
    )


def plugin_folder() -> Path:
    """The folder whose `python/gstavis.py` GStreamer loads.

    GStreamer looks into every file below its plugin path. The installed package has a folder with nothing else in it;
    for a source tree, with its `.venv` full of libraries, one is made that links to the file.

    Raises:
        AvisStreamError: The file is neither in the package nor in the tree, or there is no room for a link to it.
    """
    package = Path(__file__).parents[1]
    if (package / "gst" / "python" / "gstavis.py").exists():
        return package / "gst"
    original = package.parent / "python" / "gstavis.py"
    if not original.exists():
        raise AvisStreamError(f"gst/python/gstavis.py must lie in {package}, it does not; install the package again")
    folder = cache_folder() / "avis-gst"
    link = folder / "python" / "gstavis.py"
    if link.resolve() != original.resolve():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(original)
    return folder


def registry_file() -> Path:
    """Our own registry: one that remembers a failure of ours must not harm others, and can be deleted.

    Raises:
        AvisStreamError: There is no folder for it.
    """
    return cache_folder() / "gst-registry.bin"


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
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment().items())
