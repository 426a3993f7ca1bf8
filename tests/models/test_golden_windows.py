"""The tracker alone: both window rules, odd windows and layer counts, windows longer and shorter than the clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from golden_data import arrays, assert_golden, state, tensor

from avis_stream.config import AudioConfig, AVISMConfig, LocalizerConfig, TrackerConfig
from avis_stream.models.literal import LiteralTracker
from avis_stream.models.tracker import Tracker
from avis_stream.weights.official import rename_state

CASES = [(w, t) for w in (6, 5) for t in (1, 5, 6, 7, 13)]
TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def build(window: int, kind: type[Tracker] = Tracker) -> Tracker:
    config = AVISMConfig(
        channels=32,
        mask_channels=32,
        audio=AudioConfig(encoder="none"),
        localizer=LocalizerConfig(queries=3),
        tracker=TrackerConfig(
            queries=4, heads=4, ffn_channels=48, encoder_layers=3, decoder_layers=2, token_window=window
        ),
    )
    tracker = kind(config)
    official = {f"avism_module.{k}": v for k, v in state("c_windows", "state.").items()}
    ours = {k.removeprefix("tracker."): v for k, v in rename_state(official).items() if k.startswith("tracker.")}
    tracker.load_state_dict(ours)
    return tracker


@pytest.mark.parametrize("kind", [Tracker, LiteralTracker])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("window", "frames"), CASES)
@torch.no_grad()
def test_recorded_case(window: int, frames: int, mode: str, kind: type[Tracker]) -> None:
    tracker = build(window, kind).train(mode == "train")
    name = f"W{window}.T{frames}"
    queries, audio = tensor("c_windows", f"{name}.frame_queries"), tensor("c_windows", f"{name}.audio")
    objects = tracker.encode(queries)
    tokens = tracker.fuse(objects, audio)
    encoded = tensor("c_windows", f"{name}.{mode}.encoder_out_padded")[:frames, :, 0]
    torch.testing.assert_close(objects[0], encoded, **TOLERANCE)
    heard = tensor("c_windows", f"{name}.{mode}.av_out_padded")[:frames, :, 0]
    torch.testing.assert_close(tokens[0] - objects[0], heard, **TOLERANCE)
    answer = tracker.decode(tokens)[-1]
    assert_golden(answer.logits, "c_windows", f"{name}.{mode}.pred_logits", **TOLERANCE)
    assert_golden(answer.mask_embed, "c_windows", f"{name}.{mode}.pred_mask_embed", **TOLERANCE)


@torch.no_grad()
def test_without_windows_every_frame_sees_every_other() -> None:
    tracker = build(0).eval()
    predictions, _ = tracker(tensor("c_windows", "W6.T13.frame_queries"), tensor("c_windows", "W6.T13.audio"))
    assert_golden(predictions[-1].logits, "c_windows", "W0.T13.eval.pred_logits", **TOLERANCE)
    assert_golden(predictions[-1].mask_embed, "c_windows", "W0.T13.eval.pred_mask_embed", **TOLERANCE)


@pytest.mark.parametrize(("window", "frames"), CASES)
def test_literal_shift_mask_is_the_recorded_one(window: int, frames: int) -> None:
    tracker = build(window, LiteralTracker)
    assert isinstance(tracker, LiteralTracker)
    padded = -(-frames // window) * window
    bias = tracker._shift_bias(torch.arange(padded) >= frames, slots=3)
    recorded = rearrange(arrays("c_windows")[f"W{window}.T{frames}.shift_mask_add"], "(g a) i j -> g a i j", a=4)
    torch.testing.assert_close(bias, torch.from_numpy(recorded[:, 0]))


@torch.no_grad()
def test_one_audio_query_a_frame_equals_one_an_object() -> None:
    """Quirk Q27: the copies that the official code carries never differ."""
    fast, literal = build(6).eval(), build(6, LiteralTracker).eval()
    audio, objects = torch.randn(20, 128), torch.randn(1, 20, 3, 32)
    torch.testing.assert_close(fast.fuse(objects, audio), literal.fuse(objects, audio), **TOLERANCE)


@torch.no_grad()
def test_shift_in_training_is_an_option() -> None:
    """Quirk Q3: by default the object encoder shifts in evaluation only."""
    tracker = build(6).train()
    queries = tensor("c_windows", "W6.T13.frame_queries")
    assert not torch.allclose(tracker.encode(queries), tracker.eval().encode(queries), atol=1e-3)
    tracker.train().config = replace(tracker.config, shift_in_training=True)
    torch.testing.assert_close(tracker.encode(queries), tracker.eval().encode(queries))
