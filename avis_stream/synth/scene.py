"""One made video: its story, its pictures, its sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.soundscape import mix
from avis_stream.synth.stage import Stage, StillStage
from avis_stream.synth.story import Story, tell_still, tell_story


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A story with its stage and its sound."""

    story: Story
    stage: Stage | StillStage
    wave: NDArray[np.float32]
    """float32 [T * 16000], 16 kHz."""
    kind: str
    """`composite` or `photograph`."""


def make_scene(
    library: Library,
    protocol: Protocol,
    *,
    seed: int,
    index: int,
    seconds: tuple[int, int],
    size: tuple[int, int],
    photograph_share: float,
) -> Scene:
    """Makes video number `index` of a set; the same arguments make the same video on any machine.

    Args:
        library: What it is made from.
        protocol: How often what happens.
        seed: Of the set.
        index: Of the video.
        seconds: Shortest and longest length.
        size: Width and height of its pictures.
        photograph_share: Chance that it is a real photograph.
    """
    rng = np.random.default_rng([protocol.version, seed, index])
    length = int(rng.integers(seconds[0], seconds[1] + 1))
    if library.has_photographs and rng.random() < photograph_share:
        photograph = library.photograph(rng)
        story = tell_still(protocol, [name for name, _ in photograph.objects], library.classes, length, rng)
        stage: Stage | StillStage = StillStage(story, photograph, protocol, size, rng)
        kind = "photograph"
    else:
        story = tell_story(protocol, library.classes, length, rng)
        stage = Stage(story, library, protocol, size, rng)
        kind = "composite"
    return Scene(story, stage, mix(story, library, protocol, rng), kind)
