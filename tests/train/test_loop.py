"""The loop learns, resumes exactly, stops when asked, and does on two processes what it does on one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from avis_stream.config import (
    AudioConfig,
    AVISMConfig,
    InputConfig,
    LocalizerConfig,
    LossConfig,
    MobileNetConfig,
    PixelDecoderConfig,
    TrackerConfig,
    TrainConfig,
    with_overrides,
)
from avis_stream.errors import AvisStreamError, CheckpointError, ConfigError, DataError
from avis_stream.models.avism import AVISM
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import Scene
from avis_stream.train import clip_losses as clips_module
from avis_stream.train import loop as loop_module
from avis_stream.train import source as source_module
from avis_stream.train import step as step_module
from avis_stream.train.batch import ClipSample
from avis_stream.train.checkpoint import save_checkpoint
from avis_stream.train.loop import JUDGED_BY, Stopped, train
from avis_stream.train.optimiser import build_optimiser
from avis_stream.train.processes import all_or_none
from avis_stream.train.source import SynthClips, harder
from avis_stream.train.step import ClipLosses
from avis_stream.weights.load import unfolded_model

MODEL = AVISMConfig(
    channels=32,
    mask_channels=16,
    backbone=MobileNetConfig(),
    audio=AudioConfig(encoder="yamnet", feature_dim=1024),
    input=InputConfig(short_side_px=64),
    pixel_decoder=PixelDecoderConfig(layers=1, heads=4, ffn_channels=32),
    localizer=LocalizerConfig(queries=6, layers=2, heads=4, ffn_channels=32),
    tracker=TrackerConfig(queries=6, heads=4, ffn_channels=32, encoder_layers=2, decoder_layers=2, token_window=2),
)
QUICK = TrainConfig(
    steps=4, frames=3, query_layers=2, learning_rate=1e-3, gradient_clip=1.0, losses=LossConfig(points=64)
)


class OneClip:
    """The same clip for ever, and a count of how often it was asked for."""

    def __init__(self, numbers: tuple[int, ...] | None = None) -> None:
        self.source = SynthClips(ProceduralLibrary(), Protocol.load(), frames=3, size=(96, 64), seed=5)
        self.numbers, self.asked = numbers, 0

    def clip(self, number: int) -> ClipSample:
        self.asked += 1
        return self.source.clip(3 if self.numbers is None else self.numbers[number % len(self.numbers)])


def fresh_model() -> AVISM:
    torch.manual_seed(0)
    return unfolded_model(MODEL, None, "")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_where_sound_ends_says_nothing_of_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 is the version of the protocol, too."""
    seen: list[tuple[float, bool]] = []
    plain = source_module.clip_of

    def watched(scene: Scene, *given: Any, ends: float, **named: Any) -> ClipSample:
        seen.append((ends, bool(scene.story.pair)))
        return plain(scene, *given, ends=ends, **named)

    monkeypatch.setattr(source_module, "clip_of", watched)
    clips = SynthClips(ProceduralLibrary(), harder(Protocol.load()), frames=1, size=(32, 24), seed=1)
    for number in range(40):
        clips.clip(number)
    pairs = [[pair for ends, pair in seen if (ends < 0.5) == early] for early in (True, False)]
    assert [sum(own) / len(own) for own in pairs] == pytest.approx([0.5, 0.5], abs=0.25)


def test_losses_fall(tmp_path: Path) -> None:
    seen: list[float] = []
    train(
        fresh_model(), OneClip(), replace(QUICK, steps=16), tmp_path, log=lambda _, losses: seen.append(losses["total"])
    )
    assert sum(seen[-4:]) < 0.8 * sum(seen[:4])


