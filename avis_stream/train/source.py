"""Where training clips come from: made as they are asked for, numbered, so that a run resumes where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from torch import Tensor

from avis_stream.config import AVISEG_CLASSES, AugmentConfig
from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import Scene, make_scene
from avis_stream.synth.soundscape import RATE
from avis_stream.synth.stage import EARLIER_SECONDS, Shot
from avis_stream.train.batch import ClipSample
from avis_stream.train.sound_augment import change_seconds
from avis_stream.train.varied import VariedLibrary


class ClipSource(TypingProtocol):
    """Clip number n, for any n, the same whenever asked for: a number is all there is to a sampler's state."""

    def clip(self, number: int) -> ClipSample:
        """Makes or reads clip `number`."""


def harder(protocol: Protocol) -> Protocol:
    """What training scenes are drawn by: more of what a model finds hard than the frozen protocol tests.

    Pairs of one class in half the scenes, two thirds of them cued; sounds from outside in three seconds of ten.
    Everything that separates the splits stays.
    """
    return replace(protocol, pair_share=0.5, pair_cued_share=0.67, offscreen_share=0.3)


_DISJOINT_SHARE = 0.6
"""Scenes of those classes alone that have enough cut-outs to learn more than these cut-outs from."""


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
        """The first seconds of scene `number`, which is as long as the clip."""
        few = np.random.default_rng([self._seed, 1, number]).random() < _DISJOINT_SHARE
        scene = make_scene(
            self._libraries[few],
            self._protocol,
            seed=self._seed,
            index=number,
            seconds=(self._frames, self._frames),
            size=self._size,
            photograph_share=self._photograph_share,
        )
        clip = clip_of(scene, self._frames, self._classes, name=f"scene {number}")
        # Sources were equalised one by one.
        sound = replace(self._augment.sound, equaliser_db=0.0)
        changed = change_seconds(clip.seconds.numpy(), sound, np.random.default_rng([self._seed, 2, number]))
        return replace(clip, seconds=torch.from_numpy(changed))


def clip_of(scene: Scene, frames: int, classes: tuple[str, ...], name: str) -> ClipSample:
    """The first `frames` seconds of a scene with all that is known: who is visible, who sounds, what is heard."""
    shots = [scene.stage.shot(t) for t in range(frames)]
    earlier = [scene.stage.shot(t - EARLIER_SECONDS) for t in range(frames)]
    actors = scene.story.actors
    masks = np.zeros((len(actors), frames, *shots[0].rgb.shape[:2]), bool)
    for t, shot in enumerate(shots):
        for k, visible in enumerate(shot.visible):
            if visible is not None:
                masks[k, t] = visible
    return ClipSample(
        images=_images(shots),
        seconds=torch.from_numpy(scene.wave[: frames * RATE].reshape(frames, RATE).copy()),
        labels=torch.tensor([classes.index(actor.class_name) for actor in actors], dtype=torch.int64),
        masks=torch.from_numpy(masks),
        name=name,
        sounding=torch.from_numpy(np.stack([actor.sounding[:frames] for actor in actors])),
        previous=_images(earlier),
        tags=_tags(scene, frames, classes),
    )


def _images(shots: Sequence[Shot]) -> Tensor:
    return torch.stack([torch.from_numpy(shot.rgb.copy()).permute(2, 0, 1) for shot in shots])


def _tags(scene: Scene, frames: int, classes: tuple[str, ...]) -> Tensor:
    tags = torch.zeros(frames, len(classes))
    for actor in scene.story.actors:
        tags[np.flatnonzero(actor.sounding[:frames]), classes.index(actor.class_name)] = 1
    for outside in scene.story.offscreen:
        if outside.second < frames and outside.class_name is not None:
            tags[outside.second, classes.index(outside.class_name)] = 1
    return tags
