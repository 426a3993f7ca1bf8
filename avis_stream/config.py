"""Configuration: frozen dataclasses, one place for every hyper-parameter, JSON in and out.

Vary a preset with `dataclasses.replace`, or from the command line with `--set tracker.token_window=3`
(`with_overrides`); `config_text.py` reads and writes them. Official values are the defaults; `presets.py` names what
differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from avis_stream import config_text
from avis_stream.checks import require
from avis_stream.config_text import with_overrides

AVISEG_CLASSES = (
    "person", "violin", "guitar", "cello", "flute", "piano", "ukulele", "accordion", "guzheng", "clarinet",
    "cat", "car", "saxophone", "dog", "lawn_mover", "tuba", "banjo", "pipa", "bassoon", "airplane",
    "tree_harvester", "trumpet", "lion", "bass", "erhu", "horse",
)  # fmt: skip
"""The 26 classes of AVISeg in id order (index = category_id - 1), spelled as the data set spells them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """Bottleneck ResNet with frozen batch norm; stride in the 3x3 convolution, as torchvision has it."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem_channels: int = 64
    bottleneck_channels: int = 64
    """Width of the 3x3 convolutions of the first stage; doubles with each stage."""
    out_channels: int = 256
    """Output width of the first stage; doubles with each stage."""

    def __post_init__(self) -> None:
        require(len(self.blocks) == 4, "ResNetConfig.blocks", self.blocks, "four numbers, one a stage")

    @property
    def feature_channels(self) -> tuple[int, int, int, int]:
        """Channels of the outputs at stride 4, 8, 16, 32."""
        c = self.out_channels
        return (c, 2 * c, 4 * c, 8 * c)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwinConfig:
    """Swin transformer. Defaults are Swin-L at window 12."""

    embed_channels: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    swin_window: int = 12
    drop_path: float = 0.3
    """Largest drop-path rate in training; grows linearly from 0 with depth."""

    def __post_init__(self) -> None:
        require(len(self.depths) == 4, "SwinConfig.depths", self.depths, "four numbers, one a stage")
        require(len(self.heads) == 4, "SwinConfig.heads", self.heads, "four numbers, one a stage")

    @property
    def feature_channels(self) -> tuple[int, int, int, int]:
        """Channels of the outputs at stride 4, 8, 16, 32."""
        c = self.embed_channels
        return (c, 2 * c, 4 * c, 8 * c)


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNetConfig:
    """MobileNetV2 at width 1 with its batch norm folded into the convolutions; there is nothing to choose."""

    @property
    def feature_channels(self) -> tuple[int, int, int, int]:
        """Channels of the outputs at stride 4, 8, 16, 32."""
        return (24, 32, 96, 320)


BackboneConfig = ResNetConfig | SwinConfig | MobileNetConfig
_KINDS = {"resnet": ResNetConfig, "swin": SwinConfig, "mobilenet": MobileNetConfig}


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioConfig:
    """Which encoder turns a second of sound into one vector."""

    encoder: Literal["vggish", "yamnet", "none", "deaf"] = "vggish"
    """`none`: the caller brings features of his own. `deaf`: nothing is heard, for comparison with the others."""
    feature_dim: int = 128
    adapter_rank: int = 0
    """Of the low-rank changes that YAMNet's last layers learned for mixtures, on top of their published weights (ADR
    0012); 0: there are none. Other encoders have none."""

    def __post_init__(self) -> None:
        require(self.adapter_rank >= 0, "AudioConfig.adapter_rank", self.adapter_rank, ">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """How a picture is brought to the network's size."""

    short_side_px: int = 360
    long_side_px: int = 1333
    size_divisor: int = 32
    """Normalised pictures are zero-padded at the right and bottom to a multiple of this."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    clip_short_side_px: int | None = None
    """`short_side_px` of recordings segmented as a whole, for which nobody waits; None: the same (ADR 0014)."""

    def for_clips(self) -> InputConfig:
        """How the pictures of recordings segmented as a whole are brought to the network's size."""
        return replace(self, short_side_px=self.clip_short_side_px or self.short_side_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelDecoderConfig:
    """Multi-scale deformable attention pixel decoder over strides 8, 16, 32, with one FPN step to stride 4."""

    layers: int = 6
    heads: int = 8
    points: int = 4
    ffn_channels: int = 1024
    """Hard-coded in the official code, whatever its config says (quirk Q15)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerConfig:
    """Frame-level sound source localizer: masked-attention decoder conditioned on the frame's sound."""

    queries: int = 100
    layers: int = 9
    heads: int = 8
    ffn_channels: int = 2048
    audio_fusion: bool = True
    """Off: no frame-level fusion and none of its parameters (VITA, if `TrackerConfig.audio_fusion` is off too)."""
    query_source: Literal["learned", "peaks"] = "learned"
    """`peaks`: queries begin at the peaks of a map of object centres instead of at learned vectors (ADR 0007)."""
    placed_masks: bool = False
    """Each query's mask falls off with distance from a place that the query says, so that one of two alike is drawn
    alone (ADR 0011)."""
    sounding_head: bool = False
    """Find every visible object and tell by a score of its own whether it sounds (ADR 0007); needs sets that say what
    is visible in silence. Officially only sounding objects are found."""
    fusion_hears: bool = True
    """Off: the fusion gets a learned vector in place of the sound. What is seen, and what it is called, does not depend
    on what is heard then; the sounding score alone listens (ADR 0007)."""
    motion_cue: bool = False
    """The sounding score also sees how an object moved in the 100 ms before its frame, against others of its class."""

    def __post_init__(self) -> None:
        wanted = "False without sounding_head, to whose score it adds"
        require(self.sounding_head or not self.motion_cue, "LocalizerConfig.motion_cue", self.motion_cue, wanted)
        wanted = "True without sounding_head: nothing else would listen"
        require(self.sounding_head or self.fusion_hears, "LocalizerConfig.fusion_hears", self.fusion_hears, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerConfig:
    """Video-level tracker: windowed object encoder, audio-visual fusion, object decoder."""

    queries: int = 100
    heads: int = 8
    ffn_channels: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 3
    token_window: int = 6
    """Frames in an attention window; 0: every frame sees every other."""
    audio_fusion: bool = True
    """Off: object tokens go to the decoder as they are, and the fusion has no parameters."""
    masks: Literal["video", "frame"] = "video"
    """Which mask an object has in a frame: its video query's, one embedding for all frames, as officially; or that of
    the frame query likeliest to be it, so that the tracker only says who is who (ADR 0009)."""
    objects: Literal["video", "frame"] = "video"
    """What an object is: a video query, as officially; or frame queries linked from frame to frame, with the tracker's
    encoder to say how alike they are (ADR 0010). `frame` needs `masks="frame"`."""
    shift_in_training: bool = False
    """Whether the object encoder shifts its odd layers' windows in training too; officially it does not (quirk Q3)."""

    def __post_init__(self) -> None:
        require(self.token_window >= 0, "TrackerConfig.token_window", self.token_window, ">= 0 frames")
        linked, wanted = self.objects == "frame", '"video", or masks="frame" with it'
        require(not linked or self.masks == "frame", "TrackerConfig.objects", self.objects, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostprocessConfig:
    """From class scores and mask logits to instances."""

    top_k: int = 100
    """(query, class) pairs kept for a clip; a query may appear with several classes (quirk Q10)."""
    score_threshold: float = 0.3
    """An instance stays if class score x mask quality is above this; hard-coded in the official code (quirk Q11)."""
    duplicate_iou: float | None = None
    """Of two instances whose masks overlap more than this over the clip, the better stays; None: both, as official.
    Without `one_class` only two of the same class are doubles: an object may then be given as several classes."""
    one_piece: bool = False
    """Of a mask in pieces of comparable size the best stays: a query that draws two alike at once draws one of them
    (ADR 0010); crumbs go. Officially all stay."""
    one_class: bool = False
    """A query answers with its best class alone, not with every class that passes (quirk Q10)."""
    presence_threshold: float = 0.5
    """With a sounding head: an instance is shown in the frames where its chance of sounding is above this."""
    sounding_stay: float = 0.5
    """Chance that what sounds, or is silent, in one second still does a second later: how much seconds say about each
    other (`models/sounding_chain.py`). 0.5: nothing, each is judged by itself."""

    def __post_init__(self) -> None:
        wanted = "at least 0.5 and below 1"
        require(0.5 <= self.sounding_stay < 1, "PostprocessConfig.sounding_stay", self.sounding_stay, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights of the losses (and of the matching costs, which are the same) and numbers of points."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    similarity_weight: float = 1.0
    """Officially effective; the paper says 0.5, which its code never applies (quirk Q1)."""
    presence_weight: float = 0.0
    """Of when each tracked object sounds, where there is a sounding head."""
    sounding_weight: float = 2.0
    """Of the sounding head, on matched queries."""
    tag_weight: float = 10.0
    """Of the classes that the sound alone gives away, sources outside the picture included."""
    peak_weight: float = 1.0
    """Of the map of object centres."""
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundAugmentConfig:
    """How the sound of training clips is changed; officially not at all."""

    gain_db: float = 0.0
    """Louder or softer by up to this."""
    shift_seconds: float = 0.0
    """Earlier or later by up to this, round the ends of each second."""
    equaliser_db: float = 0.0
    """Largest tilt and largest bump; of each source on its own where scenes are made."""
    pitch: float = 0.0
    """Higher or lower by up to this share, each source on its own; where scenes are made."""
    noise_share: float = 0.0
    """Clips that get white noise of `noise_dbfs`."""
    noise_dbfs: tuple[float, float] = (-60.0, -35.0)
    mix_share: float = 0.0
    """Clips with another clip's sound underneath, `mix_db` against their own; where clips come from a data set."""
    mix_db: tuple[float, float] = (-24.0, -12.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How training clips are drawn from videos and changed; the defaults are the official ones, but for quirk Q2."""

    frame_range: int = 20
    """Frames of a clip lie at most so far from one of them."""
    short_sides_px: tuple[int, ...] = (288, 320, 352, 384, 416, 448, 480, 512)
    long_side_px: int = 768
    crop_share: float = 0.5
    crop_first_sides_px: tuple[int, ...] = (400, 500, 600)
    crop_first_long_side_px: int = 1333
    crop_range_px: tuple[int, int] = (384, 600)
    flip_share: float = 0.5
    bend: float = 0.0
    """Shear, stretch and tint of cut-outs by up to this share; where scenes are made."""
    sound: SoundAugmentConfig = field(default_factory=SoundAugmentConfig)
    silent_first_frame_has_no_class: bool = False
    """True: objects that are silent in a clip's first frame get the class "nothing", as officially (quirk Q2)."""

    def limits(self, short_side_px: int, *, crop: bool) -> InputConfig:
        """Sides of a resize, before a crop or at the end."""
        longest = self.crop_first_long_side_px if crop else self.long_side_px
        return InputConfig(short_side_px=short_side_px, long_side_px=longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Training of the tracker alone, on long streams that were localized once (`train/streams.py`)."""

    count: int = 0
    """Streams that are made and kept; 0: the whole model learns, on clips."""
    sink_dropout: float = 0.3
    """Steps in which frames that left the ring are forgotten instead of folded into the sinks."""
    mask_frames: int = 16
    """Frames of a stretch on which masks are compared."""

    def __post_init__(self) -> None:
        require(self.count >= 0, "StreamConfig.count", self.count, ">= 0 streams")
        require(self.mask_frames >= 1, "StreamConfig.mask_frames", self.mask_frames, ">= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundStageConfig:
    """Training of what names the classes in the sound alone, on made sound without pictures (`train/sounds.py`)."""

    count: int = 0
    """Seconds that are made once and kept, as log-mel patches; 0: the model learns from pictures. A clip
    (`TrainConfig.clips`) is one of them."""
    mixed: float = 0.3
    """Share of the clips that are two of them at once."""
    tilt: float = 0.5
    """Standard deviation, in nats, of the smooth equaliser that each clip goes through."""

    def __post_init__(self) -> None:
        require(self.count >= 0, "SoundStageConfig.count", self.count, ">= 0 seconds")
        require(0 <= self.mixed <= 1, "SoundStageConfig.mixed", self.mixed, "in [0, 1]")
        require(self.tilt >= 0, "SoundStageConfig.tilt", self.tilt, ">= 0 nats")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the defaults are the official schedule (its yaml's commented-out real one, quirk Q24)."""

    steps: int = 48_000
    frames: int = 5
    """Frames in a training clip."""
    clips: int = 1
    """Clips in a step of one process."""
    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    """The backbone learns at this share of `learning_rate`; 0 freezes it."""
    frozen: tuple[str, ...] = ()
    """Parts that do not learn, by the first words of their names: `backbone.stem,backbone.blocks.0.`."""
    weight_decay: float = 0.05
    """Not applied to norms, embeddings and Swin's position biases."""
    gradient_clip: float = 0.01
    """Largest norm of all gradients together."""
    milestones: tuple[int, ...] = (32_000,)
    """Steps at which the rate falls to a tenth."""
    decay: Literal["steps", "linear"] = "steps"
    """`linear`: from the first milestone the rate falls in a line, to 0 after the last step."""
    warmup: int = 10
    warmup_factor: float = 1.0
    """Share of the rate at step 0; rises linearly over `warmup` steps. Officially 1, so there is none."""
    query_layers: int = 3
    """The tracker learns from the frame queries of so many last decoder layers, each as a clip of its own; 0: it does
    not learn, only what finds objects in frames does."""
    validate_every: int = 500
    """Steps between validations, where there is a set for it; the best weights are kept."""
    bfloat16: bool = False
    seed: int = 0
    streams: StreamConfig = field(default_factory=StreamConfig)
    sounds: SoundStageConfig = field(default_factory=SoundStageConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "frames", "clips", "validate_every"):
            require(getattr(self, name) >= 1, f"TrainConfig.{name}", getattr(self, name), ">= 1")
        require(self.query_layers >= 0, "TrainConfig.query_layers", self.query_layers, ">= 0")
        wanted = f"0 where streams.count is {self.streams.count}: one run teaches the memory, another the sound"
        require(not (self.streams.count and self.sounds.count), "TrainConfig.sounds.count", self.sounds.count, wanted)
        require(self.learning_rate > 0, "TrainConfig.learning_rate", self.learning_rate, "> 0")

    def to_json(self) -> str:
        """The schedule as one line of JSON, as it is kept beside weights and in checkpoints."""
        return config_text.to_json(self, _KINDS)

    @staticmethod
    def from_json(text: str) -> TrainConfig:
        """The schedule that `to_json` wrote.

        Raises:
            ConfigError: Unknown or missing fields, or values of another type.
        """
        return config_text.from_json(TrainConfig, text, _KINDS)

    def rate_at(self, step: int) -> float:
        """Share of the learning rate that step number `step` uses, counted from 0."""
        warm = 1.0
        if step < self.warmup:
            warm = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup
        if self.decay == "linear":
            begin = min(self.milestones, default=0)
            return warm * min(1.0, max(0.0, (self.steps - step) / max(1, self.steps - begin)))
        return warm * 0.1 ** sum(step >= milestone for milestone in self.milestones)


_PLACE_CHANNELS = 5
"""Those that `LocalizerConfig.placed_masks` adds, see `models/places.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AVISMConfig:
    """A whole audio-visual instance segmentation model."""

    name: str = "avism"
    classes: tuple[str, ...] = AVISEG_CLASSES
    classes_trained: tuple[str, ...] | None = None
    """Classes that the weights have seen examples of; None: all of `classes`."""
    channels: int = 256
    """Width of tokens and queries from the pixel decoder to the tracker."""
    mask_channels: int = 256
    """Width of learned mask features and mask embeddings; see `drawn_channels`."""
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    input: InputConfig = field(default_factory=InputConfig)
    pixel_decoder: PixelDecoderConfig = field(default_factory=PixelDecoderConfig)
    localizer: LocalizerConfig = field(default_factory=LocalizerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)

    def __post_init__(self) -> None:
        twice = [name for name in self.classes if self.classes.count(name) > 1]
        require(not twice, "AVISMConfig.classes", twice, "names that differ: weights are taken by them")
        for part in ("pixel_decoder", "localizer", "tracker"):
            heads = getattr(self, part).heads
            require(self.channels % heads == 0, f"{part}.heads", heads, f"a divisor of the {self.channels} channels")

    @property
    def drawn_channels(self) -> int:
        """Width of the mask features and embeddings that objects are drawn by."""
        placed = self.tracker.masks == "frame" and self.localizer.placed_masks
        return self.mask_channels + (_PLACE_CHANNELS if placed else 0)

    def to_json(self) -> str:
        """The configuration as one line of JSON, as it is kept in weight files and results."""
        return config_text.to_json(self, _KINDS)

    @staticmethod
    def from_json(text: str) -> AVISMConfig:
        """The configuration that `to_json` wrote.

        Raises:
            ConfigError: Unknown or missing fields, or values of another type.
        """
        return config_text.from_json(AVISMConfig, text, _KINDS)

    def with_overrides(self, settings: Iterable[str]) -> AVISMConfig:
        """A copy with `"tracker.token_window=3"`-like settings applied; see `with_overrides`."""
        return with_overrides(self, settings)
