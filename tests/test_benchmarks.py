"""That the scripts in `benchmarks/` still fit the library: all import it, and the one that patches a model runs."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if not p.name.startswith(("bench_", "conftest", "cuda", "gst")))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_what_it_names(name: str) -> None:
    assert callable(importlib.import_module(name).main)


@pytest.mark.parametrize("generator", [False, True])
def test_a_clip_of_one_frame(generator: bool) -> None:
    threads = torch.get_num_threads()
    clip = importlib.import_module("offline_clip")
    options = argparse.Namespace(frames=1, memory_gib=1.0, reference=False, generator=generator)
    try:
        report = clip.run(options)
    finally:
        torch.set_num_threads(threads)
    assert report["instances"] == clip.PAIRS
    assert report["mean_mask_pixels"] > 0
