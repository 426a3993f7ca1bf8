"""One function per published model; only what differs from the defaults shows.

Source: the official configs `configs/avism/{R50,R101,SwinL}/*.yaml` and Table 6 of "Audio-Visual Instance
Segmentation" (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from avis_stream.config import AVISMConfig, InputConfig, LocalizerConfig, ResNetConfig, SwinConfig
from avis_stream.errors import ConfigError


def avism_r50_in() -> AVISMConfig:
    """ResNet-50, backbone from ImageNet; published FSLA 42.78."""
    return AVISMConfig(name="avism_r50_in")


def avism_r50_coco() -> AVISMConfig:
    """ResNet-50, pre-trained on COCO; published FSLA 44.42. The same network as `avism_r50_in`."""
    return replace(avism_r50_in(), name="avism_r50_coco")


def avism_r101_coco() -> AVISMConfig:
    """ResNet-101, pre-trained on COCO; published FSLA 45.06."""
    return AVISMConfig(name="avism_r101_coco", backbone=ResNetConfig(blocks=(3, 4, 23, 3)))


def avism_swinl_in() -> AVISMConfig:
    """Swin-L, backbone from ImageNet-22k; published FSLA 49.15. Shorter side 448, 200 frame queries."""
    return AVISMConfig(
        name="avism_swinl_in",
        backbone=SwinConfig(),
        input=InputConfig(short_side_px=448),
        localizer=LocalizerConfig(queries=200),
    )


def avism_swinl_coco() -> AVISMConfig:
    """Swin-L, pre-trained on COCO; published FSLA 52.49. The same network as `avism_swinl_in`."""
    return replace(avism_swinl_in(), name="avism_swinl_coco")


PRESETS: dict[str, Callable[[], AVISMConfig]] = {
    f.__name__: f for f in (avism_r50_in, avism_r50_coco, avism_r101_coco, avism_swinl_in, avism_swinl_coco)
}
"""Every model name that `load` knows, with what builds its configuration."""


def preset(name: str) -> AVISMConfig:
    """The configuration of a published model.

    Raises:
        ConfigError: No model of that name; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"no model {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
