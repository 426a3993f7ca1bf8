"""Means of weights: what a reader can check by hand, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TOOL = Path(__file__).parents[2] / "tools" / "mean_weights.py"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a=b.safetensors", tmp_path / "c.safetensors"]
    for path, value in zip(paths, (1.0, 3.0), strict=True):
        state = {"w": torch.full((2, 3), value, dtype=torch.float16), "steps": torch.tensor([int(value)])}
        save_file(state, path, metadata={"config": "one"})
    return paths


def run_tool(target: Path, files: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, target, *files], capture_output=True, text=True, check=False, cwd=target.parent
    )


def test_a_mean_is_by_shares_in_the_first_files_types(files: list[Path], tmp_path: Path) -> None:
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.75", f"{files[1]}=0.25"])
    assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(state["w"], torch.full((2, 3), 1.5, dtype=torch.float16))
    assert state["steps"].tolist() == [2]  # 1.5, rounded to even
    with safe_open(tmp_path / "mean.safetensors", "pt") as opened:
        assert opened.metadata() == {"config": "one"}


def test_parts_may_be_of_another_file(files: list[Path], tmp_path: Path) -> None:
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=1", "--of", str(files[1]), "st"])
    assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(state["w"], torch.ones(2, 3, dtype=torch.float16))
    assert state["steps"].tolist() == [3]


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        (("=0.5", "=0.6"), "add up to 1"),
        (("=-1", "=2"), "above 0"),
        (("", "=1"), "is no FILE=SHARE"),
        (("=x", "=1"), "is no FILE=SHARE"),
    ],
)
def test_what_is_no_share_is_refused(files: list[Path], tmp_path: Path, shares: tuple[str, str], told: str) -> None:
    named = [f"{path.name}{share}" for path, share in zip(files, shares, strict=True)]
    done = run_tool(tmp_path / "mean.safetensors", named)
    assert done.returncode != 0
    assert told in done.stderr
    assert not (tmp_path / "mean.safetensors").exists()


def test_a_file_twice_and_names_of_nothing_are_refused(files: list[Path], tmp_path: Path) -> None:
    twice = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.5", f"{files[0]}=0.5"])
    assert "there twice" in twice.stderr
    none = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=1", "--of", str(files[1]), "q"])
    assert "holds no weights whose names begin with q" in none.stderr


def test_weights_of_another_model_are_refused(files: list[Path], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 2)}, files[1])
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.5", f"{files[1]}=0.5"])
    assert done.returncode != 0
    assert f"{files[1]} holds other weights" in done.stderr
