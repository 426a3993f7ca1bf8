"""What a command writes: its folder, where nothing of others is lost and nothing of ours half there, and its tables."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from avis_stream.errors import AvisStreamError


@contextmanager
def output_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write to, whose contents appear in `out` when the block ends well, and vanish when it does not.

    With `force`, files of the same name in an existing `out` are replaced; other files in it stay. If `out` is a link,
    what it leads to is meant.

    Raises:
        AvisStreamError: `out` is there already and `force` is not given.
    """
    if out.exists() and not out.is_dir():
        raise AvisStreamError(f"--out {out} is a file; give a folder")
    if out.exists() and any(out.iterdir()) and not force:
        raise AvisStreamError(f"--out {out} holds files already; give another folder, or --force to replace them")
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Renaming works within a file system alone, and a folder that is there may lie on another than its parent.
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out if out.exists() else out.parent))
    try:
        yield work
        out.mkdir(exist_ok=True)
        for made in list(work.iterdir()):
            target = out / made.name
            if target.is_dir():
                shutil.rmtree(target)
            made.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def aligned(lines: Sequence[Sequence[str]], *, last_is_text: bool = False) -> str:
    """A table as text: the first column to the left, numbers to the right; the last to the left where it is text."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]

    def padded(line: Sequence[str]) -> Iterator[str]:
        for n, cell in enumerate(line):
            left = n == 0 or (last_is_text and n == len(line) - 1)
            yield cell.ljust(widths[n]) if left else cell.rjust(widths[n])

    return "\n".join("  ".join(padded(line)).rstrip() for line in lines)
