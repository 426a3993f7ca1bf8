"""Training starts from any published backbone, and says what it took."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_data import state

from avis_stream.config import AudioConfig
from avis_stream.errors import CheckpointError
from avis_stream.models.avism import AVISM
from avis_stream.weights.initial import start_from
from avis_stream.weights.official import config_of, rename_state


def tiny() -> AVISM:
    config = config_of(rename_state(state("a_state")))
    return AVISM(replace(config, audio=AudioConfig(encoder="none")))


def test_official_weights_of_another_number_of_classes(tmp_path: Path) -> None:
    torch.save({"model": state("a_state")}, tmp_path / "coco.pth")
    model = AVISM(replace(tiny().config, classes=("a", "b")))
    report = start_from(model, tmp_path / "coco.pth")
    assert [name.split()[0] for name in report.skipped] == [
        "localizer.class_embed.bias", "localizer.class_embed.weight",
        "tracker.class_embed.bias", "tracker.class_embed.weight",
    ]  # fmt: skip
    assert set(report.fresh) == {name.split()[0] for name in report.skipped}
    assert torch.equal(model.tracker.query_feat.weight, state("a_state")["avism_module.query_feat.weight"])
    assert str(report).startswith(f"{len(report.loaded)} loaded, 4 skipped, 4 fresh")


def test_detectron2_backbone_pickle(tmp_path: Path) -> None:
    official = {
        k.removeprefix("backbone."): v.numpy() for k, v in state("a_state").items() if k.startswith("backbone.")
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": official, "__author__": "torchvision"}))
    model = tiny()
    report = start_from(model, path)
    assert len(report.loaded) == len(official)
    assert not report.skipped
    assert all(not name.startswith("backbone.") for name in report.fresh)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("owned",))

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": Bad()}))
    with pytest.raises(CheckpointError, match=r"asks to run builtins\.print, which is refused"):
        start_from(tiny(), tmp_path / "bad.pkl")


def test_torchvision_resnet(tmp_path: Path) -> None:
    def theirs(key: str) -> str:
        key = key.removeprefix("backbone.stem.").removeprefix("backbone.")
        key = key.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
        for i in (1, 2, 3):
            key = key.replace(f"conv{i}.norm.", f"bn{i}.")
        for stage in (2, 3, 4, 5):
            key = key.replace(f"res{stage}.", f"layer{stage - 1}.")
        return key

    official = {k: v for k, v in state("a_state").items() if k.startswith("backbone.")}
    published = {theirs(k): v for k, v in official.items()}
    published |= {"fc.weight": torch.zeros(1), "bn1.num_batches_tracked": torch.zeros(1)}
    torch.save(published, tmp_path / "resnet.pth")
    model = tiny()
    assert len(start_from(model, tmp_path / "resnet.pth").loaded) == len(official)
    for name, value in official.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_nothing_that_fits_says_so(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"nothing in .*other\.pth fits avism_official; keys are like"):
        start_from(tiny(), tmp_path / "other.pth")
