"""Where training clips come from: made as they are asked for, numbered, so that a run resumes where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol as TypingProtocol
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from avis_stream.config import AVISEG_CLASSES, AugmentConfig
from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import Scene, make_scene
from avis_stream.synth.soundscape import RATE, Wave
from avis_stream.synth.stage import EARLIER_SECONDS, Shot
from avis_stream.synth.story import Story
from avis_stream.train.batch import ClipSample
from avis_stream.train.sound_augment import change_seconds
from avis_stream.train.varied import VariedLibrary

S_co = TypeVar("S_co", covariant=True)


class Source(TypingProtocol[S_co]):
    """Sample number n, for any n, the same whenever asked for: a number is all there is to a sampler's state."""

    def clip(self, number: int) -> S_co:
        """Makes or reads sample `number`."""


ClipSource = Source[ClipSample]


def harder(protocol: Protocol) -> Protocol:
    """What training scenes are drawn by: more of what a model finds hard than the frozen protocol tests.

    Pairs of one class in half the scenes, two thirds of them cued; sounds from outside in three seconds of ten.
    Everything that separates the splits stays.
    """
    return replace(protocol, pair_share=0.5, pair_cued_share=0.67, offscreen_share=0.3)


def streaming(protocol: Protocol) -> Protocol:
    """The same for streams of a minute: everyone comes and goes, and looks another way each time."""
    return replace(harder(protocol), visit_seconds=(5, 25), leaves_seconds=(4, 40), returns_differ=True)


DISJOINT_SHARE = 0.6
"""Scenes of those classes alone that have enough cut-outs to learn more than these cut-outs from."""


_CLIP = 0xC11B
"""Keeps a clip's draws apart from its scene's, which are of [version, seed, number]: with seed 1 both were the same,
and where the sound ends told whether two of one class are in the picture."""


class SynthClips:
    """Clips of made scenes, one scene each, at the size at which the network sees them."""

    def __init__(
        self,
        library: Library,
        protocol: Protocol,
        *,
        frames: int,
        size: tuple[int, int],
        seed: int,
        classes: tuple[str, ...] = AVISEG_CLASSES,
        photograph_share: float = 0.0,
        augment: AugmentConfig | None = None,
    ) -> None:
        """Sets what clips are like.

        Args:
            library: What scenes are made from.
            protocol: How often what happens.
            frames: Consecutive seconds in a clip.
            size: Width and height of the pictures.
            seed: Of the whole series.
            classes: The model's.
            photograph_share: Scenes that are real photographs.
            augment: How their parts and their sound are changed; None: not at all.
        """
        self._augment = augment or AugmentConfig()
        self._libraries = (
            VariedLibrary(library, self._augment),
            VariedLibrary(library, self._augment, protocol.disjoint),
        )
        self._protocol, self._frames = protocol, frames
        self._size, self._seed, self._classes = size, seed, classes
        self._photograph_share = photograph_share

    def clip(self, number: int) -> ClipSample:
        """Scene `number`, which is a second longer than the clip.

        The second of sound of a frame ends anywhere from the frame itself (live) to a second later (as data sets have
        it), so that a model does not come to depend on where it ends (ADR 0004).
        """
        rng = np.random.default_rng([self._seed, 1, number, _CLIP])
        few, ends = rng.random() < DISJOINT_SHARE, float(rng.uniform(0, 1))
        scene = make_scene(
            self._libraries[few],
            self._protocol,
            seed=self._seed,
            index=number,
            seconds=(self._frames + 1, self._frames + 1),
            size=self._size,
            photograph_share=self._photograph_share,
        )
        clip = clip_of(scene, range(1, self._frames + 1), self._classes, name=f"scene {number}", ends=ends)
        rng = np.random.default_rng([self._seed, 2, number])
        return replace(clip, seconds=changed_seconds(clip.seconds, self._augment, rng))


def clip_of(scene: Scene, times: range, classes: tuple[str, ...], name: str, *, ends: float = 1.0) -> ClipSample:
    """Frames of a scene with all that is known: who is visible, who sounds, what is heard.

    Args:
        scene: Longer than the last of `times`.
        times: Seconds at which frames are taken.
        classes: The model's.
        name: For messages.
        ends: Seconds, in [0, 1], from a frame to the end of its second of sound. The truth is that of the second of the
            story that this mostly covers.
    """
    shots = [scene.stage.shot(t) for t in times]
    earlier = [scene.stage.shot(t - EARLIER_SECONDS) for t in times]
    heard = heard_at(times, ends)
    actors = scene.story.actors
    masks = np.zeros((len(actors), len(times), *shots[0].rgb.shape[:2]), bool)
    for row, shot in enumerate(shots):
        for k, visible in enumerate(shot.visible):
            if visible is not None:
                masks[k, row] = visible
    return ClipSample(
        images=_images(shots),
        seconds=seconds_of(scene.wave, times, ends),
        labels=torch.tensor([classes.index(actor.class_name) for actor in actors], dtype=torch.int64),
        masks=torch.from_numpy(masks),
        name=name,
        sounding=torch.from_numpy(np.stack([actor.sounding[heard] for actor in actors])),
        previous=_images(earlier),
        tags=tags_of(scene.story, heard, classes),
    )


def _images(shots: Sequence[Shot]) -> Tensor:
    return torch.from_numpy(np.stack([shot.rgb.transpose(2, 0, 1) for shot in shots]))


def heard_at(times: range, ends: float) -> list[int]:
    """The second of the story that the second of sound of each frame mostly covers; `times`, `ends` as in `clip_of`."""
    return [t if ends >= 0.5 else t - 1 for t in times]


def seconds_of(wave: Wave, times: range, ends: float) -> Tensor:
    """The second of sound of each frame, float32 [T, 16000]; `times`, `ends` as in `clip_of`."""
    begin = [round((t - 1 + ends) * RATE) for t in times]
    return torch.from_numpy(np.stack([wave[b : b + RATE] for b in begin]))


def tags_of(story: Story, seconds: Sequence[int], classes: tuple[str, ...]) -> Tensor:
    """Classes heard in some seconds of a story, sources outside the picture included: float32 [T, K], 1 or 0."""
    every = torch.zeros(story.seconds, len(classes))
    for actor in story.actors:
        every[np.flatnonzero(actor.sounding), classes.index(actor.class_name)] = 1
    for outside in story.offscreen:
        if outside.class_name is not None:
            every[outside.second, classes.index(outside.class_name)] = 1
    return every[list(seconds)]


def changed_seconds(seconds: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Another take of the sound [T, n] of a story whose sources were varied one by one, by `VariedLibrary`."""
    sound = replace(augment.sound, equaliser_db=0.0)  # each source was equalised on its own
    return torch.from_numpy(change_seconds(seconds.numpy(), sound, rng))
