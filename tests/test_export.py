"""Exported programs give the model's own numbers, and files that do not are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from avis_stream.cli import main
from avis_stream.commands import export
from avis_stream.errors import AvisStreamError, ConfigError
from avis_stream.weights import load

DRY = ["export", "avism_mini", "--weights", "random", "--size", "64x96"]


def test_a_program_is_the_model_without_its_code(tmp_path: Path) -> None:
    """The tracker step alone, from the saved state, in the words of export.json."""
    assert main([*DRY, "-o", str(tmp_path / "out"), "--no-compile", "--phases", "1"]) == 0
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    step = described["programs"]["tracker_step_0"]
    assert set(described["programs"]) == {"localizer", "tracker_step_0"}
    assert all(off <= export.TOLERANCE for p in described["programs"].values() for off in p["off_by"].values())

    state = safetensors.torch.load_file(tmp_path / "out" / "state.safetensors")
    frame_queries, features, wanted = step["inputs"]
    assert {name: list(x.shape) for name, x in state.items()} == {name: x["shape"] for name, x in wanted.items()}
    before = {name: x.clone() for name, x in state.items()}
    program = torch.export.load(tmp_path / "out" / "tracker_step_0.pt2").module()
    answer = program(torch.randn(frame_queries["shape"]), torch.randn(features["shape"]), state)
    after = answer[-1]
    assert list(step["outputs"]) == ["logits", "mask_embed", "similarity", "object_tokens", "frame_similarity", "state"]
    assert answer[4].shape == answer[3].shape  # what an identity is recognised by, of each object token
    assert all(torch.equal(state[name], x) for name, x in before.items())  # nothing is written in place
    assert after.keys() == state.keys()
    assert not torch.equal(after["tokens"], state["tokens"])


def test_what_a_frame_gives_is_all_that_linking_and_drawing_take(tmp_path: Path) -> None:
    """Masks from the exported localizer alone are the model's."""
    model = load("avism_mini", "random")
    described = export.export_model(model, tmp_path, (64, 96), print, compiled=False, phases=1)
    names = list(described["programs"]["localizer"]["outputs"])
    images, previous = torch.randn(2, 1, 3, 64, 96).unbind()
    sound = torch.randn(1, model.config.audio.feature_dim)
    got = dict(zip(names, torch.export.load(tmp_path / "localizer.pt2").module()(images, sound, previous), strict=True))
    with torch.no_grad():
        tokens = model.localize(images, sound, previous)
    assert tokens.mask_embed is not None
    masks = torch.einsum("tnc,tchw->tnhw", tokens.mask_embed, tokens.clip_mask_features)
    torch.testing.assert_close(
        torch.einsum("tnc,tchw->tnhw", got["mask_embed"], got["clip_mask_features"]), masks, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(got["sounding"], tokens.sounding, rtol=1e-4, atol=1e-4)
    step = described["programs"]["tracker_step_0"]
    state = safetensors.torch.load_file(tmp_path / "state.safetensors")
    given = torch.randn(step["inputs"][0]["shape"]), torch.randn(step["inputs"][1]["shape"])
    *_, tokens_out, similarity, _ = torch.export.load(tmp_path / "tracker_step_0.pt2").module()(*given, state)
    with torch.no_grad():
        torch.testing.assert_close(similarity, model.tracker.similarity_of_frames(tokens_out), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_programs_agree(tmp_path: Path) -> None:
    """By AOTInductor; the command itself compares them, to 1e-4."""
    assert main([*DRY, "-o", str(tmp_path / "out")]) == 0
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert len(described["programs"]) == 1 + described["window"]
    for name, program in described["programs"].items():
        assert program["off_by"].keys() == {f"{name}.pt2", f"{name}-cpu.pt2"}
        assert all(off <= 1e-4 for off in program["off_by"].values())


def test_a_program_that_is_off_is_refused(tmp_path: Path) -> None:
    right = (torch.ones(3), {"x": torch.full((2,), 1000.0)})
    assert export._difference((torch.ones(3), {"x": torch.full((2,), 1000.05)}), right, tmp_path / "a.pt2") < 1e-4
    for wrong in (
        (torch.full((3,), 1.01), right[1]),
        (torch.full((3,), torch.nan), right[1]),
        (right[0], {"x": torch.full((2,), 1001.0)}),
    ):
        with pytest.raises(AvisStreamError, match=r"a.pt2 was written, but gives results that are off by"):
            export._difference(wrong, right, tmp_path / "a.pt2")


def test_sizes_that_no_frame_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("avism_mini", "random")
    with pytest.raises(ConfigError, match="multiples of 32"):
        export.export_model(model, tmp_path, (60, 96), print)
    with pytest.raises(SystemExit):
        main(["export", "avism_mini", "-o", str(tmp_path), "--size", "64by96"])
    assert "must be HEIGHTxWIDTH" in capsys.readouterr().err
