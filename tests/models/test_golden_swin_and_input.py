"""Swin backbone, picture resizing and padding, sine positions: the official numbers."""

from __future__ import annotations

import pytest
import torch
from golden_data import assert_golden, state, tensor

from avis_stream.config import InputConfig, SwinConfig
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images
from avis_stream.models.swin import Swin, WindowAttention
from avis_stream.nn.layers import sine_position

FILE = "g_swin_resize_pos"


@torch.no_grad()
def test_swin() -> None:
    model = Swin(SwinConfig(embed_channels=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), swin_window=4)).eval()
    loaded = model.load_state_dict(state(FILE, "swin.state."), strict=False)
    assert all(k.endswith("relative_position_index") for k in loaded.missing_keys)
    assert not loaded.unexpected_keys
    # The recording ran with a blank index buffer (it is in no weight file, and was not recorded), which makes the bias
    # one number a head that the softmax cancels: reproduced to 2e-6 so, and to no better than 2.3 with the real index.
    # The bias itself is held by its definition in the next test.
    for name, buffer in model.named_buffers():
        if name.endswith("relative_position_index"):
            buffer.zero_()
    for stage, features in enumerate(model(tensor(FILE, "swin.in")), start=2):
        assert_golden(features, FILE, f"swin.res{stage}")


def test_changing_the_mode_hands_the_model_back() -> None:
    """Quirk Q22: the official one hands back None, so that nothing can be chained to it."""
    model = Swin(SwinConfig(embed_channels=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), swin_window=4))
    assert model.eval() is model
    assert not model.training
    assert model.train() is model


@torch.no_grad()
def test_relative_position_bias_is_looked_up_by_query_minus_key() -> None:
    torch.manual_seed(0)
    window, heads = 3, 2
    attention = WindowAttention(8, window, heads)
    attention.relative_position_bias_table.normal_()
    x = torch.randn(1, 1, window * window, 8)
    q, k, v = attention.qkv(x)[0, 0].view(window * window, 3, heads, 4).unbind(1)
    scores = torch.einsum("iad,jad->aij", q, k) / 2
    for i in range(window * window):
        for j in range(window * window):
            dy, dx = i // window - j // window, i % window - j % window
            row = (dy + window - 1) * (2 * window - 1) + dx + window - 1
            scores[:, i, j] += attention.relative_position_bias_table[row]
    expected = attention.proj(torch.einsum("aij,jad->iad", scores.softmax(-1), v).flatten(1))
    torch.testing.assert_close(attention(x, None)[0, 0], expected)


@torch.no_grad()
def test_swin_takes_any_size() -> None:
    """Sizes that are multiples of nothing are padded inside, and the outputs cover the picture."""
    model = Swin(SwinConfig(embed_channels=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), swin_window=4)).eval()
    sizes = [tuple(f.shape[-2:]) for f in model(torch.randn(1, 3, 45, 77))]
    assert sizes == [(12, 20), (6, 10), (3, 5), (2, 3)]


@pytest.mark.parametrize("name", ["wide", "tall", "up"])
def test_resize_and_pad(name: str) -> None:
    picture = tensor(FILE, f"resize.{name}.in_rgb").permute(2, 0, 1)[None]
    expected = tensor(FILE, f"resize.{name}.out_rgb").permute(2, 0, 1)[None]
    config = InputConfig(short_side_px=60, long_side_px=1333)
    size = network_size(*picture.shape[-2:], config)
    assert size == tuple(expected.shape[-2:])
    resized = resize_images(picture, size)
    assert torch.equal(resized, expected)
    assert_golden(normalise_and_pad(resized, config), FILE, f"resize.{name}.normalised_padded", atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("half", "height", "width"), [(16, 3, 5), (32, 2, 3), (128, 4, 6)])
def test_sine_position(half: int, height: int, width: int) -> None:
    position = sine_position(2 * half, torch.empty(height, width))
    assert_golden(position, FILE, f"sinepos.n{half}.h{height}.w{width}", atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (720, 1280, (360, 640)),
        (1280, 720, (640, 360)),
        (100, 2000, (67, 1333)),
        (1, 1, (360, 360)),
        (1, 9000, (1, 1333)),
    ],
)
def test_network_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert network_size(height, width, InputConfig()) == expected
