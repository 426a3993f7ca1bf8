"""Official checkpoints of every variant load, and every key is accounted for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_data import GOLDEN, assert_golden, state, tensor
from torch import Tensor

import avis_stream as avs
from avis_stream.models.avism import AVISM
from avis_stream.presets import PRESETS, preset
from avis_stream.weights.files import read_state, save_weights
from avis_stream.weights.official import config_of, rename_official, rename_state

VARIANTS = {"R50_IN": "avism_r50_in", "R50_COCO": "avism_r50_coco", "SwinL_IN": "avism_swinl_in"}


def listed_state(variant: str, device: str = "meta") -> dict[str, Tensor]:
    """An empty state dict with the keys, shapes and types of a real checkpoint."""
    tensors = {}
    for line in (GOLDEN / f"state_dict_keys_avism_{variant}.tsv").read_text().splitlines():
        name, shape, dtype = line.split("\t")
        size = [int(n) for n in shape.split("x")] if shape else []
        tensors[name] = torch.empty(size, dtype=getattr(torch, dtype), device=device)
    return tensors


def as_coco(official: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(key: str) -> str:
        key = key.replace("avism_module.avism_mask", "vita_module.vita_mask")
        return key.replace("avism_module.", "vita_module.").replace("avism_criterion.", "vita_criterion.")

    return {rename(key): value for key, value in official.items()}


def as_vita(official: dict[str, Tensor]) -> dict[str, Tensor]:
    sound = (".av_pre_proj", ".av_sf.", ".av_post_proj", ".av_proj", ".enc_av_")
    return {k: v for k, v in as_coco(official).items() if not any(part in k for part in sound)}


@pytest.mark.parametrize(("variant", "name"), VARIANTS.items())
def test_every_key_of_the_real_layouts_finds_its_place(variant: str, name: str) -> None:
    renamed = rename_state(listed_state(variant))
    with torch.device("meta"):
        model = AVISM(replace(preset(name), audio=replace(preset(name).audio, encoder="none")))
    own = model.state_dict()
    assert set(renamed) == set(own)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in own.items()}


@pytest.mark.parametrize(("variant", "name"), VARIANTS.items())
def test_sizes_are_read_off_the_tensors(variant: str, name: str) -> None:
    assert config_of(rename_state(listed_state(variant)), name=name) == preset(name)


@pytest.mark.parametrize(
    ("name", "mebibytes"), [("avism_r50_in", 527.3), ("avism_r101_coco", 599.5), ("avism_swinl_in", 1181.8)]
)
def test_sizes_are_the_papers(name: str, mebibytes: float) -> None:
    """Table 6 of the paper counts all fp32 parameters, VGGish included, in MiB, rounded up."""
    with torch.device("meta"):
        model = AVISM(preset(name))
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    assert math.ceil(size * 10) / 10 == mebibytes


@pytest.mark.parametrize("wrap", [lambda s: s, as_coco], ids=["IN", "COCO"])
@pytest.mark.parametrize("kind", ["dict", "file", "detectron2", "distributed"])
def test_golden_weights_load_from_any_wrapping(kind: str, wrap: object, tmp_path: Path) -> None:
    assert callable(wrap)
    official = wrap(state("a_state"))
    source: object = official
    if kind != "dict":
        path = tmp_path / "official.pth"
        packed = {
            "file": official,
            "detectron2": {"model": official, "iteration": 7},
            "distributed": {"model": {f"module.{k}": v for k, v in official.items()}},
        }
        torch.save(packed[kind], path)
        source = path
    model = avs.from_official(source, top_k=10)  # type: ignore[arg-type]
    raw = model.raw_outputs(tensor("a_t8", "in.images_u8"), tensor("a_t8", "in.audio"))
    assert_golden(raw.pred_logits, "a_t8", "out.pred_logits")


def test_vita_checkpoints_load_and_run_without_sound() -> None:
    model = avs.from_official(as_vita(state("a_state")))
    assert not model.config.localizer.audio_fusion
    assert not model.config.tracker.audio_fusion
    images, audio = tensor("a_t8", "in.images_u8"), tensor("a_t8", "in.audio")
    loud, quiet = model.raw_outputs(images, audio), model.raw_outputs(images, torch.zeros_like(audio))
    assert torch.equal(loud.pred_logits, quiet.pred_logits)


@pytest.mark.parametrize("part", ["localizer", "tracker"])
def test_each_fusion_can_be_left_out_alone(part: str) -> None:
    """The paper's ablations: no fusion in one place takes exactly that place's parameters away."""
    config = avs.from_official(state("a_state")).config
    without = replace(config, **{part: replace(getattr(config, part), audio_fusion=False)})
    gone = set(AVISM(config).state_dict()) - set(AVISM(without).state_dict())
    prefix = "localizer.audio_fusion." if part == "localizer" else ("tracker.audio_proj.", "tracker.fusion.")
    assert gone
    assert all(name.startswith(prefix) for name in gone)
    assert AVISM(without).eval().raw_outputs(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 128))


def test_misfits_are_all_listed() -> None:
    official = state("a_state")
    del official["avism_module.fq_pos.weight"]
    official["avism_module.surprise"] = torch.zeros(1)
    official["avism_module.query_embed.weight"] = torch.zeros(5, 64)
    official["avism_module.query_feat.weight"] = torch.full((6, 64), math.nan)
    with pytest.raises(avs.CheckpointError) as error:
        avs.from_official(official)
    text = str(error.value)
    assert "1 missing: tracker.fq_pos.weight" in text
    assert "1 unexpected: tracker.surprise" in text
    assert "tracker.query_embed.weight (model [6, 64], file [5, 64])" in text
    assert "1 not finite: tracker.query_feat.weight" in text


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(avs.CheckpointError, match="no weight file"):
        avs.from_official(tmp_path / "absent.pth")
    broken = tmp_path / "cut.pth"
    torch.save(state("a_state"), broken)
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(avs.CheckpointError, match="cannot be read as weights"):
        avs.from_official(broken)
    with pytest.raises(avs.CheckpointError, match="no official AVISM or VITA weights"):
        avs.from_official({"some.weight": torch.zeros(1)})
    with pytest.raises(avs.CheckpointError, match="26 classes, but 2 names"):
        avs.from_official(state("a_state"), classes=["a", "b"])


def test_constants_are_no_weights() -> None:
    assert rename_official("criterion.empty_weight") is None
    assert rename_official("vita_criterion.empty_weight") is None


def test_own_format_keeps_configuration_and_values(tmp_path: Path) -> None:
    model = AVISM(avs.from_official(state("a_state")).config)
    path = tmp_path / "ours.safetensors"
    save_weights(model.state_dict(), model.config, path, half=True)
    stored, config = read_state(path)
    assert config == model.config
    assert all(v.dtype == torch.float16 for v in stored.values() if v.is_floating_point())
    assert [p.name for p in tmp_path.iterdir()] == ["ours.safetensors"]


def test_presets_are_named_as_they_are_called() -> None:
    assert all(build().name == name for name, build in PRESETS.items())
    with pytest.raises(avs.ConfigError, match="no model 'avism_r51'; there are avism_mini, avism_r50_in"):
        avs.load("avism_r51")
    for weights in (None, "bundled"):
        with pytest.raises(avs.CheckpointError, match="no weights of avism_r50_in come with the package"):
            avs.load("avism_r50_in", weights)
