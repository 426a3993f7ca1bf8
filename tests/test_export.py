"""Exported programs give the model's own numbers, and files that do not are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_model import small_model

from avis_stream.cli import main
from avis_stream.commands import export
from avis_stream.errors import AvisStreamError, ConfigError
from avis_stream.online import OnlineSegmenter, OnlineState
from avis_stream.online.seeing import TrackerAnswer
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
    assert list(step["outputs"]) == ["object_tokens", "frame_similarity", "state"]
    assert answer[1].shape == answer[0].shape  # what an identity is recognised by, of each object token
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
    tokens_out, similarity, _ = torch.export.load(tmp_path / "tracker_step_0.pt2").module()(*given, state)
    with torch.no_grad():
        torch.testing.assert_close(similarity, model.tracker.similarity_of_frames(tokens_out), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objects", ["video", "frame"])
def test_a_stream_goes_on_in_the_programs(objects: str, tmp_path: Path) -> None:
    """From where it has settled, phase by phase: the programs say what it says, and keep what it keeps."""
    model = small_model(objects=objects)
    described = export.export_model(model, tmp_path, (64, 96), lambda line: None, compiled=False)
    begin, window = described["first_frame"], described["window"]
    online = OnlineSegmenter(model)
    state = online.init_state((64, 96))
    slots, config = online.tracking.geometry.slots, model.config
    shapes = ((slots, config.channels), (config.drawn_channels, 16, 24), (config.audio.feature_dim,), (slots,),
              (slots, config.drawn_channels), (slots, len(config.classes) + 1))  # fmt: skip
    frames = [[torch.rand(shape) for shape in shapes] for _ in range(begin + window + 1)]

    def step(t: int, state: OnlineState) -> tuple[TrackerAnswer, OnlineState]:
        queries, features, sound, *said = frames[t]
        return online.step_features(queries, features, sound, state, *said)

    for t in range(begin):
        _, state = step(t, state)
    handed = {name: x.clone() for name, x in export.state_of(state.body.memory).items()}
    for t in range(begin, begin + window + 1):
        expected, state = step(t, state)
        name = f"tracker_step_{t % window}"
        program = torch.export.load(tmp_path / f"{name}.pt2").module()
        got = program(frames[t][0][None], frames[t][2][None], handed)
        answer = dict(zip(described["programs"][name]["outputs"], got, strict=True))
        torch.testing.assert_close(answer["object_tokens"], expected.tokens, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer["frame_similarity"], expected.frame_similarity, rtol=1e-4, atol=1e-4)
        if objects == "video":
            torch.testing.assert_close(answer["logits"][0], expected.pred_logits, rtol=1e-4, atol=1e-4)
        handed = answer["state"]
        torch.testing.assert_close(handed, export.state_of(state.body.memory), rtol=1e-4, atol=1e-4)
    assert ("sink_lse" in handed) == (objects == "video"), "what video queries remember"


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


def test_more_phases_than_there_are_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DRY, "-o", str(tmp_path / "out"), "--no-compile", "--phases", "7"]) == 2
    said = capsys.readouterr().err
    assert said == "avis-stream: phases must be 1 to 6, one for each frame of the tracker's window, got 7\n"
    assert not (tmp_path / "out").exists()
