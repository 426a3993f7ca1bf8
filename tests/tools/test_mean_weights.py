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
        save_file(state, path, metadata={"config": path.stem})
    return paths


def run_tool(target: Path, files: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, target, *files], capture_output=True, text=True, check=False)


def test_a_mean_is_by_shares_in_the_first_files_types(files: list[Path], tmp_path: Path) -> None:
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.75", f"{files[1]}=0.25"])
    assert done.returncode == 0, done.stderr
    state = load_file(tmp_path / "mean.safetensors")
    assert torch.equal(state["w"], torch.full((2, 3), 1.5, dtype=torch.float16))
    assert state["steps"].tolist() == [2]  # 1.5, rounded to even
    with safe_open(tmp_path / "mean.safetensors", "pt") as opened:
        assert opened.metadata() == {"config": "a=b"}


def test_shares_that_are_not_one_are_refused(files: list[Path], tmp_path: Path) -> None:
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.5", f"{files[1]}=0.6"])
    assert done.returncode != 0
    assert "add up to 1" in done.stderr
    assert not (tmp_path / "mean.safetensors").exists()


def test_weights_of_another_model_are_refused(files: list[Path], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 2)}, files[1])
    done = run_tool(tmp_path / "mean.safetensors", [f"{files[0]}=0.5", f"{files[1]}=0.5"])
    assert done.returncode != 0
    assert f"{files[1]} holds other weights" in done.stderr
