"""3x3 convolutions in a quarter of the products: Winograd's F(4x4, 3x3), for inference on the CPU.

Four by four outputs of a 3x3 convolution need 144 products of each pair of channels; of inputs and weights that were
combined first, 36 do: a matrix product for each of 36 combinations, over all channels and all tiles of the picture.
The combinations are small fixed matrices, applied as matrix products too (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016, whose matrices these are). They hold numbers from 1/24 to 8, so rounding
costs two to three bits more than summing up directly.

    256 to 256 channels at 96 x 160, one thread of AVX2:   479 ms by oneDNN, 254 ms combined, in turns
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE, _SEEN = 4, 6
"""Outputs of a tile and the inputs that they see, along each side."""

_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def _both_ways(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """The matrix that combines along rows and columns at once, float64."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one)


_COMBINE, _DISTRIBUTE = _both_ways(_INPUT).float(), _both_ways(_OUTPUT).float()


def combined_weight(weight: Tensor) -> Tensor:
    """A convolution's weight [out, in, 3, 3] as `convolve` wants it: [36, in, out], same dtype."""
    out, channels = weight.shape[:2]
    taps = weight.double().permute(2, 3, 1, 0).reshape(9, channels * out)
    return (_both_ways(_WEIGHT) @ taps).view(_SEEN**2, channels, out).to(weight.dtype)


def convolve(x: Tensor, combined: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution with one pixel of padding and step 1.

    Args:
        x: float32 [B, in, H, W]; channels last in memory, or it is copied.
        combined: Of `combined_weight`.
        bias: [out].
    Returns:
        [B, out, H, W], channels last in memory.
    """
    batch, channels, height, width = x.shape
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    right, below = _TILE * columns + 1 - width, _TILE * rows + 1 - height
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
    image, line, pixel, _ = padded.stride()
    tiles = padded.as_strided(
        (_SEEN, _SEEN, batch, rows, columns, channels), (line, pixel, image, _TILE * line, _TILE * pixel, 1)
    )
    seen = torch.mm(_COMBINE, tiles.reshape(_SEEN**2, -1)).view(_SEEN**2, -1, channels)
    products = torch.bmm(seen, combined).view(_SEEN**2, -1)
    y = torch.mm(_DISTRIBUTE, products).view(_TILE, _TILE, batch, rows, columns, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(batch, _TILE * rows, _TILE * columns, -1)[:, :height, :width]
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)
