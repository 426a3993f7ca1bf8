"""How much memory and disk there is to use."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from avis_stream.errors import ConfigError

_FALLBACK_BYTES = 4 << 30
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: the kernel's estimate, within the control group's limit."""
    available = _FALLBACK_BYTES
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        available = int(found[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, max(0, int(text) - int(used.read_text())))
    return available


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
