"""How much memory and disk there is to use."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from avis_stream.errors import ConfigError

_FALLBACK_BYTES = 4 << 30
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: the kernel's estimate, within the control group's limit."""
    available = _FALLBACK_BYTES
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        available = int(found[1]) * 1024
    left = _left_of_group(_CONTROL_GROUP)
    return available if left is None else min(available, left)


def _left_of_group(folder: Path) -> int | None:
    """What a control group's limit leaves, version 2; None without a limit.

    Files that were read count as used until somebody wants the memory: in a container that has read a few films nothing
    would seem to be left.
    """
    limit, used, kinds = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.exists() and used.exists()) or (text := limit.read_text().strip()) == "max":
        return None
    found = re.search(r"^inactive_file (\d+)$", kinds.read_text(), re.MULTILINE) if kinds.exists() else None
    return max(0, int(text) - int(used.read_text()) + (int(found[1]) if found else 0))


def available_disk_bytes(folder: Path | None = None) -> int:
    """Free space in a folder; None: where temporary files go."""
    return shutil.disk_usage(folder or tempfile.gettempdir()).free


def parse_bytes(text: str) -> int:
    """`"512M"`, `"1.5GiB"`, `"2000000"` as a number of bytes; units are powers of 1024.

    Raises:
        ConfigError: Not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not found:
        raise ConfigError(f"a size must look like 512M or 1.5G, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])
