"""Who is in a scene, when it can be seen, when it sounds and how it moves: all decided before a pixel is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avis_stream.synth.library import Rng
from avis_stream.synth.protocol import Protocol

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Actor:
    """An object of the scene."""

    class_name: str
    present: Flags
    """[T], seconds in which it is in the picture."""
    sounding: Flags
    """[T], seconds in which it sounds; a subset of `present`."""
    moving: Flags
    """[T], seconds in which it bobs and sways."""
    holder: bool
    """It only holds the instrument of the actor after it, in silence."""


@dataclass(frozen=True, slots=True)
class Offscreen:
    """A sound from outside the picture."""

    second: int
    class_name: str | None
    """None: a sound of no class."""


@dataclass(frozen=True, slots=True, eq=False)
class Story:
    """A scene of T seconds."""

    seconds: int
    actors: tuple[Actor, ...]
    offscreen: tuple[Offscreen, ...]
    pair: str
    """`cued` or `uncued` if the first two actors are of one class, else empty."""


def tell_story(protocol: Protocol, classes: Sequence[str], seconds: int, rng: Rng) -> Story:
    """Draws a scene.

    Args:
        protocol: What happens how often.
        classes: Those that the library has.
        seconds: T.
        rng: Decides.
    """
    cast, pair = _cast(protocol, classes, rng)
    present = np.stack([_presence(protocol, seconds, rng) for _ in cast])
    sounding = _sounding(protocol, present, rng)
    moving = np.repeat(rng.random(len(cast)) < protocol.moves_regardless_share, seconds).reshape(len(cast), seconds)
    if pair == "cued":
        moving[:2] = sounding[:2]
    elif pair == "uncued":
        moving[1] = moving[0]
    actors = []
    for i, class_name in enumerate(cast):
        held = class_name in protocol.instruments and "person" in classes and rng.random() < protocol.held_share
        if held:
            nobody = np.zeros(seconds, bool)
            actors.append(Actor("person", present[i], nobody, moving[i], holder=True))
        actors.append(Actor(class_name, present[i], sounding[i], moving[i], holder=False))
    return Story(seconds, tuple(actors), _offscreen(protocol, classes, cast, seconds, rng), pair)


def tell_still(protocol: Protocol, shown: Sequence[str], classes: Sequence[str], seconds: int, rng: Rng) -> Story:
    """Draws who sounds in a photograph whose labelled objects are `shown`; nothing comes or goes."""
    present = np.repeat([c in classes for c in shown], seconds).reshape(len(shown), seconds)
    sounding = _sounding(protocol, present, rng)
    cued = rng.random() < protocol.pair_cued_share
    moving = sounding if cued else np.zeros_like(sounding)
    actors = tuple(
        Actor(name, np.ones(seconds, bool), s, m, holder=False)
        for name, s, m in zip(shown, sounding, moving, strict=True)
    )
    twins = len(shown) > 1 and len(set(shown)) < len(shown)
    pair = ("cued" if cued else "uncued") if twins else ""
    return Story(seconds, actors, _offscreen(protocol, classes, shown, seconds, rng), pair)


def _cast(protocol: Protocol, classes: Sequence[str], rng: Rng) -> tuple[list[str], str]:
    count = 1 + int(rng.choice(len(protocol.visible_objects), p=protocol.visible_objects))
    pair = rng.random() < protocol.pair_share
    count = min(max(count, 2) if pair else count, len(classes))
    cast = [classes[i] for i in rng.choice(len(classes), count, replace=False)]
    if not pair:
        return cast, ""
    cast = [cast[0], *cast] if count == 1 else [cast[0], cast[0], *cast[2:]]
    return cast, "cued" if rng.random() < protocol.pair_cued_share else "uncued"


def _presence(protocol: Protocol, seconds: int, rng: Rng) -> Flags:
    present = np.ones(seconds, bool)
    low, high = protocol.leaves_seconds
    if protocol.visit_seconds is not None:
        shortest, longest = protocol.visit_seconds
        at = int(rng.integers(-longest, longest))  # some are away when the stream begins
        while at < seconds:
            stays = int(rng.integers(shortest, longest + 1))
            away = round(np.exp(rng.uniform(np.log(low), np.log(high))))
            present[max(0, at + stays) : max(0, at + stays + away)] = False
            at += stays + away
        return present
    if seconds > high + 4 and rng.random() < protocol.leaves_share:
        away = int(rng.integers(low, high + 1))
        begin = int(rng.integers(2, seconds - away - 1))
        present[begin : begin + away] = False
    return present


def _sounding(protocol: Protocol, present: Flags, rng: Rng) -> Flags:
    """Walks AVISeg's chain of how many sound, and hands the sound to those who are present."""
    count, seconds = present.shape
    stays_silent = rng.random() < protocol.one_stays_silent_share
    most = count - 1 if stays_silent and count > 1 else count
    transition = np.array(protocol.sounding_transition)
    transition = transition / transition.sum(axis=1, keepdims=True)
    wanted = int(rng.choice(len(transition), p=protocol.sounding_start))
    sounding = np.zeros((count, seconds), bool)
    heard: list[int] = []
    for t in range(seconds):
        here = [k for k in range(count) if present[k, t]]
        heard = [k for k in heard if k in here]
        now = min(wanted, most, len(here))
        while len(heard) > now:
            heard.pop(int(rng.integers(len(heard))))
        while len(heard) < now:
            heard.append(_other(here, heard, rng))
        if 0 < len(heard) < len(here) and rng.random() < protocol.handover_share:
            successor = _other(here, heard, rng)
            heard[int(rng.integers(len(heard)))] = successor
        sounding[heard, t] = True
        wanted = int(rng.choice(len(transition), p=transition[min(wanted, len(transition) - 1)]))
    return sounding


def _other(here: Sequence[int], heard: Sequence[int], rng: Rng) -> int:
    free = [k for k in here if k not in heard]
    return free[int(rng.integers(len(free)))]


def _offscreen(
    protocol: Protocol, classes: Sequence[str], cast: Sequence[str], seconds: int, rng: Rng
) -> tuple[Offscreen, ...]:
    absent = [c for c in classes if c not in cast]
    sounds = []
    for t in range(seconds):
        if rng.random() < protocol.offscreen_share:
            other = not absent or rng.random() < protocol.offscreen_other_share
            sounds.append(Offscreen(t, None if other else absent[int(rng.integers(len(absent)))]))
    return tuple(sounds)
