"""Pictures on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from avis_stream.errors import DataError


def read_image(path: Path) -> Tensor:
    """Reads a picture as uint8 [3, H, W] RGB, turned upright by its EXIF note, 16 bits scaled to 8.

    Raises:
        DataError: The file is missing, broken or no picture.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip instead of scale
                upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            array = np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; put it there, or take it out of what names it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
