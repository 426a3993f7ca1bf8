"""The sound of a scene: every sounding second holds energy of its source, every second holds room tone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avis_stream.synth.library import Library, Rng, Sound
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.story import Flags, Story

RATE = 16_000
_FADE = RATE // 50
Wave = NDArray[np.float32]


def mix(story: Story, library: Library, protocol: Protocol, rng: Rng) -> Wave:
    """The waveform of a story, float32 [T * 16000] in [-1, 1]."""
    mixed = room_tone(story.seconds * RATE, protocol, rng)
    for actor in story.actors:
        if actor.sounding.any():
            voice = library.sound(actor.class_name, rng)
            level = gain(rng.uniform(*protocol.object_dbfs))
            for begin, end in runs(actor.sounding):
                mixed[begin * RATE : end * RATE] += level * fill(voice, (end - begin) * RATE, rng)
    for outside in story.offscreen:
        begin = outside.second * RATE
        level = gain(rng.uniform(*protocol.object_dbfs))
        mixed[begin : begin + RATE] += level * fill(library.sound(outside.class_name, rng), RATE, rng)
    return np.clip(mixed, -1, 1)


def room_tone(samples: int, protocol: Protocol, rng: Rng) -> Wave:
    """Noise whose colour and level differ from room to room, at times with a mains hum."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.arange(len(spectrum)) * RATE / samples + 30.0
    tone = np.fft.irfft(spectrum / frequency ** rng.uniform(0.0, 1.2), n=samples)
    tone /= tone.std() + 1e-9
    if rng.random() < 0.2:
        hum = rng.choice([50.0, 60.0, 100.0, 120.0])
        tone += rng.uniform(0.2, 1.5) * np.sin(2 * np.pi * hum * np.arange(samples) / RATE)
    tone *= gain(rng.uniform(*protocol.room_tone_dbfs)) / (tone.std() + 1e-9)
    quiet: Wave = tone.astype(np.float32)
    return quiet


def runs(flags: Flags) -> list[tuple[int, int]]:
    """Half-open stretches in which flags [T] are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def fill(voice: Sound, samples: int, rng: Rng) -> Wave:
    """A stretch of a recording, from one of its loud places on, begun again whenever it ends or falls silent."""
    filled = np.zeros(samples, np.float32)
    at = 0
    while at < samples:
        start = int(voice.loud[rng.integers(len(voice.loud))])
        after = voice.loud[voice.loud >= start]
        # Up to the end of the loud stretch that begins here: a pause may be as long as a breath, not a second.
        gap = np.flatnonzero(np.diff(after) > RATE // 3)
        last = int(after[gap[0]] if len(gap) else after[-1]) + RATE // 4
        piece = voice.samples[start : min(last, start + samples - at)].copy()
        ramp = min(_FADE, len(piece) // 2)
        if ramp:
            fade = np.linspace(0, 1, ramp, dtype=np.float32)
            piece[:ramp] *= fade
            piece[-ramp:] *= fade[::-1]
        filled[at : at + len(piece)] = piece
        at += len(piece) + int(rng.integers(0, RATE // 8))
    return filled


def gain(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))
