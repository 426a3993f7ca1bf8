"""Both public VGGish files are read: TensorFlow's checkpoint and its torch port."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avis_stream.audio.vggish import VGGish
from avis_stream.errors import CheckpointError
from avis_stream.weights import vggish as vggish_weights
from avis_stream.weights.tensorflow import read_tf_checkpoint
from avis_stream.weights.vggish import vggish_state

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_checkpoint_written_by_tensorflow() -> None:
    read = read_tf_checkpoint(FIXTURES / "tiny_v1.ckpt")
    with np.load(FIXTURES / "tiny_v1.npz") as expected:
        assert {name.replace("|", "/") for name in expected.files} == set(read)
        for name in expected.files:
            np.testing.assert_array_equal(read[name.replace("|", "/")], expected[name])


def test_layouts_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow keeps convolutions as [height, width, in, out] and matrices as [in, out]."""
    with torch.device("meta"):
        own = VGGish().state_dict()
    rng = np.random.default_rng(0)
    arrays = {}
    for theirs, ours in vggish_weights._TF_LAYERS.items():
        shape = own[f"{ours}.weight"].shape
        turned = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
        small = [min(n, 8) for n in turned]
        arrays[f"vggish/{theirs}/weights"] = rng.standard_normal(small).astype(np.float32)
        arrays[f"vggish/{theirs}/biases"] = rng.standard_normal(small[-1]).astype(np.float32)
    monkeypatch.setattr(vggish_weights, "read_tf_checkpoint", lambda path: arrays)
    state = vggish_state("vggish_model.ckpt")
    assert set(state) == set(own)
    conv, matrix = arrays["vggish/conv1/weights"], arrays["vggish/fc2/weights"]
    assert state["features.0.weight"][5, 0, 1, 2].item() == conv[1, 2, 0, 5]
    assert state["embeddings.4.weight"][3, 2].item() == matrix[2, 3]


def test_torch_port(tmp_path: Path) -> None:
    state = {k: torch.full((1,), float(i)) for i, k in enumerate(VGGish_keys())}
    path = tmp_path / "vggish-10086976.pth"
    torch.save({**state, "pproc.pca_means": torch.zeros(1)}, path)
    assert vggish_state(path) == state


def VGGish_keys() -> list[str]:
    with torch.device("meta"):
        return list(VGGish().state_dict())


def test_what_is_neither_says_so(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"is not VGGish: missing \['embeddings\.0\.bias'"):
        vggish_state(path)
    text = tmp_path / "vggish_model.ckpt"
    text.write_text("model_checkpoint_path: elsewhere" * 10)
    with pytest.raises(CheckpointError, match="magic number is missing"):
        vggish_state(text)
