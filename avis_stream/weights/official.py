"""Official AVISM (and VITA) checkpoints: their key names, and the sizes that their tensors tell.

The ImageNet and the COCO variant are one network whose keys differ in a prefix (`avism_module.` / `vita_module.`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from avis_stream.config import (
    AVISEG_CLASSES,
    AudioConfig,
    AVISMConfig,
    InputConfig,
    LocalizerConfig,
    PixelDecoderConfig,
    PostprocessConfig,
    ResNetConfig,
    SwinConfig,
    TrackerConfig,
)
from avis_stream.errors import CheckpointError

_DECODER = r"transformer_{}_layers\.(\d+)\."
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^sem_seg_head\.pixel_decoder\.transformer\.encoder\.", "pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.", "pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.", "pixel_decoder.output."),
    (r"^sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
    (r"^sem_seg_head\.predictor\.av_pre_proj\.", "localizer.audio_fusion.audio_proj."),
    (r"^sem_seg_head\.predictor\.av_post_proj\.", "localizer.audio_fusion.out."),
    (r"^sem_seg_head\.predictor\.av_sf\.(\d+)\.", r"localizer.audio_fusion.levels.\1."),
    (r"^sem_seg_head\.predictor\." + _DECODER.format("(?:self|cross)_attention"), r"localizer.layers.\1.\g<0>"),
    (r"^sem_seg_head\.predictor\." + _DECODER.format("ffn"), r"localizer.layers.\1.ffn."),
    (r"^sem_seg_head\.predictor\.", "localizer."),
    (r"^(?:avism|vita)_module\.(?:avism|vita)_mask_features\.", "clip_mask_features."),
    (r"^(?:avism|vita)_module\.av_proj\.", "tracker.audio_proj."),
    (r"^(?:avism|vita)_module\.enc_self_attn\.(\d+)\.", r"tracker.encoder.\1.attn."),
    (r"^(?:avism|vita)_module\.enc_ffn\.(\d+)\.", r"tracker.encoder.\1.ffn."),
    (r"^(?:avism|vita)_module\.enc_av_cross_attn\.(\d+)\.", r"tracker.fusion.\1.attn."),
    (r"^(?:avism|vita)_module\.enc_av_ffn\.(\d+)\.", r"tracker.fusion.\1.ffn."),
    (r"^(?:avism|vita)_module\." + _DECODER.format("(?:self|cross)_attention"), r"tracker.decoder.\1.\g<0>"),
    (r"^(?:avism|vita)_module\." + _DECODER.format("ffn"), r"tracker.decoder.\1.ffn."),
    (r"^(?:avism|vita)_module\.", "tracker."),
    # Inside a decoder layer the official index stands before the kind of attention, ours after the kind.
    (r"(?<=\.)[a-z_.]*transformer_(self|cross)_attention_layers\.\d+\.", r"\1_attn."),
    # Each attention block wraps its attention under one name, whatever the official block calls it.
    (r"\.(?:multihead_attn|self_attn)\.(?=in_proj_|out_proj\.)", ".attn."),
)
_TRAINING_CONSTANTS = re.compile(r"^(?:(?:avism_|vita_)?criterion\.empty_weight|pixel_mean|pixel_std)$")
"""Keys that hold no weights: the class weights of the losses, and the normalisation of pictures."""


def rename_official(name: str) -> str | None:
    """Our name for an official key; None for constants that are no weights."""
    if _TRAINING_CONSTANTS.match(name):
        return None
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def is_official(names: Sequence[str] | Mapping[str, object]) -> bool:
    """Whether keys look like those of the official code, of either variant."""
    return any(name.startswith(("sem_seg_head.", "avism_module.", "vita_module.")) for name in names)


def rename_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under our names.

    Raises:
        CheckpointError: Two official keys would land on one of ours.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = rename_official(name)
        if ours is None:
            continue
        if ours in renamed:
            raise CheckpointError(f"{name!r} and another key both mean {ours!r}; is this two checkpoints in one file?")
        renamed[ours] = tensor
    return renamed


def config_of(
    state: Mapping[str, Tensor],
    *,
    attention_heads: int = 8,
    token_window: int = 6,
    top_k: int = 100,
    classes: Sequence[str] | None = None,
    name: str = "avism_official",
) -> AVISMConfig:
    """Reads the sizes of a model off its tensors (under our names); what no tensor tells is an argument.

    Raises:
        CheckpointError: A tensor that a size is read from is missing, or the class names do not fit.
    """
    sizes = _Sizes(state)
    class_count = sizes["tracker.class_embed.weight", 0] - 1
    if classes is None:
        classes = AVISEG_CLASSES if class_count == len(AVISEG_CLASSES) else [f"class_{i}" for i in range(class_count)]
    if len(classes) != class_count:
        raise CheckpointError(f"the checkpoint has {class_count} classes, but {len(classes)} names were given")
    swin = "backbone.patch_embed.proj.weight" in state
    samples = sizes["pixel_decoder.layers.0.self_attn.attention_weights.weight", 0]
    frame_fusion = "localizer.audio_fusion.audio_proj.weight" in state
    clip_fusion = "tracker.audio_proj.weight" in state
    audio = AudioConfig()
    if frame_fusion or clip_fusion:
        key = "localizer.audio_fusion.audio_proj.weight" if frame_fusion else "tracker.audio_proj.weight"
        audio = replace(audio, feature_dim=sizes[key, 1])
    return AVISMConfig(
        name=name,
        classes=tuple(classes),
        channels=sizes["pixel_decoder.level_embed", 1],
        mask_channels=sizes["clip_mask_features.weight", 0],
        backbone=_swin_config(sizes) if swin else _resnet_config(sizes),
        audio=audio,
        input=InputConfig(short_side_px=448 if swin else 360),
        pixel_decoder=PixelDecoderConfig(
            layers=sizes.count("pixel_decoder.layers"),
            heads=attention_heads,
            points=samples // (attention_heads * 3),
            ffn_channels=sizes["pixel_decoder.layers.0.linear1.weight", 0],
        ),
        localizer=LocalizerConfig(
            queries=sizes["localizer.query_feat.weight", 0],
            layers=sizes.count("localizer.layers"),
            heads=attention_heads,
            ffn_channels=sizes["localizer.layers.0.ffn.linear1.weight", 0],
            audio_fusion=frame_fusion,
        ),
        tracker=TrackerConfig(
            queries=sizes["tracker.query_feat.weight", 0],
            heads=attention_heads,
            ffn_channels=sizes["tracker.decoder.0.ffn.linear1.weight", 0],
            encoder_layers=sizes.count("tracker.encoder"),
            decoder_layers=sizes.count("tracker.decoder"),
            token_window=token_window,
            audio_fusion=clip_fusion,
        ),
        postprocess=PostprocessConfig(top_k=top_k),
    )


class _Sizes:
    """Looks sizes up in a state dict, and says which key is missing."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def __getitem__(self, where: tuple[str, int]) -> int:
        name, axis = where
        if name not in self.state:
            raise CheckpointError(
                f"{name!r} is missing, so the model's size cannot be read; is this an AVISM checkpoint?"
            )
        return self.state[name].shape[axis]

    def count(self, prefix: str) -> int:
        """Number of consecutive indices below `prefix`."""
        found = {int(m[1]) for name in self.state if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", name))}
        return len(found)


def _resnet_config(sizes: _Sizes) -> ResNetConfig:
    return ResNetConfig(
        blocks=tuple(sizes.count(f"backbone.res{stage}") for stage in range(2, 6)),
        stem_channels=sizes["backbone.stem.conv1.weight", 0],
        bottleneck_channels=sizes["backbone.res2.0.conv1.weight", 0],
        out_channels=sizes["backbone.res2.0.conv3.weight", 0],
    )


def _swin_config(sizes: _Sizes) -> SwinConfig:
    tables = [f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    offsets = sizes[tables[0], 0]  # (2 window - 1)^2
    return SwinConfig(
        embed_channels=sizes["backbone.patch_embed.proj.weight", 0],
        depths=tuple(sizes.count(f"backbone.layers.{i}.blocks") for i in range(4)),
        heads=tuple(sizes[table, 1] for table in tables),
        swin_window=(round(offsets**0.5) + 1) // 2,
    )
