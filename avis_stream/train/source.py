"""Where training clips come from: made as they are asked for, numbered, so that a run resumes where it stopped."""

from __future__ import annotations

from typing import Protocol as TypingProtocol

import numpy as np
import torch

from avis_stream.config import AVISEG_CLASSES
from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import Scene, make_scene
from avis_stream.synth.soundscape import RATE
from avis_stream.train.batch import ClipSample


class ClipSource(TypingProtocol):
    """Clip number n, for any n, the same whenever asked for: a number is all there is to a sampler's state."""

    def clip(self, number: int) -> ClipSample:
        """Makes or reads clip `number`."""


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
        """
        self._library, self._protocol, self._frames = library, protocol, frames
        self._size, self._seed, self._classes = size, seed, classes
        self._photograph_share = photograph_share

    def clip(self, number: int) -> ClipSample:
        """The first seconds of scene `number`, which is as long as the clip."""
        scene = make_scene(
            self._library,
            self._protocol,
            seed=self._seed,
            index=number,
            seconds=(self._frames, self._frames),
            size=self._size,
            photograph_share=self._photograph_share,
        )
        return clip_of(scene, self._frames, self._classes, name=f"scene {number}")


def clip_of(scene: Scene, frames: int, classes: tuple[str, ...], name: str) -> ClipSample:
    """The first `frames` seconds of a scene as training sees them: an object has a mask only while it sounds."""
    shots = [scene.stage.shot(t) for t in range(frames)]
    images = torch.stack([torch.from_numpy(shot.rgb.copy()).permute(2, 0, 1) for shot in shots])
    nothing = np.zeros(shots[0].rgb.shape[:2], bool)
    actors = [(k, actor) for k, actor in enumerate(scene.story.actors) if actor.sounding[:frames].any()]
    masks = np.zeros((len(actors), frames, *nothing.shape), bool)
    for row, (k, actor) in enumerate(actors):
        for t, shot in enumerate(shots):
            visible = shot.visible[k]
            if actor.sounding[t] and visible is not None:
                masks[row, t] = visible
    return ClipSample(
        images=images,
        seconds=torch.from_numpy(scene.wave[: frames * RATE].reshape(frames, RATE).copy()),
        labels=torch.tensor([classes.index(actor.class_name) for _, actor in actors], dtype=torch.int64),
        masks=torch.from_numpy(masks),
        name=name,
    )