def test_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    whole, parts = fresh_model(), fresh_model()
    source = OneClip(numbers=(3, 4, 6, 8))
    train(whole, source, QUICK, tmp_path / "whole")
    train(parts, source, replace(QUICK, steps=2), tmp_path / "parts")
    again = fresh_model()
    torch.manual_seed(99)
    progress = train(again, source, QUICK, tmp_path / "parts", resume=True)
    assert progress.step == 4
    for name, value in weights(whole).items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_stops(tmp_path: Path, number: int) -> None:
    def ask(step: int, _: dict[str, float]) -> None:
        if step == 2:  # as a terminal or a scheduler does it: to every process of the group
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                assert process.pid is not None
                os.kill(process.pid, number)

    with pytest.raises(Stopped, match=r"stopped after step 2; go on with --resume"):
        train(fresh_model(), OneClip(), QUICK, tmp_path, log=ask)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(fresh_model(), OneClip(), QUICK, tmp_path, resume=True).step == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_clip(tmp_path: Path) -> None:
    model = fresh_model()
    model.tracker.class_embed.bias.data.fill_(float("nan"))
    with pytest.raises(
        AvisStreamError, match=r"clip_class, .*not finite on \['scene 3'\]; the clips are in .*not_finite"
    ):
        train(model, OneClip(), QUICK, tmp_path)
    (clip,) = torch.load(tmp_path / "not_finite.pt", weights_only=True)
    assert clip["name"] == "scene 3"
    assert clip["images"].dtype == torch.uint8
    assert clip["sounding"].dtype == torch.bool


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tmp_path: Path) -> None:
    model = fresh_model()
    bias = model.tracker.class_embed.bias
    bias.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    before = bias.detach().clone()
    with pytest.raises(AvisStreamError, match=r"gradients not finite on \['scene 3'\]; the clips are in .*not_finite"):
        train(model, OneClip(), QUICK, tmp_path)
    assert torch.equal(bias, before)
    assert not (tmp_path / "last.pt").exists()


def test_validation_keeps_the_best(tmp_path: Path) -> None:
    figures = iter([1.0, 5.0, 3.0])
    asked: list[tuple[int, bool]] = []
    kept: list[int] = []
    model = fresh_model()

    def validate(step: int) -> dict[str, float]:
        asked.append((step, model.training))
        return {JUDGED_BY: next(figures)}

    progress = train(
        model,
        OneClip(),
        replace(QUICK, steps=5, validate_every=2),
        tmp_path,
        validate=validate,
        keep_best=lambda: kept.append(asked[-1][0]),
    )
    assert asked == [(2, False), (4, False), (5, False)]
    assert kept == [2, 4]
    assert progress.best == 5.0


