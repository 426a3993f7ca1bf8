"""Training starts from any published backbone, and says what it took."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_data import state
from safetensors.torch import save_file
from torch import Tensor

from avis_stream.commands.convert import convert
from avis_stream.config import AVISEG_CLASSES, AudioConfig, PostprocessConfig, TrainConfig
from avis_stream.errors import CheckpointError
from avis_stream.models.avism import AVISM
from avis_stream.models.classes import CLASS_AXES
from avis_stream.presets import preset
from avis_stream.train.checkpoint import Progress, save_checkpoint
from avis_stream.train.optimiser import build_optimiser
from avis_stream.weights import load
from avis_stream.weights.files import read_state, save_weights
from avis_stream.weights.initial import InitialReport, start_from
from avis_stream.weights.load import unfolded_model
from avis_stream.weights.official import config_of, rename_state
from tests.models.test_sounding import SMALL


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


@pytest.fixture(scope="module")
def learnt() -> AVISM:
    """A model of AVISeg's classes in which no two weights are alike."""
    torch.manual_seed(3)
    model = unfolded_model(preset("avism_mini").with_overrides(SMALL), None, "")
    for weight in model.state_dict().values():
        weight.normal_()
    return model


def begun(path: Path, *settings: str) -> tuple[AVISM, dict[str, Tensor], InitialReport]:
    """A model that begins with a file, what it was before, and the report."""
    torch.manual_seed(4)
    model = unfolded_model(preset("avism_mini").with_overrides([*SMALL, *settings]), None, "")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return model, before, start_from(model, path)


def entries(state: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    """What a weight holds for a class, by its number; -1: for no object."""
    return state[name].select(CLASS_AXES[name].axis, number)


def test_classes_are_taken_by_name(learnt: AVISM, tmp_path: Path) -> None:
    """Some of those that were learnt, one that was not, and in another order."""
    save_weights(learnt.state_dict(), learnt.config, tmp_path / "26.safetensors")
    model, before, report = begun(tmp_path / "26.safetensors", "classes=dog,bell,violin")
    state, theirs = model.state_dict(), learnt.state_dict()
    for name, where in CLASS_AXES.items():
        for number, taken in enumerate((AVISEG_CLASSES.index("dog"), None, AVISEG_CLASSES.index("violin"))):
            wanted = entries(before, name, 1) if taken is None else entries(theirs, name, taken)
            assert torch.equal(entries(state, name, number), wanted), name
        assert not where.nothing or torch.equal(entries(state, name, -1), entries(theirs, name, -1)), name
    assert report.fresh_classes == ("bell",)
    assert not report.skipped
    assert "classes that begin afresh: bell" in str(report)


def test_as_many_other_classes_are_no_reason_to_take_theirs(learnt: AVISM, tmp_path: Path) -> None:
    save_weights(learnt.state_dict(), learnt.config, tmp_path / "26.safetensors")
    others = ",".join(f"other{n}" for n in range(26))
    model, before, report = begun(tmp_path / "26.safetensors", f"classes={others}")
    for name, where in CLASS_AXES.items():
        kept = before[name].narrow(where.axis, 0, 26)
        assert torch.equal(model.state_dict()[name].narrow(where.axis, 0, 26), kept), name
        assert (name in report.fresh) is not where.nothing
    assert len(report.fresh_classes) == 26
    assert torch.equal(model.tracker.query_feat.weight, learnt.tracker.query_feat.weight)


def test_no_other_weight_depends_on_the_classes(learnt: AVISM) -> None:
    for settings in (["classes=cat"], ["classes=cat", "localizer.query_source=learned"]):
        few = unfolded_model(preset("avism_mini").with_overrides([*SMALL, *settings]), None, "").state_dict()
        many = learnt.state_dict()
        of_classes = {name for name, value in few.items() if name in many and value.shape != many[name].shape}
        assert of_classes == CLASS_AXES.keys() & few.keys()
        for name in of_classes:
            assert CLASS_AXES[name].shape(few[name], ["cat"]) == CLASS_AXES[name].shape(many[name], AVISEG_CLASSES)


def test_weights_that_are_not_finite_are_refused(learnt: AVISM, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in learnt.state_dict().items()}
    state["tracker.class_embed.bias"][0] = torch.nan
    save_weights(state, learnt.config, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"nan\.safetensors holds NaN .*: tracker\.class_embed\.bias$"):
        begun(tmp_path / "nan.safetensors")


def test_a_configuration_of_anothers_is_passed_over_or_names_its_file(tmp_path: Path) -> None:
    weight = {"a.weight": torch.zeros(2)}
    torch.save({"model": weight, "config": {"lr": 0.1}, "train": {}}, tmp_path / "last.pt")
    assert read_state(tmp_path / "last.pt")[1] is None
    for text in ("lr: 0.1", "[]", '{"lr": 0.1}', '{"channels": [1]}'):
        torch.save({"model": weight, "config": text, "train": ""}, tmp_path / "last.pt")
        save_file(weight, tmp_path / "own.safetensors", metadata={"avis_stream_config": text})
        for name in ("last.pt", "own.safetensors"):
            with pytest.raises(CheckpointError, match=rf"{name}' holds a configuration that cannot be read: "):
                read_state(tmp_path / name)


def test_a_checkpoint_of_a_run_says_what_it_is_of(learnt: AVISM, tmp_path: Path) -> None:
    """By itself: read as another's it had the preset's classes, thresholds and sizes of input."""
    config = replace(learnt.config, postprocess=PostprocessConfig(score_threshold=0.77))
    model = unfolded_model(config, learnt.state_dict(), "")
    optimiser = build_optimiser(model, TrainConfig())
    save_checkpoint(tmp_path / "last.pt", model, optimiser, TrainConfig(), Progress(step=3))
    assert load("avism_mini", tmp_path / "last.pt").config == config
    line = convert(tmp_path / "last.pt", tmp_path / "own.safetensors", None, half=False)
    assert "own.safetensors" in line
    state, stored = read_state(tmp_path / "own.safetensors")
    assert stored == config
    assert torch.equal(state["tracker.class_embed.weight"], learnt.tracker.class_embed.weight)
    _, _, report = begun(tmp_path / "last.pt", "classes=dog,bell")
    assert report.fresh_classes == ("bell",)
