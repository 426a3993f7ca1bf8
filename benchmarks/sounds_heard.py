"""What the sound alone gives away in seconds that the model has not heard: which classes, and so which objects sound.

    python benchmarks/sounds_heard.py --assets ASSETS [--split val] [--seconds 2000] [--weights FILE]

Stories are drawn by the frozen protocol from the recordings of the split, without pictures. An object is in view where
the story says so, and is believed to sound as much as its class is heard: what hearing alone can know of it. Perfect
tags are the ceiling of that; which of two of one class it is, they cannot tell either.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from localizer_found import ranking
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from avis_stream.models.avism import AVISM
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.library import Library
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.soundscape import mix
from avis_stream.synth.story import Story, tell_story
from avis_stream.train.source import seconds_of, tags_of
from avis_stream.weights import load

STORY_SECONDS = 5
SEED = 77


@dataclass(frozen=True)
class Asked:
    """One object in view in one second."""

    sounds: bool
    heard: float
    """The tag of its class."""
    true: float
    """1 where its class is to be heard, be it by another."""
    rival: bool
    """Whether another of its class is in view."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--seconds", type=int, default=2000)
    parser.add_argument("--weights", type=Path, help="default: those that come with the package")
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    protocol = Protocol.load()
    library = AssetLibrary(options.assets, protocol, options.split)
    asked, said, true = [], [], []
    for number in tqdm(range(-(-options.seconds // STORY_SECONDS)), desc=options.split):
        story, seconds = told(library, protocol, number)
        heard = tags(model, seconds)
        truth = tags_of(story, range(1, STORY_SECONDS + 1), model.classes).numpy()
        asked += objects(story, heard, truth, model.classes)
        said.append(heard)
        true.append(truth > 0)
    show(np.concatenate(said), np.concatenate(true), asked, model.classes)


def told(library: Library, protocol: Protocol, number: int) -> tuple[Story, Tensor]:
    """A story and its seconds [T, 16000] from the second one on, each as it is told."""
    rng = np.random.default_rng([SEED, number])
    story = tell_story(protocol, library.classes, STORY_SECONDS + 1, rng)
    return story, seconds_of(mix(story, library, protocol, rng), range(1, STORY_SECONDS + 1), 1.0)


@torch.no_grad()
def tags(model: AVISM, seconds: Tensor) -> NDArray[np.float32]:
    """Logits [T, K] of the classes heard."""
    head = model.localizer.sounding
    assert head is not None
    return head.listen(model.hear(seconds)).tags.cpu().numpy()


def objects(
    story: Story, heard: NDArray[np.float32], truth: NDArray[np.float32], classes: tuple[str, ...]
) -> Iterator[Asked]:
    for row in range(STORY_SECONDS):
        here = [actor for actor in story.actors if actor.present[row + 1]]
        names = [actor.class_name for actor in here]
        for actor in here:
            k = classes.index(actor.class_name)
            sounds, rival = bool(actor.sounding[row + 1]), names.count(actor.class_name) > 1
            yield Asked(sounds, float(heard[row, k]), float(truth[row, k]), rival)


def show(said: NDArray[np.float32], true: NDArray[np.bool_], asked: list[Asked], classes: tuple[str, ...]) -> None:
    """Prints how well tags [S, K] rank the seconds of each class, and objects by whether they sound."""
    print(f"{'':16}{'seconds':>9}{'AUC':>11}")
    for k, name in enumerate(classes):
        if true[:, k].any():
            print(f"{name:>16}{true[:, k].sum():>9}{ranking(said[true[:, k], k], said[~true[:, k], k]):>11.3f}")
    print(f"{'all':>16}{true.sum():>9}{ranking(said[true], said[~true]):>11.3f}")
    print(f"\n{'':16}{'objects':>9}{'sounding':>11}{'AUC':>11}{'perfect':>11}")
    for name, part in (("all", asked), ("without a rival", [a for a in asked if not a.rival])):
        loud, quiet = [a for a in part if a.sounds], [a for a in part if not a.sounds]
        share = len(loud) / max(1, len(part))
        ours = ranking([a.heard for a in loud], [a.heard for a in quiet])
        perfect = ranking([a.true for a in loud], [a.true for a in quiet])
        print(f"{name:>16}{len(part):>9}{share:>11.2f}{ours:>11.3f}{perfect:>11.3f}")
    print("AUC: of seconds, by whether a class is heard; of objects in view, by whether their class is")


if __name__ == "__main__":
    main()
