"""AVISM: backbone, pixel decoder, localizer and tracker put together; what a frame gives, and what a clip gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from avis_stream.audio.deaf import Deaf
from avis_stream.audio.resample import mono_seconds
from avis_stream.audio.vggish import VGGish
from avis_stream.audio.yamnet import YAMNet
from avis_stream.checks import check_finite, check_shape, describe, require, whole_number
from avis_stream.config import AudioConfig, AVISMConfig, BackboneConfig, ResNetConfig, SwinConfig
from avis_stream.errors import CheckpointError, ShapeError
from avis_stream.memory import available_memory_bytes
from avis_stream.models.clip import ClipResult
from avis_stream.models.linking import Sightings, likeliest_objects, link, sight
from avis_stream.models.localizer import FramePrediction, Localizer
from avis_stream.models.mask_store import MaskStore
from avis_stream.models.mobilenet import MobileNet
from avis_stream.models.offline import ClipFrame, mask_features_again, segment_clip
from avis_stream.models.pixel_decoder import PixelDecoder, PixelFeatures
from avis_stream.models.postprocess import MaskSizes, find_instances
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.models.resnet import ResNet
from avis_stream.models.sounding import motion_between
from avis_stream.models.sounding_chain import log_odds, smoothed
from avis_stream.models.swin import Swin
from avis_stream.models.tracker import Tracker, likeliest, presence_of, same_object
from avis_stream.nn.layers import fold_frozen_norms
from avis_stream.nn.packed import Conv2d, lower_weights, pack_layers
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AVPair


@dataclass(frozen=True, slots=True)
class FrameTokens:
    """What the localizer makes of T frames: all that later stages know of them."""

    frame_queries: Tensor
    """[T, N, C]."""
    logits: Tensor
    """[T, N, K + 1]; the last class is "no object"."""
    clip_mask_features: Tensor
    """[T, Cm, h, w] at stride 4 of the padded input."""
    sounding: Tensor | None = None
    """[T, N], each query's chance of sounding; None without a sounding head."""
    mask_embed: Tensor | None = None
    """[T, N, Cm], of each query's own mask; with `TrackerConfig.masks="frame"` alone, and then `clip_mask_features`
    are those of the frame decoder."""


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """What the network says about a clip, before any threshold."""

    frame_queries: Tensor
    """[T, N, C], normalised, of the last decoder layer."""
    clip_mask_features: Tensor
    """[T, Cm, h, w]."""
    pred_logits: Tensor
    """[M, K + 1]; the last class is "no object"."""
    pred_mask_embed: Tensor
    """[M, Cm]; with `TrackerConfig.masks="frame"` [M, T, Cm]."""
    presence: Tensor | None = None
    """[M, T], chance of sounding in each frame; None without a sounding head."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """What the tracker makes of a clip."""

    logits: Tensor
    """[M, K + 1], of video queries, or with `TrackerConfig.objects="frame"` of objects; the last is "no object"."""
    mask_embed: Tensor
    """[M, Cm]; with `TrackerConfig.masks="frame"` [M, T, Cm]."""
    presence: Tensor | None
    """[M, T], chance of sounding in each frame; None without a sounding head."""
    there: Tensor | None = None
    """Bool [M, T], frames in which some frame query is the object; None: the mask alone tells."""


def build_backbone(config: BackboneConfig) -> ResNet | Swin | MobileNet:
    """The backbone that a configuration describes."""
    if isinstance(config, ResNetConfig):
        return ResNet(config)
    return Swin(config) if isinstance(config, SwinConfig) else MobileNet()


SAME_OBJECT = 0.3
"""Least chance of being an object that a frame query must have to draw it."""

_SECONDS_AT_ONCE = 8
"""Of sound, that are encoded together."""

_HIGHEST_RATE = 1_000_000
"""Samples a second that nothing records."""
_SILENCE = "put zeros where nothing was heard"

_ENCODERS: dict[str, Callable[[AudioConfig], VGGish | YAMNet | Deaf]] = {
    "vggish": lambda _: VGGish(),
    "yamnet": lambda config: YAMNet(config.adapter_rank),
    "deaf": lambda _: Deaf(),
}


def build_audio_encoder(config: AudioConfig) -> VGGish | YAMNet | Deaf | None:
    """The audio encoder that a configuration names; None if the caller brings features of his own."""
    if config.encoder == "none":
        return None
    encoder = _ENCODERS[config.encoder](config)
    wanted = f"{encoder.feature_dim}, what {config.encoder} gives"
    require(config.feature_dim == encoder.feature_dim, "audio.feature_dim", config.feature_dim, wanted)
    return encoder


class AVISM(nn.Module):
    """Audio-visual instance segmentation model: modules without stream state; many streams may share one.

    Source: "Audio-Visual Instance Segmentation", Guo et al., CVPR 2025.
    """

    localizer_type: type[Localizer] = Localizer
    tracker_type: type[Tracker] = Tracker
    find_instances = staticmethod(find_instances)
    """From scores and mask features to instances; a class attribute so that the literal form can put its own there."""
    frames_at_once = 2
    """Frames localized together: enough to fill the cores, few enough to stay in the caches."""

    def __init__(self, config: AVISMConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(config)
        self.localizer = self.localizer_type(config)
        self.clip_mask_features = Conv2d(config.channels, config.mask_channels, 1)
        self.tracker = self.tracker_type(config)
        self.audio_encoder = build_audio_encoder(config.audio)
        self.precision = torch.float32
        """Of what looks at pixels, in inference; see `prepare_for_inference`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `class_id`."""
        return self.config.classes

    @property
    def classes_trained(self) -> tuple[str, ...]:
        """Those of `classes` that the weights have seen examples of."""
        return self.config.classes if self.config.classes_trained is None else self.config.classes_trained

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip_mask_features.weight.device

    def prepare_for_inference(self, precision: torch.dtype = torch.float32) -> AVISM:
        """Evaluation mode, no gradients, norms folded and weights packed for the kernels; returns itself.

        Args:
            precision: Of backbone and pixel decoder, most of the work: float32 or bfloat16, whose weights are rounded
                for good. Their features are given back in float32; what is found in them, who sounds and who is who
                are float32 always, as the masks' signs and identities hang on small differences.
        """
        self.eval().requires_grad_(False)
        fold_frozen_norms(self)
        self.precision = precision
        if precision != torch.float32:
            for part in (self.backbone, self.pixel_decoder):
                lower_weights(part, precision)
        pack_layers(self)
        return self

    @property
    def wants_previous(self) -> bool:
        """Whether the picture 100 ms before a frame helps: the model has a motion cue."""
        return self.config.localizer.motion_cue

    def localize(self, images: Tensor, audio_features: Tensor, previous: Tensor | None = None) -> FrameTokens:
        """Sees T frames, each on its own.

        Args:
            images: float32 [T, 3, Hp, Wp], normalised and padded.
            audio_features: float32 [T, A], one vector a frame.
            previous: As `images`, 100 ms before each, for models with a motion cue; None: no cue.
        """
        features = self._features(images)
        motion = motion_between(images, previous) if self.wants_previous and previous is not None else None
        answer = self.localizer(features, audio_features, motion).heads[-1]
        sounding = None if answer.sounding is None else answer.sounding.sigmoid()
        if self.config.tracker.masks == "frame":
            return FrameTokens(answer.queries, answer.logits, features.mask_features, sounding, answer.mask_embed)
        return FrameTokens(answer.queries, answer.logits, self.clip_mask_features(features.stride4), sounding)

    def drawing_features(self, images: Tensor) -> Tensor:
        """Mask features [T, Cm, h, w] of pictures alone, float32 [T, 3, Hp, Wp]: what masks are drawn on."""
        return self._drawn(self._features(images))

    def _drawn(self, features: PixelFeatures) -> Tensor:
        own = self.config.tracker.masks == "frame"
        drawn: Tensor = features.mask_features if own else self.clip_mask_features(features.stride4)
        return drawn

    def asked_again(
        self, images: Tensor, audio_features: Tensor, found: FramePrediction, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whether earlier frame queries sound, by newer pictures and sound, in models with a sounding head.

        Args:
            images: float32 [T, 3, Hp, Wp], normalised and padded.
            audio_features: float32 [T, A].
            found: Queries of T earlier frames; its `sounding` is not looked at.
            previous: As `images`, 100 ms before each, for models with a motion cue; None: no cue.
        Returns:
            Mask features [T, Cm, h, w], as `drawing_features`, and the chance [T, N] of each query to sound.
        """
        features = self._features(images)
        motion = motion_between(images, previous) if self.wants_previous and previous is not None else None
        asked = self.localizer.sounds(found, audio_features, features.mask_features, motion)
        return self._drawn(features), asked.sigmoid()

    def _features(self, images: Tensor) -> PixelFeatures:
        lower = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision if lower else None, enabled=lower):
            features: PixelFeatures = self.pixel_decoder(self.backbone(images))
        return features.float() if lower else features

    @torch.no_grad()
    def raw_outputs(self, images: Tensor, audio_features: Tensor) -> RawOutputs:
        """Runs the whole network on a clip.

        Args:
            images: uint8 [T, 3, H, W], RGB, as the network sees them before normalising and padding.
            audio_features: float32 [T, A], one vector a frame from the model's audio encoder.
        Raises:
            ShapeError: An argument differs; the message says how.
        """
        check_shape(images, "images", "T 3 H W", dtype=torch.uint8)
        check_shape(
            audio_features, "audio_features", "T A", dtype=torch.float32,
            T=len(images), A=self.config.audio.feature_dim, hint="one vector a frame",
        )  # fmt: skip
        at_once, size = self.frames_at_once, (images.shape[-2], images.shape[-1])
        parts, sightings = [], []
        for frames, audio in zip(images.split(at_once), audio_features.split(at_once), strict=True):
            prepared = normalise_and_pad(frames.to(self.device), self.config.input)
            parts.append(self.localize(prepared, audio.to(self.device)))
            sightings += self.sight(parts[-1], MaskSizes((prepared.shape[-2], prepared.shape[-1]), size, size))
        frame_queries = torch.cat([p.frame_queries for p in parts])
        clip_mask_features = torch.cat([p.clip_mask_features for p in parts])
        sounding = [p.sounding for p in parts if p.sounding is not None]
        embeds = [p.mask_embed for p in parts if p.mask_embed is not None]
        tracks = self.track(
            frame_queries,
            audio_features,
            torch.cat(sounding) if sounding else None,
            torch.cat(embeds) if embeds else None,
            sightings,
        )
        return RawOutputs(frame_queries, clip_mask_features, tracks.logits, tracks.mask_embed, tracks.presence)

    def sight(self, tokens: FrameTokens, sizes: MaskSizes) -> list[Sightings]:
        """What each of T frames shows, for `track`; nothing where video queries are the objects."""
        if self.config.tracker.objects == "video" or tokens.mask_embed is None:
            return []
        frames = zip(tokens.logits, tokens.mask_embed, tokens.clip_mask_features, strict=True)
        return [sight(*frame, sizes, self.config.postprocess) for frame in frames]

    @torch.no_grad()
    def track(
        self,
        frame_queries: Tensor,
        audio_features: Tensor,
        sounding: Tensor | None = None,
        frame_mask_embed: Tensor | None = None,
        sightings: Sequence[Sightings] = (),
        frame_seconds: float = 1.0,
    ) -> Tracks:
        """Follows the objects of a clip.

        Args:
            frame_queries: [T, N, C].
            audio_features: [T, A].
            sounding: [T, N], chance of each frame query to sound.
            frame_mask_embed: [T, N, Cm], of the frame queries' own masks: objects are drawn by them; None: by the
                video queries.
            sightings: [T], of `sight`, for `TrackerConfig.objects="frame"`.
            frame_seconds: From one frame to the next.
        """
        if self.config.tracker.objects == "frame" and frame_mask_embed is not None:
            tracks = self._linked(frame_queries, audio_features, sounding, frame_mask_embed, sightings)
        else:
            tracks = self._asked(frame_queries, audio_features, sounding, frame_mask_embed)
        stay = self.config.postprocess.sounding_stay
        if tracks.presence is None or stay == 0.5:
            return tracks
        evidence = log_odds(tracks.presence)
        if tracks.there is not None:
            evidence = evidence * tracks.there
        return replace(tracks, presence=smoothed(evidence, stay, frame_seconds))

    def _asked(
        self, frame_queries: Tensor, audio_features: Tensor, sounding: Tensor | None, frame_mask_embed: Tensor | None
    ) -> Tracks:
        """The objects are what video queries say."""
        predictions, tokens = self.tracker(frame_queries[None], audio_features.to(self.device))
        answer = predictions[-1]
        if sounding is None and frame_mask_embed is None:
            return Tracks(answer.logits[0], answer.mask_embed[0], None)
        same = same_object(answer.similarity, self.tracker.similarity_of_frames(tokens))  # [1, M, T, N]
        sounds = None if sounding is None else presence_of(same, sounding[None])[0]
        if frame_mask_embed is None:
            return Tracks(answer.logits[0], answer.mask_embed[0], sounds)
        number, chance = (found[0] for found in likeliest(same))  # [M, T] each
        every, there = torch.arange(len(frame_queries), device=number.device), chance > SAME_OBJECT
        return Tracks(answer.logits[0], frame_mask_embed[every, number], sounds, there=there)

    def _linked(
        self,
        frame_queries: Tensor,
        audio_features: Tensor,
        sounding: Tensor | None,
        frame_mask_embed: Tensor,
        sightings: Sequence[Sightings],
    ) -> Tracks:
        """The objects are linked frame queries."""
        encoded = self.tracker.encode(frame_queries[None])
        looks = self.tracker.similarity_of_frames(self.tracker.fuse(encoded, audio_features.to(self.device)))[0].cpu()
        place = link(sightings, [look[seen.query].float() for look, seen in zip(looks, sightings, strict=True)])
        found = likeliest_objects(sightings, place, self.config.postprocess.top_k)
        logits = found.probability.clamp(min=1e-12).log().to(self.device)
        number, there, every = found.number.to(self.device), found.there.to(self.device), torch.arange(len(sightings))
        sounds = None if sounding is None else sounding[every, number] * there
        return Tracks(logits, frame_mask_embed[every, number], sounds, there=there)

    @torch.no_grad()
    def hear(self, seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        """Encodes seconds of sound, float32 [T, 16000] in [-1, 1], to audio features float32 [T, A].

        Args:
            seconds: One second a frame.
            valid_samples: int64 [T], how many samples of each were really there; None: all.
        Raises:
            CheckpointError: The model came without an audio encoder.
        """
        if self.audio_encoder is None:
            raise CheckpointError(
                f"{self.config.name} has no audio encoder, so it takes features, not sound: load VGGish weights "
                "with it (audio_weights=...), or call raw_outputs with features of your own"
            )
        features: Tensor = self.audio_encoder(seconds.to(self.device), valid_samples)
        return features

    def segment(
        self,
        images: Tensor,
        audio: Tensor,
        sample_rate: int = 16_000,
        previous: Tensor | None = None,
        out_size: tuple[int, int] | None = None,
        memory_bytes: int | None = None,
    ) -> ClipResult:
        """Finds, outlines, names and follows the sounding objects of a clip held in memory.

        Args:
            images: uint8 [T, 3, H, W], RGB, one frame a second.
            audio: float32 [S] or [C, S] in [-1, 1]; frame t belongs to second t of it. Missing sound is silence,
                sound beyond the last frame is dropped.
            sample_rate: Of `audio`, in Hz.
            previous: uint8 [T, 3, H, W], the picture about 100 ms before each frame, for models with a motion cue.
            out_size: (height, width) of the masks; None: as the images.
            memory_bytes: Most to hold mask features in; None: half of what is free. Beyond it they are computed twice.
        Raises:
            ShapeError: An argument differs, or the sound is not finite; the message says how.
            ConfigError: A rate or a size that cannot be.
            CheckpointError: The model came without an audio encoder.
        """
        check_shape(images, "images", "T 3 H W", dtype=torch.uint8, hint="stack the frames as RGB, channels first")
        if not isinstance(audio, Tensor) or audio.dim() not in (1, 2) or not audio.is_floating_point():
            raise ShapeError(f"audio must be a float tensor [S] or [C, S] in [-1, 1], got {describe(audio)}")
        channels = 1 if audio.dim() == 1 else len(audio)
        if not channels or (channels > 2 and channels > audio.shape[-1]):
            raise ShapeError(
                f"audio must be [S] or [C, S], channels first, got {describe(audio)}; turn [S, C] round: audio.T"
            )
        check_finite(audio, "audio", _SILENCE)
        rate = whole_number(sample_rate, "sample_rate")
        require(0 < rate <= _HIGHEST_RATE, "sample_rate", sample_rate, f"1 to {_HIGHEST_RATE} Hz")
        if previous is not None:
            check_shape(previous, "previous", "T 3 H W", dtype=torch.uint8, T=len(images))
        seconds, valid = mono_seconds(audio.float().cpu(), rate, len(images))
        before = [None] * len(images) if previous is None else list(previous)
        return self._segment(list(zip(images, before, strict=True)), seconds, valid, out_size, memory_bytes)

    def segment_pairs(
        self, pairs: Iterable[AVPair], out_size: tuple[int, int] | None = None, memory_bytes: int | None = None
    ) -> ClipResult:
        """`segment` on what a recording hands out: frames with the pictures before them, each with its second of sound.

        Args:
            pairs: From `avis_stream.sources.file.open_clip`, or of your own; they are held in memory.
            out_size: (height, width) of the masks; None: as the frames.
            memory_bytes: As in `segment`.
        Raises:
            ShapeError: Sound is not finite.
            MediaError: There is no frame, or frames change size.
            CheckpointError: The model came without an audio encoder.
        """
        held = list(pairs)
        seconds = torch.stack([pair.audio for pair in held]) if held else torch.zeros(0, SAMPLE_RATE)
        check_finite(seconds, "the pairs' audio", _SILENCE)
        pictures = [(pair.frame.image, pair.frame.previous) for pair in held]
        lasts = held[-1].frame.pts_ns - held[0].frame.pts_ns if len(held) > 1 else NANOSECONDS
        apart = max(0, lasts) / NANOSECONDS / max(1, len(held) - 1)
        valid = torch.tensor([pair.valid_samples for pair in held])
        return self._segment(pictures, seconds, valid, out_size, memory_bytes, frame_seconds=apart)

    def _segment(
        self,
        pictures: Sequence[tuple[Tensor, Tensor | None]],
        seconds: Tensor,
        valid_samples: Tensor,
        out_size: tuple[int, int] | None,
        memory_bytes: int | None,
        frame_seconds: float = 1.0,
    ) -> ClipResult:
        """Frames, with the pictures before them, and as many seconds of sound, as `hear` takes them."""
        if out_size is not None:
            out_size = (whole_number(out_size[0], "out_size"), whole_number(out_size[1], "out_size"))
            require(min(out_size) > 0, "out_size", out_size, "a height and a width of at least 1 pixel")
        heard: list[Tensor] = []
        for first in range(0, len(seconds), _SECONDS_AT_ONCE):
            some = slice(first, first + _SECONDS_AT_ONCE)
            heard += self.hear(seconds[some], valid_samples[some]).cpu()
        frames = [ClipFrame(image, sound, before) for (image, before), sound in zip(pictures, heard, strict=True)]
        budget = available_memory_bytes() // 2 if memory_bytes is None else memory_bytes
        with MaskStore(budget, recompute=lambda start: mask_features_again(self, lambda: iter(frames), start)) as store:
            return segment_clip(self, lambda: iter(frames), out_size=out_size, store=store, frame_seconds=frame_seconds)
