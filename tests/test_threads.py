"""How a program ends that leaves a session at work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys, time
import torch
import avis_stream as avs
from live_tools import StubSegmenter

class Busy(StubSegmenter):
    def step_pair(self, pair, state):
        end = time.monotonic() + 4
        while time.monotonic() < end:
            torch.mm(torch.ones(400, 400), torch.ones(400, 400))
        return super().step_pair(pair, state)

session = avs.Session(Busy(), "synthetic://flashbeep?fps=25&seconds=100", config=avs.SessionConfig(num_threads=1))
session.start()
assert session.next(2.0) is None  # it is within its first step
if sys.argv[1] == "stop":
    session.stop()
if sys.argv[1] == "exit":
    sys.exit(3)
if sys.argv[1] == "error":
    raise KeyError("a bug of the caller's")
"""


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("stop", 0), ("exit", 3), ("error", 1)])
def test_a_program_ends_while_its_session_is_at_work(how: str, status: int) -> None:
    """Python must not end threads that are in torch: the program would abort."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, how], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
