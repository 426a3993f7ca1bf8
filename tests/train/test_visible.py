"""Learning from all visible objects: what scenes say, what the extra losses measure, which parts learn."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avis_stream.config import AVISEG_CLASSES, TrainConfig
from avis_stream.errors import ConfigError, DataError, ShapeError
from avis_stream.presets import preset
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import make_scene
from avis_stream.train.batch import ClipSample
from avis_stream.train.centres import centre_loss, centre_map, middle
from avis_stream.train.loop import train
from avis_stream.train.losses import Targets, sounding_loss
from avis_stream.train.matcher import Match
from avis_stream.train.optimiser import build_optimiser
from avis_stream.train.points import random_points
from avis_stream.train.source import SynthClips, clip_of, harder
from avis_stream.train.step import ClipLosses
from avis_stream.weights.load import unfolded_model
from tests.models.test_sounding import SMALL


def source(frames: int = 3) -> SynthClips:
    return SynthClips(ProceduralLibrary(), harder(Protocol.load()), frames=frames, size=(96, 64), seed=5)


def clips_with_silence(count: int = 12) -> list[ClipSample]:
    return [source().clip(n) for n in range(count)]


def test_scenes_tell_who_is_visible_and_who_sounds() -> None:
    samples = clips_with_silence()
    silent = 0
    for sample in samples:
        assert sample.sounding is not None
        assert sample.previous is not None
        visible = sample.masks.flatten(2).any(dim=2)
        silent += int((visible & ~sample.sounding).sum())
        alone = sample.sounding_alone()
        assert alone.sounding is None
        assert torch.equal(alone.masks.flatten(2).any(dim=2), visible & sample.sounding)
    assert silent > 10, "silent objects are what the sounding head learns from"
    assert any((sample.images != sample.previous).any() for sample in samples)


def test_what_is_heard_holds_sources_outside_the_picture() -> None:
    outside = 0.0
    for sample in clips_with_silence(24):
        heard = sample.heard(26)
        bare = replace(sample, tags=None).heard(26)
        assert (heard >= bare).all()
        outside += float((heard - bare).sum())
        for t in range(3):
            wanted = set(sample.labels[sample.sounding[:, t]].tolist())  # type: ignore[index]
            assert set(bare[t].nonzero()[:, 0].tolist()) == wanted
    assert outside > 0


@pytest.mark.parametrize(("ends", "before"), [(0.0, 1), (0.3, 1), (0.5, 0), (1.0, 0)])
def test_the_truth_is_that_of_the_second_that_is_mostly_heard(ends: float, before: int) -> None:
    protocol = replace(Protocol.load(), sounding_start=(0.0, 0.5, 0.5, 0.0, 0.0, 0.0), handover_share=0.5)
    changes = 0
    for index in range(6):
        scene = make_scene(
            ProceduralLibrary(), protocol, seed=1, index=index, seconds=(5, 5), size=(48, 32), photograph_share=0
        )
        clip = clip_of(scene, range(1, 5), AVISEG_CLASSES, "", ends=ends)
        for k, actor in enumerate(scene.story.actors):
            assert clip.sounding is not None
            assert clip.sounding[k].tolist() == actor.sounding[1 - before : 5 - before].tolist()
            changes += int((actor.sounding[1:] != actor.sounding[:-1]).sum())
        begin = round((1 + ends) * 16_000)  # of the second frame: its sound ends `ends` after 2 s
        assert torch.equal(clip.seconds[1], torch.from_numpy(scene.wave[begin : begin + 16_000]))
    assert changes > 3


def test_targets_of_frames_know_who_sounds() -> None:
    sample = clips_with_silence(1)[0]
    for t, target in enumerate(sample.frame_targets((64, 96))):
        assert target.sounding is not None
        assert torch.equal(target.sounding, sample.sounding[target.ids, t])  # type: ignore[index]


def test_a_sample_checks_its_shapes() -> None:
    sample = clips_with_silence(1)[0]
    with pytest.raises(ShapeError, match="sounding"):
        replace(sample, sounding=torch.ones(7, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="previous"):
        replace(sample, previous=torch.zeros(2, 3, 64, 96, dtype=torch.uint8))


def test_sounding_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 9.0], [-1.0, 9.0, 9.0]])
    masks = torch.zeros(2, 1, 4, 4)
    targets = [
        Targets(torch.tensor([1, 2]), masks, torch.arange(2), torch.tensor([True, False])),
        Targets(torch.tensor([0]), masks[:1], torch.arange(1)),  # nothing said: it sounds
    ]
    matches = [Match(torch.tensor([0, 1]), torch.tensor([1, 0])), Match(torch.tensor([0]), torch.tensor([0]))]
    by_hand = (math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 3
    assert sounding_loss(logits, targets, matches).item() == pytest.approx(by_hand, rel=1e-6)
    nobody = [Match(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))] * 2
    assert sounding_loss(logits, targets, nobody).item() == 0


def test_the_middle_of_an_object_is_inside_it() -> None:
    ring = torch.zeros(20, 20, dtype=torch.bool)
    ring[4:16, 4:16], ring[6:14, 6:14] = True, False
    row, column = middle(ring)
    assert ring[row, column]


def test_bumps_stand_on_objects_in_the_map_of_their_class() -> None:
    masks = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    masks[0, 0, 16:32, 8:24], masks[1, 0, 40:60, 60:90] = True, True
    maps = centre_map([Targets(torch.tensor([3, 3]), masks, torch.arange(2))], 5, (8, 12))
    assert (maps == 1).nonzero().tolist() == [[0, 3, 2, 1], [0, 3, 6, 9]]
    assert not maps[0, [0, 1, 2, 4]].any()


def test_centre_loss_wants_the_centre_and_forgives_its_slope() -> None:
    wanted = torch.zeros(1, 1, 5, 5)
    wanted[0, 0, 2, 2], wanted[0, 0, 2, 3] = 1.0, 0.8
    quiet = torch.full((1, 1, 5, 5), -6.0)
    right, near, far = quiet.clone(), quiet.clone(), quiet.clone()
    right[0, 0, 2, 2] = near[0, 0, 2, 2] = far[0, 0, 2, 2] = 6.0
    near[0, 0, 2, 3], far[0, 0, 0, 0] = 3.0, 3.0
    values = [centre_loss(maps, wanted).item() for maps in (right, near, far, quiet)]
    assert values[0] < values[1] < values[2]
    assert values[3] > 5
    by_hand = 0.2**4 * torch.tensor(3.0).sigmoid() ** 2 * math.log(1 + math.exp(3.0))
    assert values[1] - values[0] == pytest.approx(by_hand.item(), rel=1e-3)


def test_every_loss_of_the_small_model_is_finite_and_reaches_its_part() -> None:
    torch.manual_seed(0)
    model = unfolded_model(preset("avism_mini").with_overrides(SMALL), None, "")
    config = TrainConfig(frames=3, query_layers=1, losses=replace(TrainConfig().losses, points=64))
    build_optimiser(model, config)
    model.train()
    samples = clips_with_silence(2)
    losses = ClipLosses(model, config)(samples, random_points(model.device))
    assert {"frame_sounding", "frame_sounding_0", "frame_tags", "frame_peaks"} <= losses.keys()
    assert all(torch.isfinite(value) for value in losses.values())
    weights = config.losses
    rest = sum(
        {"class": 2.0, "mask": 5.0, "dice": 5.0, "similarity": 1.0}.get(name.split("_")[1], 0.0) * value.item()
        for name, value in losses.items()
        if name != "total"
    )
    extra = (
        weights.sounding_weight * sum(v.item() for k, v in losses.items() if k.startswith("frame_sounding"))
        + weights.tag_weight * losses["frame_tags"].item()
        + weights.peak_weight * losses["frame_peaks"].item()
    )
    assert losses["total"].item() == pytest.approx(rest + extra, rel=1e-5)
    losses["total"].backward()
    for part in ("localizer.sounding.tag", "localizer.sounding.cue", "localizer.peaks.centre", "localizer.peaks.conv"):
        grads = [p.grad for name, p in model.named_parameters() if name.startswith(part)]
        assert grads, part
        assert any(g is not None and g.abs().sum() > 0 for g in grads), part


def test_frozen_parts_do_not_learn_and_must_exist() -> None:
    model = unfolded_model(preset("avism_mini").with_overrides(SMALL), None, "")
    build_optimiser(model, TrainConfig(frozen=("backbone.stem", "localizer.peaks.")))
    for name, parameter in model.named_parameters():
        still = name.startswith(("backbone.stem", "localizer.peaks.", "audio_encoder."))
        assert parameter.requires_grad is not still, name
    with pytest.raises(ConfigError, match=r"TrainConfig\.frozen must be the first words"):
        build_optimiser(model, TrainConfig(frozen=("backbone.steam",)))
    every = tuple(f"{name}." for name, _ in model.named_children())
    with pytest.raises(ConfigError, match=r"nothing is left to learn with train\.backbone_factor=0\.1 .*=backbone\.,"):
        build_optimiser(model, TrainConfig(frozen=every))


def test_clips_are_made_in_order_by_a_process_that_ends_with_the_run(tmp_path: Path) -> None:
    diary = tmp_path / "asked"

    class Noting:
        def clip(self, number: int) -> ClipSample:
            with diary.open("a") as file:
                file.write(f"{number} {os.getpid()}\n")
            return source().clip(3)

    model = unfolded_model(preset("avism_mini").with_overrides(SMALL), None, "")
    config = TrainConfig(steps=3, frames=3, clips=2, query_layers=1, losses=replace(TrainConfig().losses, points=32))
    train(model, Noting(), config, tmp_path)
    asked = [tuple(map(int, line.split())) for line in diary.read_text().splitlines()]
    assert [number for number, _ in asked] == [0, 1, 2, 3, 4, 5]
    (maker,) = {pid for _, pid in asked}
    assert maker != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(maker, 0)


def test_what_a_source_refuses_is_said_in_its_own_words(tmp_path: Path) -> None:
    class Refusing:
        def clip(self, number: int) -> ClipSample:
            raise DataError(f"clip {number} is torn; mend it")

    model = unfolded_model(preset("avism_mini").with_overrides(SMALL), None, "")
    with pytest.raises(DataError, match=r"^clip 0 is torn; mend it$"):
        train(model, Refusing(), TrainConfig(steps=1), tmp_path)
