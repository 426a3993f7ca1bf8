"""The README's code runs, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from avis_stream.cli import _parser

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of a language, "" for none; all fences are read, so that they pair up."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [body for found, body in fenced if found == language]


def test_python_blocks_run() -> None:
    torch.manual_seed(0)
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


def commands() -> list[str]:
    """Lines of the blocks without a language that call the program."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.startswith("avis-stream ")]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    _parser().parse_args(shlex.split(command)[1:])


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+)", README)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link


def test_no_placeholder_is_left() -> None:
    assert "MEASURED_TABLE" not in README