def test_resuming_from_nothing_or_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be resumed from"):
        train(fresh_model(), OneClip(), QUICK, tmp_path, resume=True)
    train(fresh_model(), OneClip(), replace(QUICK, steps=1), tmp_path)
    other = unfolded_model(replace(MODEL, mask_channels=8), None, "")
    with pytest.raises(CheckpointError, match="another configuration"):
        train(other, OneClip(), QUICK, tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is it complete"):
        train(fresh_model(), OneClip(), QUICK, tmp_path, resume=True)


def test_groups_are_the_official_ones() -> None:
    model = fresh_model()
    optimiser = build_optimiser(model, TrainConfig())
    found = {(group["factor"], group["weight_decay"]) for group in optimiser.param_groups}
    assert found == {(0.1, 0.05), (1.0, 0.05), (1.0, 0.0)}
    undecayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert id(model.tracker.query_feat.weight) in undecayed
    assert id(model.tracker.decoder_norm.weight) in undecayed
    assert id(model.tracker.class_embed.weight) not in undecayed
    assert not any(p.requires_grad for p in model.audio_encoder.parameters())
    frozen = fresh_model()
    build_optimiser(frozen, TrainConfig(backbone_factor=0.0))
    assert not any(p.requires_grad for p in frozen.backbone.parameters())


def test_schedule() -> None:
    official = TrainConfig()
    assert [official.rate_at(step) for step in (0, 9, 31_999, 32_000)] == [1.0, 1.0, 1.0, pytest.approx(0.1)]
    warm = TrainConfig(warmup=4, warmup_factor=0.2, milestones=(6, 8))
    assert [round(warm.rate_at(s), 4) for s in (0, 2, 4, 6, 8)] == [0.2, 0.6, 1.0, 0.1, 0.01]
    line = TrainConfig(steps=14, milestones=(4,), decay="linear")
    assert [round(line.rate_at(s), 4) for s in (0, 4, 9, 13, 14)] == [1.0, 1.0, 0.5, 0.1, 0.0]
    assert with_overrides(official, ["losses.similarity_weight=0.5", "milestones=5,7"]).milestones == (5, 7)
    with pytest.raises(ConfigError, match=r"TrainConfig\.steps must be >= 1, got 0"):
        TrainConfig(steps=0)


# --- two processes ----------------------------------------------------------------------------------------------------


def points_of(clip: int) -> Any:
    generator = torch.Generator().manual_seed(clip)
    return lambda masks, points: torch.rand(masks, points, 2, generator=generator)


def losses_and_gradients(model: AVISM, number: int, config: TrainConfig) -> tuple[float, dict[str, Tensor]]:
    """Of one clip, the audio encoder left out."""
    build_optimiser(model, config)
    model.train()
    sample = OneClip(numbers=(number,)).clip(0)
    module: nn.Module = ClipLosses(model, config)
    if dist.is_initialized():
        module = nn.parallel.DistributedDataParallel(module)
    losses = module([sample], points_of(number))
    losses["total"].backward()
    return losses["total"].item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def one_rank(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    total, gradients = losses_and_gradients(fresh_model(), (3, 6)[rank], QUICK)
    model = fresh_model()
    train(model, OneClip(numbers=(3, 6, 4, 8)), replace(QUICK, steps=20), Path(folder) / "run")
    torch.save((total, gradients, weights(model)), Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


class StopsOne:
    """Clips of which one, that of the second process in step 4, comes with a request to stop; to that process alone."""

    def __init__(self) -> None:
        self.source = OneClip(numbers=(3, 6, 4, 8))

    def clip(self, number: int) -> ClipSample:
        if number == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.source.clip(number)


def one_rank_that_stops(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole, parts, again = fresh_model(), fresh_model(), fresh_model()
    source, six = OneClip(numbers=(3, 6, 4, 8)), replace(QUICK, steps=6)
    train(whole, source, six, Path(folder) / "whole", ahead=False)
    with pytest.raises(Stopped, match="after step 4"):
        train(parts, StopsOne(), six, Path(folder) / "parts", ahead=False)
    assert train(again, source, six, Path(folder) / "parts", ahead=False, resume=True).step == 6
    for name, value in weights(whole).items():
        assert torch.equal(value, again.state_dict()[name]), f"{name} of process {rank}"
    dist.destroy_process_group()


def test_two_processes_stop_together_and_go_on_exactly(tmp_path: Path) -> None:
    """One of them is asked to; both save random numbers of their own and take them up again."""
    mp.spawn(one_rank_that_stops, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)


def one_rank_that_fails(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    losses = BrokenOn(ClipLosses(fresh_model(), QUICK), broken=rank == 1)
    wanted = r"not finite on \['scene 6'\]; .*not_finite_1\.pt" if rank == 1 else "of another process"
    with pytest.raises(AvisStreamError, match=wanted):
        train(losses.losses.model, OneClip(numbers=(3, 6)), QUICK, Path(folder), ahead=False, losses=losses)
    dist.destroy_process_group()


def one_rank_of_which_the_first_fails(rank: int, store: str, folder: str, what: str) -> None:
    """While the others wait for it: whatever it is, all stop in the same step, where they would have waited on."""
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    def judge(step: int) -> dict[str, float]:
        return {JUDGED_BY: float(step)}

    given: dict[str, Any] = {"validate": judge, "keep_best": lambda: None} | {what: fail}
    if what == "checkpoint":
        given = {}
        Path(folder, "last.pt").mkdir(exist_ok=True)  # where a file cannot be
    named = {"checkpoint": "writing a checkpoint", "log": "logging"}.get(what, "validating")
    own = "Is a directory" if what == "checkpoint" else "no space left"
    error, words = (OSError, own) if rank == 0 else (AvisStreamError, f"{named} failed in another process")
    schedule, source = replace(QUICK, steps=2, validate_every=1), OneClip(numbers=(3, 6))
    with pytest.raises(error, match=words):
        train(fresh_model(), source, schedule, Path(folder), ahead=False, save_every=1, **given)
    dist.destroy_process_group()


@pytest.mark.parametrize("what", ["validate", "log", "keep_best", "checkpoint"])
def test_what_fails_in_the_first_process_alone_stops_all(tmp_path: Path, what: str) -> None:
    arguments = (str(tmp_path / "store"), str(tmp_path), what)
    mp.spawn(one_rank_of_which_the_first_fails, arguments, nprocs=2)


def test_what_failed_is_told_though_nobody_else_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that is gone breaks what comes next, which must not take the place of what was wrong."""

    def broken(*_: object) -> None:
        raise RuntimeError("Connection closed by peer")

    def try_it(failure: Exception | None) -> None:
        with all_or_none("logging", torch.device("cpu")):
            if failure is not None:
                raise failure

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", broken)
    with pytest.raises(OSError, match="no space left") as told:
        try_it(OSError("no space left"))
    assert told.value.__notes__ == ["the other processes could not be told: Connection closed by peer"]
    with pytest.raises(RuntimeError, match="Connection closed"):
        try_it(None)


def test_a_best_that_cannot_be_kept_ends_the_run(tmp_path: Path) -> None:
    """What was kept before stays the best until a run that goes on has kept the other."""
    kept: list[int] = []

    def keep() -> None:
        if kept:
            raise OSError("no space left")
        kept.append(1)

    schedule, figures = replace(QUICK, validate_every=1), iter([1.0, 2.0])
    with pytest.raises(OSError, match="no space left"):
        train(
            fresh_model(), OneClip(), schedule, tmp_path, ahead=False, save_every=1,
            validate=lambda _: {JUDGED_BY: next(figures)}, keep_best=keep,
        )  # fmt: skip
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["step"], state["best"], state["validated"]) == (2, 1.0, 1)


@pytest.mark.parametrize("what", ["keep_best", "checkpoint"])
def test_scores_that_are_made_up_for_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Not before the state that knows of them is safe: a run that goes on judges again until then."""
    asked: list[int] = []
    logged: list[tuple[int, float]] = []

    def validate(step: int) -> dict[str, float]:
        asked.append(step)
        return {JUDGED_BY: float(step)}

    def log(step: int, figures: dict[str, float]) -> None:
        logged.extend((step, figures[JUDGED_BY]) for name in figures if name == JUDGED_BY)

    def keep() -> None:
        if what == "keep_best" and len(asked) == 1:
            raise OSError("no space left")

    def save(*given: Any) -> None:
        if what == "checkpoint" and given[-1].validated and len(asked) == 1:
            raise OSError("no space left")
        save_checkpoint(*given)

    monkeypatch.setattr(loop_module, "save_checkpoint", save)
    given: dict[str, Any] = {"ahead": False, "validate": validate, "keep_best": keep, "log": log}
    schedule = replace(QUICK, validate_every=2)
    with pytest.raises(OSError, match="no space left"):
        train(fresh_model(), OneClip(), schedule, tmp_path, **given)
    train(fresh_model(), OneClip(), schedule, tmp_path, resume=True, **given)
    assert asked == [2, 2, 4]
    assert logged == [(2, 2.0), (4, 4.0)]


def test_a_validation_that_fails_costs_nothing_and_is_made_up_for(tmp_path: Path) -> None:
    """Also after the last step, when there is nothing else to go on with."""
    asked: list[int] = []

    def validate(step: int) -> dict[str, float]:
        asked.append(step)
        if len(asked) in (1, 3):
            raise OSError("a picture cannot be read")
        return {JUDGED_BY: 1.0}

    schedule, kept = replace(QUICK, validate_every=2), []
    given: dict[str, Any] = {"ahead": False, "validate": validate, "keep_best": lambda: kept.append(asked[-1])}
    with pytest.raises(OSError, match="cannot be read"):
        train(fresh_model(), OneClip(), schedule, tmp_path, **given)
    with pytest.raises(OSError, match="cannot be read"):
        train(fresh_model(), OneClip(), schedule, tmp_path, resume=True, **given)
    progress = train(fresh_model(), OneClip(), schedule, tmp_path, resume=True, **given)
    assert (asked, kept, progress.validated) == ([2, 2, 4, 4], [2, 4], 4)
    train(fresh_model(), OneClip(), schedule, tmp_path, resume=True, **given)
    assert asked == [2, 2, 4, 4], "what was validated is not again"
    whole = fresh_model()
    train(whole, OneClip(), schedule, tmp_path / "whole", ahead=False)
    learnt = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(value, learnt[name]) for name, value in weights(whole).items())


def test_of_equal_figures_the_later_is_the_best(tmp_path: Path) -> None:
    """While nothing passes a threshold all are 0, and the first would be the untrained model."""
    kept, asked = [], []
    train(
        fresh_model(), OneClip(), replace(QUICK, validate_every=1), tmp_path, ahead=False,
        validate=lambda step: asked.append(step) or {JUDGED_BY: 0.0}, keep_best=lambda: kept.append(asked[-1]),
    )  # fmt: skip
    assert kept == [1, 2, 3, 4]


class Unreadable:
    """Clips of which one cannot be made."""

    def __init__(self, number: int) -> None:
        self.source, self.number = OneClip(), number

    def clip(self, number: int) -> ClipSample:
        if number == self.number:
            raise DataError("3.jpg breaks off")
        return self.source.clip(number)


def test_a_clip_that_cannot_be_made_costs_nothing_that_was_learnt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="breaks off"):
        train(fresh_model(), Unreadable(0), QUICK, tmp_path)
    assert not (tmp_path / "last.pt").exists()
    with pytest.raises(DataError, match="breaks off"):
        train(fresh_model(), Unreadable(2), QUICK, tmp_path)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
    assert train(fresh_model(), OneClip(), QUICK, tmp_path, resume=True).step == 4


def one_rank_that_cannot_read(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    error, words = (AvisStreamError, "making clips failed in another") if rank == 0 else (DataError, "breaks off")
    with pytest.raises(error, match=words):
        train(fresh_model(), Unreadable(3), QUICK, Path(folder), ahead=False)
    assert torch.load(Path(folder) / "last.pt", weights_only=True)["step"] == 1
    dist.destroy_process_group()


def test_a_clip_that_one_process_cannot_make_stops_all(tmp_path: Path) -> None:
    mp.spawn(one_rank_that_cannot_read, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)


class BrokenOn(nn.Module):
    """Losses that are no number in one process."""

    def __init__(self, losses: ClipLosses, *, broken: bool) -> None:
        super().__init__()
        self.losses, self.broken = losses, broken

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.losses(*arguments)
        return {name: value * float("nan") for name, value in found.items()} if self.broken else found


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path) -> None:
    mp.spawn(one_rank_that_fails, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)


def test_two_processes_learn_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mp.spawn(one_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in ranks[0][2].items():
        assert torch.equal(value, ranks[1][2][name]), f"{name} differs between the ranks after 20 steps"

    counts: list[int] = []
    for module in (step_module, clips_module):
        monkeypatch.setattr(module, "mask_count", lambda own, _: counts.append(own) or 1.0)
    for number in (3, 6):
        losses_and_gradients(fresh_model(), number, QUICK)
    # frame count, clip count of the first clip, then of the second: both ranks divide by the mean
    shared = iter([max(1.0, (counts[0] + counts[2]) / 2), max(1.0, (counts[1] + counts[3]) / 2)] * 2)
    for module in (step_module, clips_module):
        monkeypatch.setattr(module, "mask_count", lambda *_: next(shared))
    one = [losses_and_gradients(fresh_model(), number, QUICK) for number in (3, 6)]
    for rank in range(2):
        assert ranks[rank][0] == pytest.approx(one[rank][0], rel=1e-6)
    largest = max(gradient.abs().max().item() for gradient in ranks[0][1].values())
    for name, gradient in ranks[0][1].items():
        parts = [grads.get(name.removeprefix("model."), torch.zeros_like(gradient)) for _, grads in one]
        assert (gradient - (parts[0] + parts[1]) / 2).abs().max() <= 1e-6 * largest, name
