"""The online tracker against the recorded outputs of the official one (P1, P2 and P6 on `c_windows`)."""

from __future__ import annotations

import pytest
import torch
from golden_data import assert_golden, state, tensor
from online_models import Runner, Stream, offline

from avis_stream.config import AudioConfig, AVISMConfig, LocalizerConfig, TrackerConfig
from avis_stream.models.tracker import Tracker
from avis_stream.weights.official import rename_state

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
CASES = [(w, t) for w in (6, 5) for t in (1, 5, 6, 7, 13)]


def golden(window: int) -> tuple[Tracker, AVISMConfig]:
    config = AVISMConfig(
        channels=32,
        mask_channels=32,
        audio=AudioConfig(encoder="none"),
        localizer=LocalizerConfig(queries=3),
        tracker=TrackerConfig(
            queries=4, heads=4, ffn_channels=48, encoder_layers=3, decoder_layers=2, token_window=window
        ),
    )
    tracker = Tracker(config).eval().requires_grad_(False)
    official = {f"avism_module.{k}": v for k, v in state("c_windows", "state.").items()}
    ours = {k.removeprefix("tracker."): v for k, v in rename_state(official).items() if k.startswith("tracker.")}
    tracker.load_state_dict(ours)
    return tracker, config


def recorded(window: int, frames: int) -> Stream:
    name = f"W{window}.T{frames}"
    return Stream(tensor("c_windows", f"{name}.frame_queries")[0], tensor("c_windows", f"{name}.audio"))


@pytest.mark.parametrize("chunk", [1, 3, 13])
@pytest.mark.parametrize(("window", "frames"), CASES)
def test_answers_and_tokens_are_the_recorded_ones(window: int, frames: int, chunk: int) -> None:
    """P1 and P6."""
    tracker, config = golden(window)
    runner, stream, name = Runner(tracker, config), recorded(window, frames), f"W{window}.T{frames}.eval"
    while runner.memory.seen < frames:
        answer = runner.push(stream, min(chunk, frames - runner.memory.seen))
    assert_golden(answer.logits, "c_windows", f"{name}.pred_logits", **TOLERANCE)
    assert_golden(answer.mask_embed, "c_windows", f"{name}.pred_mask_embed", **TOLERANCE)
    encoded = tensor("c_windows", f"{name}.encoder_out_padded")[:frames, :, 0]
    heard = tensor("c_windows", f"{name}.av_out_padded")[:frames, :, 0]
    torch.testing.assert_close(runner.held()[1], encoded + heard, atol=4e-5, rtol=4e-5)


@pytest.mark.parametrize("window", [5, 6])
def test_tokens_stay_the_offline_ones_on_a_long_stream(window: int) -> None:
    """P2: five rings of the recorded frames, over and over."""
    tracker, config = golden(window)
    runner, part = Runner(tracker, config), recorded(window, 13)
    repeats = 5 * runner.tracking.geometry.ring // 13 + 1
    stream = Stream(part.frame_queries.repeat(repeats, 1, 1), part.audio.repeat(repeats, 1))
    for t in range(len(stream)):
        runner.push(stream)
        if t % 5 == 0:
            first, held = runner.held()
            torch.testing.assert_close(held, offline(tracker, stream, t + 1)[1][first:], **TOLERANCE)


@pytest.mark.parametrize("window", [5, 6])
def test_chunks_of_a_long_stream_with_folds(window: int) -> None:
    """P6 beyond the ring."""
    tracker, config = golden(window)
    single, chunked, part = Runner(tracker, config), Runner(tracker, config), recorded(window, 13)
    stream = Stream(part.frame_queries.repeat(12, 1, 1), part.audio.repeat(12, 1))
    for chunk in (1, 4, 17, 2, 31, 11, 40, 9, 13):
        answer = chunked.push(stream, chunk)
        for _ in range(chunk):
            expected = single.push(stream)
        torch.testing.assert_close(answer.logits, expected.logits, **TOLERANCE)
        torch.testing.assert_close(answer.mask_embed, expected.mask_embed, **TOLERANCE)
    assert single.memory.seen > 2 * single.tracking.geometry.ring
