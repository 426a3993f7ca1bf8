"""Training of what names the classes in the sound, on made sound without pictures, made once and kept.

To make a second of sound costs a twentieth of what a scene with its pictures costs: far more can be heard than seen.
`SoundingHead.norm` and `.tag` alone learn, by the loss that they have on clips, and the changes of low rank that the
encoder may have (ADR 0012). What is kept are log-mel patches; each time one is drawn it sounds through another
equaliser, and sometimes with a second one at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.audio.logmel import MEL_BANDS
from avis_stream.audio.vggish import VGGish
from avis_stream.audio.yamnet import YAMNet, is_published
from avis_stream.config import AVISEG_CLASSES, AugmentConfig, AVISMConfig, TrainConfig
from avis_stream.errors import ConfigError
from avis_stream.models.avism import AVISM
from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.soundscape import mix
from avis_stream.synth.story import tell_story
from avis_stream.train.batches import batches
from avis_stream.train.clip_losses import weighted
from avis_stream.train.kept import load_kept, save_kept
from avis_stream.train.losses import tag_loss
from avis_stream.train.points import DrawPoints
from avis_stream.train.source import DISJOINT_SHARE, Source, changed_seconds, heard_at, seconds_of, tags_of
from avis_stream.train.varied import VariedLibrary

_MIXED_LOUDER = 1.5
"""Nats by which the second of two sounds is at most louder or softer in power."""
_TILT_KNOTS = 5
"""Of the equaliser, over all bands."""

STORY_SECONDS = 5
"""Taken from each story: a recording that is read and varied once is heard in several of them."""
_STORIES_AT_ONCE = 8
"""Made and embedded together."""


@dataclass(frozen=True, slots=True, eq=False)
class MadeSound:
    """Consecutive seconds of one story, and what is heard in them."""

    seconds: Tensor
    """float32 [T, 16000] in [-1, 1]."""
    tags: Tensor
    """float32 [T, K], 1 for classes heard, sources outside the picture included."""
    name: str

    def to(self, device: torch.device) -> MadeSound:
        """The same on a device."""
        return replace(self, seconds=self.seconds.to(device), tags=self.tags.to(device))


class SynthSounds:
    """The sound of made scenes that nobody looks at: numbered stories, `STORY_SECONDS` of each."""

    def __init__(
        self,
        library: Library,
        protocol: Protocol,
        *,
        seed: int,
        classes: tuple[str, ...] = AVISEG_CLASSES,
        augment: AugmentConfig | None = None,
    ) -> None:
        """Sets what they are like.

        Args:
            library: Whose recordings.
            protocol: How often what happens.
            seed: Of the whole series.
            classes: The model's.
            augment: How recordings and their mixture are changed; None: not at all.
        """
        self._augment = augment or AugmentConfig()
        self._libraries = (
            VariedLibrary(library, self._augment),
            VariedLibrary(library, self._augment, protocol.disjoint),
        )
        self._protocol, self._seed, self._classes = protocol, seed, classes

    def clip(self, number: int) -> MadeSound:
        """Story `number`; its seconds end where those of `SynthClips` do. No photographs: they are told of by sight."""
        rng = np.random.default_rng([self._seed, 5, number])
        library, ends = self._libraries[rng.random() < DISJOINT_SHARE], float(rng.uniform(0, 1))
        story = tell_story(self._protocol, library.classes, STORY_SECONDS + 1, rng)
        times = range(1, STORY_SECONDS + 1)
        seconds = seconds_of(mix(story, library, self._protocol, rng), times, ends)
        return MadeSound(
            seconds=changed_seconds(seconds, self._augment, np.random.default_rng([self._seed, 6, number])),
            tags=tags_of(story, heard_at(times, ends), self._classes),
            name=f"story {number}",
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeardSecond:
    """What the encoder gets of one second, and what is true of it."""

    patch: Tensor
    """float16 [96, 64], its log-mel spectrogram."""
    tags: Tensor
    """bool [K]."""
    name: str

    def to(self, device: torch.device) -> HeardSecond:
        """The same on a device."""
        return replace(self, patch=self.patch.to(device), tags=self.tags.to(device))


@torch.no_grad()
def heard_seconds(model: AVISM, source: Source[MadeSound], count: int) -> Iterator[HeardSecond]:
    """The first `count` seconds of a source, as a model's encoder gets them; yields as it goes."""
    encoder, number = encoder_of(model), 0
    for stories in batches(source, _STORIES_AT_ONCE, range(0, -(-count // STORY_SECONDS), _STORIES_AT_ONCE)):
        patches = encoder.log_mel(torch.cat([story.seconds for story in stories]).to(model.device)).half().cpu()
        tags = torch.cat([story.tags for story in stories]) > 0
        for one, true in zip(patches[: count - number], tags, strict=False):
            yield HeardSecond(one, true, f"second {number}")
            number += 1


@dataclass(frozen=True, slots=True, eq=False)
class HeardSounds:
    """All seconds that are kept, S of them."""

    patches: Tensor
    """float16 [S, 96, 64]."""
    tags: Tensor
    """bool [S, K]."""


def save_sounds(path: Path, seconds: Sequence[HeardSecond], of: str) -> None:
    """Keeps seconds as plain tensors; `of` says what they are, in words."""
    plain = {"patches": torch.stack([s.patch for s in seconds]), "tags": torch.stack([s.tags for s in seconds])}
    save_kept(path, "sounds", plain, of)


def load_sounds(path: Path, of: str) -> HeardSounds:
    """The seconds that `save_sounds` kept.

    Raises:
        CheckpointError: They cannot be read, or are others than `of`.
    """
    return load_kept(path, "sounds", lambda plain: HeardSounds(**plain), of)


class DrawnSeconds:
    """Seconds drawn at random from those kept, numbered; no two draws are alike."""

    def __init__(self, sounds: HeardSounds, config: TrainConfig) -> None:
        self._sounds, self._seed, self._config = sounds, config.seed, config.sounds

    def clip(self, number: int) -> HeardSecond:
        """Draw `number`."""
        rng = np.random.default_rng([self._seed, 7, number])
        which, other = rng.integers(len(self._sounds.patches), size=2).tolist()
        patch, tags, name = self._sounds.patches[which].float(), self._sounds.tags[which], f"second {which}"
        if rng.random() < self._config.mixed:  # powers add; the offset in the logarithm is small against both
            louder = float(rng.uniform(-_MIXED_LOUDER, _MIXED_LOUDER))
            patch = torch.logaddexp(patch, self._sounds.patches[other].float() + louder)
            tags, name = tags | self._sounds.tags[other], f"{name} with {other}"
        knots = torch.from_numpy(rng.normal(0, self._config.tilt, (1, 1, _TILT_KNOTS))).float()
        tilt = F.interpolate(knots, MEL_BANDS, mode="linear", align_corners=True)[0]
        return HeardSecond((patch + tilt).half(), tags, name)


class SoundLosses(nn.Module):
    """Encoder and sounding head with the loss of the tags around them."""

    def __init__(self, model: AVISM, config: TrainConfig) -> None:
        super().__init__()
        require_sounding_head(model.config)
        self.encoder, self.head, self.config = encoder_of(model), model.localizer.sounding, config.losses

    def forward(self, seconds: Sequence[HeardSecond], draw: DrawPoints) -> dict[str, Tensor]:
        """Names the classes in seconds of sound; the loss unweighted as `frame_tags`, and weighted as `total`."""
        assert self.head is not None
        heard = self.encoder.embed(torch.stack([s.patch.float() for s in seconds]))
        tags = self.head.listen(heard).tags
        losses = {"frame_tags": tag_loss(tags, torch.stack([s.tags.float() for s in seconds]))}
        losses["total"] = weighted(losses, self.config)
        return losses


def learns(model: AVISM) -> tuple[str, ...]:
    """First words of the names of what learns from sound alone."""
    heard = (name for name, _ in model.named_parameters() if name.startswith("audio_encoder."))
    return ("localizer.sounding.norm.", "localizer.sounding.tag.", *(name for name in heard if not is_published(name)))


def encoder_of(model: AVISM) -> VGGish | YAMNet:
    """The model's sound encoder.

    Raises:
        ConfigError: It has none that listens.
    """
    require_listening(model.config)
    encoder = model.audio_encoder
    assert isinstance(encoder, VGGish | YAMNet)
    return encoder


def require_listening(config: AVISMConfig) -> None:
    """Refuses a model that hears nothing itself.

    Raises:
        ConfigError: It has no sound encoder, or one that is deaf.
    """
    if config.audio.encoder in {"none", "deaf"}:
        raise ConfigError(
            f"learning from sounds alone takes an encoder that listens, and {config.name} has audio.encoder="
            f"{config.audio.encoder}: take yamnet, or vggish with --audio-weights"
        )


def require_sounding_head(config: AVISMConfig) -> None:
    """Refuses a model that does not tell who sounds.

    Raises:
        ConfigError: It has no sounding head.
    """
    if not config.localizer.sounding_head:
        raise ConfigError(
            f"sounds alone teach a sounding head, and {config.name} has none: take avism_mini, or set "
            "localizer.sounding_head=true"
        )
