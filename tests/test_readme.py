"""The README's code runs, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from media_files import Media, clicks, regular, write_media
from PIL import Image
from small_model import SMALL

from avis_stream.cli import _parser, main
from avis_stream.synth.protocol import DEFAULT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL_TRAINING = [
    "train.steps=1", "train.frames=2", "train.query_layers=2", "train.losses.points=64",
    "train.augment.short_sides_px=64", "train.augment.crop_share=0",
]  # fmt: skip
SMALL_MODEL = [word for setting in SMALL for word in ("--set", setting)]


def blocks(language: str, text: str = README) -> list[str]:
    """Contents of the fenced blocks of a language, "" for none; all fences are read, so that they pair up."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [body for found, body in fenced if found == language]


@pytest.mark.parametrize("block", blocks("python"), ids=["stream", "clip"])
def test_python_blocks_show_something(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for what sounds, and the one that draws leaves a picture."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"\bdog\b", capsys.readouterr().out)
    for name in re.findall(r'\.save\("(.*)"\)', block):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (640, 360)


DOCS = {
    f"{path.name}:{number}": block
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for number, block in enumerate(blocks("python", path.read_text()), 1)
}


@pytest.mark.parametrize("block", DOCS.values(), ids=DOCS)
def test_python_blocks_of_the_docs_lack_nothing(block: str) -> None:
    """They want servers, or run for long; but they are Python, whose names are all imported or defined, and used."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F", "-"]
    found = subprocess.run(command, input=block, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def commands() -> list[str]:
    """Lines of the blocks without a language that call the program."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line.split(" #")[0].strip() for line in lines if line.startswith("avis-stream ")]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    _parser().parse_args(shlex.split(command)[1:])


def test_commands_that_need_nothing_else_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, one after the other, with words at their end that make them small.

    The others want official checkpoints, cameras or (doctor) half a minute, and have tests of their own.
    """
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "street.mp4", Media(stamps=regular(2.0), sound=clicks(2.0, [0.5])))
    two_seconds = json.loads(DEFAULT.read_text())
    two_seconds |= {"size": [64, 48], "seconds": {split: [2, 2] for split in ("train", "val", "test")}}
    (tmp_path / "protocol.json").write_text(json.dumps(two_seconds))
    random = ["--weights", "random", *SMALL_MODEL]
    smaller = {
        "run": [*random, "--force"],
        "synth": ["--videos", "1", "--protocol", "protocol.json"],
        "train": ["--set", *SMALL, *SMALL_TRAINING],
        "eval": random,
    }
    ran = set()
    for command in commands():
        words = shlex.split(command)[1:]
        if words[0] in smaller:
            assert main([*words, *smaller[words[0]]]) == 0, command
            ran.add(words[0])
    assert ran == set(smaller)
    assert (tmp_path / "out" / "street" / "summary.json").is_file()
    assert (tmp_path / "out" / "train" / "weights.safetensors").is_file()


def test_extras_and_variables_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert set(rows) >= set(project["optional-dependencies"])
    readers = [ROOT / "setup.py", ROOT / "csrc" / "ops" / "dispatch.cpp", ROOT / "python" / "gstavis.py"]
    sources = "".join(path.read_text() for path in [*readers, *(ROOT / "avis_stream").rglob("*.py")])
    assert all(f'"{name}"' in sources for name in rows if name.startswith("AVIS_STREAM_"))


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
