"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def as_file(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg must be given it: one with a colon (`12:30.mp4`) would be taken for an address."""
    return f"file:{os.fspath(path)}"


def printable(name: str) -> str:
    """A file's name as it can be shown and stored: bytes of it that are not UTF-8 become question marks (U+FFFD)."""
    return os.fsencode(name).decode("utf-8", "replace")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that is renamed to it when the block ends well, and removed when it does not.

    The name keeps its suffix, since some writers choose the format by it. Missing parent folders are made. A link
    stays, and the file that it leads to is replaced. A pipe, a terminal or another device stays too, and gets the bytes
    at the end; so does a file that is named as an open one (`/dev/stdout`), of which others write the rest.

    Example:
        >>> with atomic_path("out/report.json") as temporary:
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    takes_bytes = _takes_bytes(path)
    target = path if takes_bytes else path.resolve()
    if not takes_bytes:
        target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=None if takes_bytes else target.parent))
    try:
        temporary = folder / path.name
        yield temporary
        if takes_bytes:
            with temporary.open("rb") as made, target.open("ab") as out:
                shutil.copyfileobj(made, out)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _takes_bytes(path: Path) -> bool:
    """Whether a path is to be written into, not replaced: no file of its own, or a name of a file that is open."""
    if not path.exists():
        return False
    if not path.is_file() and not path.is_dir():
        return True
    while path.is_symlink():
        if re.fullmatch(r"/proc/.+/fd", str(path.parent.resolve())):
            return True
        path = path.parent / path.readlink()
    return False
