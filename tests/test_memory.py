"""How much memory there is to use, in a container above all."""

from __future__ import annotations

from pathlib import Path

import pytest

from avis_stream import memory
from avis_stream.memory import available_memory_bytes

PART = 1 << 16
"""Small, so that no machine has less than what is tried."""


@pytest.mark.parametrize(
    ("limit", "kinds", "left"),
    [
        (f"{1000 * PART}\n", f"anon {100 * PART}\nfile {850 * PART}\ninactive_file {700 * PART}\nslab 1\n", 750 * PART),
        (f"{1000 * PART}\n", None, 50 * PART),
        (f"{900 * PART}\n", None, 0),
    ],
    ids=["files that were read can go", "of an old kernel", "over its limit"],
)
def test_a_container_has_what_its_limit_leaves(
    limit: str, kinds: str | None, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    machine = available_memory_bytes()
    (tmp_path / "memory.current").write_text(f"{950 * PART}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory_bytes() == pytest.approx(machine, rel=0.5), "no limit"
    (tmp_path / "memory.max").write_text(limit)
    if kinds is not None:
        (tmp_path / "memory.stat").write_text(kinds)
    assert available_memory_bytes() == left
