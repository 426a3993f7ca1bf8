"""One function per published model; only what differs from the defaults shows.

Source: the official configs `configs/avism/{R50,R101,SwinL}/*.yaml` and Table 6 of "Audio-Visual Instance
Segmentation" (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from avis_stream.config import (
    AudioConfig,
    AugmentConfig,
    AVISMConfig,
    InputConfig,
    LocalizerConfig,
    LossConfig,
    MobileNetConfig,
    PixelDecoderConfig,
    PostprocessConfig,
    ResNetConfig,
    SoundAugmentConfig,
    SwinConfig,
    TrackerConfig,
    TrainConfig,
)
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


def avism_mini() -> AVISMConfig:
    """Small enough for every frame on a laptop: MobileNetV2, YAMNet, the same parts in other sizes. Bundled."""
    return AVISMConfig(
        name="avism_mini",
        channels=128,
        mask_channels=64,
        backbone=MobileNetConfig(),
        audio=AudioConfig(encoder="yamnet", feature_dim=1024, adapter_rank=48),
        input=InputConfig(short_side_px=192, long_side_px=512, clip_short_side_px=256),
        pixel_decoder=PixelDecoderConfig(layers=2, ffn_channels=256),
        localizer=LocalizerConfig(
            queries=24,
            layers=3,
            ffn_channels=384,
            query_source="peaks",
            placed_masks=True,
            sounding_head=True,
            fusion_hears=False,
            motion_cue=True,
        ),
        postprocess=PostprocessConfig(one_class=True, one_piece=True, duplicate_iou=0.6, presence_threshold=0.4),
        tracker=TrackerConfig(
            queries=24,
            ffn_channels=384,
            encoder_layers=4,
            decoder_layers=3,
            masks="frame",
            objects="frame",
            shift_in_training=True,
        ),
    )


def training(name: str) -> TrainConfig:
    """How a preset is trained: as the paper's authors did it, or, for `avism_mini`, on two cores within hours."""
    if name != "avism_mini":
        return TrainConfig()
    return TrainConfig(
        steps=2300,
        frames=4,
        clips=4,
        learning_rate=5e-4,
        frozen=("backbone.stem", "backbone.blocks.0.", "backbone.blocks.1.", "backbone.blocks.2."),
        weight_decay=0.02,
        gradient_clip=5.0,
        milestones=(2000,),
        warmup=150,
        warmup_factor=0.01,
        query_layers=1,
        # Few queries, and everything that is shown counts: one that answers for nothing must say so.
        losses=LossConfig(points=1024, no_object_weight=0.4, similarity_weight=5.0, presence_weight=2.0),
        augment=AugmentConfig(
            short_sides_px=(160, 176, 192, 208, 224),
            long_side_px=512,
            crop_share=0.3,
            crop_first_sides_px=(224, 288),
            crop_range_px=(160, 256),
            bend=0.15,
            sound=SoundAugmentConfig(
                gain_db=6.0, shift_seconds=0.5, equaliser_db=6.0, pitch=0.08, noise_share=0.3, mix_share=0.3
            ),
        ),
    )


PRESETS: dict[str, Callable[[], AVISMConfig]] = {
    f.__name__: f for f in (avism_mini, avism_r50_in, avism_r50_coco, avism_r101_coco, avism_swinl_in, avism_swinl_coco)
}
"""Every model name that `load` knows, with what builds its configuration."""


def preset(name: str) -> AVISMConfig:
    """The configuration of a published model.

    Raises:
        ConfigError: No model of that name; the message lists those there are.
    """
    if name not in PRESETS:
        hint = f"; a file is given as weights={name!r}" if Path(name).suffix else ""
        raise ConfigError(f"no model {name!r}; there are {', '.join(PRESETS)}{hint}")
    return PRESETS[name]()
