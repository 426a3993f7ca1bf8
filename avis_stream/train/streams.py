"""Training of the tracker's memory on streams: frames are localized once and kept, only the tracker learns.

A step takes a stretch of each stream, of random length, as the tracker would have it at that moment: the last frames in
its ring, those before them folded into its sinks by the online path itself. Gradients reach back through the ring and
stop at the sinks (truncated back-propagation); sinks are left out at times, so that neither memory is leant on alone.
Source: ADR 0008.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.config import LossConfig, TrainConfig
from avis_stream.models.avism import AVISM
from avis_stream.models.localizer import DecoderLayer
from avis_stream.models.preprocess import normalise_and_pad
from avis_stream.models.sounding import motion_between
from avis_stream.models.tracker import ClipPrediction, Tracker
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.tracking import Arrival, StreamTracker, merge_partials
from avis_stream.ops import range_attn
from avis_stream.ops.ranges import whole_plan
from avis_stream.train.batch import ClipSample, pad_masks
from avis_stream.train.batches import batches
from avis_stream.train.clip_losses import FoundInFrame, LocalizedClips, losses_of_answers, weighted
from avis_stream.train.kept import load_kept, save_kept
from avis_stream.train.losses import Targets
from avis_stream.train.matcher import match
from avis_stream.train.points import DrawPoints, random_points
from avis_stream.train.source import Source

ALL_BUT_THE_TRACKER = ("backbone.", "pixel_decoder.", "localizer.", "clip_mask_features.")
"""What does not learn from streams: their frames were localized long ago."""

_AT_ONCE = 8
"""Frames localized together."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalizedStream:
    """What the tracker gets of a stream of T frames, and what is true of it."""

    queries: Tensor
    """float16 [T, N, C]."""
    audio: Tensor
    """float32 [T, A]."""
    mask_features: Tensor
    """float16 [T, Cm, h, w] at stride 8, half the network's: a stream of a minute takes 8 MB instead of 32."""
    found: tuple[FoundInFrame, ...]
    """[T]."""
    labels: Tensor
    """int64 [G]."""
    masks: Tensor
    """bool [G, T, h, w] at stride 8."""
    sounding: Tensor | None
    """bool [G, T]."""
    chance: Tensor | None
    """float32 [T, N], each frame query's chance of sounding; None without a sounding head."""
    name: str

    def to(self, device: torch.device) -> LocalizedStream:
        """The same on a device."""
        found = tuple(FoundInFrame(f.query.to(device), f.ids.to(device)) for f in self.found)
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, found=found, **moved)


def save_streams(path: Path, streams: Sequence[LocalizedStream], of: str) -> None:
    """Keeps streams as plain tensors; `of` says what they are, in words."""
    plain = [
        {f.name: getattr(s, f.name) for f in fields(s)} | {"found": [(f.query, f.ids) for f in s.found]}
        for s in streams
    ]
    save_kept(path, "streams", plain, of)


def load_streams(path: Path, of: str) -> list[LocalizedStream]:
    """The streams that `save_streams` kept.

    Raises:
        CheckpointError: They cannot be read, or are others than `of`.
    """
    return load_kept(path, "streams", lambda plain: [_stream_of(s) for s in plain], of)


def _stream_of(plain: dict[str, Any]) -> LocalizedStream:
    return LocalizedStream(**plain | {"found": tuple(FoundInFrame(*pair) for pair in plain["found"])})


@torch.no_grad()
def localized(model: AVISM, sample: ClipSample, config: LossConfig, draw: DrawPoints) -> LocalizedStream:
    """Lets the localizer see every frame of a stream, and finds out which of its queries answer for what."""
    if not model.config.localizer.sounding_head:
        sample = sample.sounding_alone()
    heard = model.hear(sample.seconds, sample.there) if sample.features is None else sample.features
    queries, features, chances, found = [], [], [], []
    for first in range(0, len(sample.images), _AT_ONCE):
        part = sample.part(slice(first, first + _AT_ONCE))
        images = normalise_and_pad(part.images, model.config.input)
        motion = None
        if model.wants_previous and part.previous is not None:
            motion = motion_between(images, normalise_and_pad(part.previous, model.config.input))
        seen = model.pixel_decoder(model.backbone(images))
        answer = model.localizer(seen, heard[first : first + _AT_ONCE], motion).heads[-1]
        queries.append(answer.queries.half())
        features.append(F.avg_pool2d(model.clip_mask_features(seen.stride4), 2).half())
        if answer.sounding is not None:
            chances.append(answer.sounding.sigmoid())
        masks = torch.einsum("tnc,tchw->tnhw", answer.mask_embed, seen.mask_features)[:, :, None]
        targets = part.frame_targets((images.shape[-2], images.shape[-1]))
        for logits, own, target in zip(answer.logits, masks, targets, strict=True):
            pairs = match(logits, own, target.labels, target.masks, config, draw)
            found.append(FoundInFrame(pairs.query, target.ids[pairs.target]))
    small = F.interpolate(
        pad_masks(sample.masks, (images.shape[-2], images.shape[-1])).float(), features[0].shape[-2:], mode="area"
    )
    return LocalizedStream(
        torch.cat(queries), heard, torch.cat(features), tuple(found), sample.labels, small >= 0.5, sample.sounding,
        torch.cat(chances) if chances else None, sample.name,
    )  # fmt: skip


def localized_streams(model: AVISM, source: Source[ClipSample], config: TrainConfig) -> Iterator[LocalizedStream]:
    """The first `config.streams.count` clips of a source, seen by a model; yields as it goes."""
    draw, seer = random_points(model.device), copy.deepcopy(model).prepare_for_inference()
    for samples in batches(source, 1, range(config.streams.count)):
        yield localized(seer, samples[0].to(model.device), config.losses, draw)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A stream from one frame to another, as the tracker would have lived through it."""

    stream: LocalizedStream
    begin: int
    end: int
    """The frame after the last."""
    remembers: bool
    """Whether what has left the ring is in the sinks."""
    mask_frames: tuple[int, ...]
    """Frames of the stream on which masks are compared."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.stream.name}, frames {self.begin} to {self.end - 1}"

    def to(self, device: torch.device) -> Stretch:
        """The same on a device."""
        return replace(self, stream=self.stream.to(device))


class Stretches:
    """Random stretches of kept streams, numbered; those of one step are equally long."""

    def __init__(self, streams: Sequence[LocalizedStream], config: TrainConfig) -> None:
        self._streams, self._config = streams, config

    def clip(self, number: int) -> Stretch:
        """Stretch `number`."""
        config, own = self._config, self._config.streams
        rng = np.random.default_rng([config.seed, 3, number // config.clips])
        length = int(rng.integers(1, config.frames + 1))
        remembers = bool(rng.random() >= own.sink_dropout)
        rng = np.random.default_rng([config.seed, 4, number])
        stream = self._streams[int(rng.integers(len(self._streams)))]
        begin = int(rng.integers(0, config.frames - length + 1))
        frames = rng.choice(length, min(length, own.mask_frames), replace=False)
        return Stretch(stream, begin, begin + length, remembers, tuple(sorted(begin + int(t) for t in frames)))


class StreamLosses(nn.Module):
    """The tracker with its losses around it, on stretches of streams."""

    def __init__(self, model: AVISM, config: TrainConfig) -> None:
        super().__init__()
        self.tracker, self.config = model.tracker, config
        self._online = StreamTracker(model.tracker, OnlineConfig(max_anchors=0))
        self._model_config = model.config

    def forward(self, stretches: Sequence[Stretch], draw: DrawPoints) -> dict[str, Tensor]:
        """Runs stretches of one length; losses unweighted by name, and their weighted sum as `total`."""
        length = stretches[0].end - stretches[0].begin
        window = self._online.geometry.window
        first = max(0, (length - 1) // window * window - self._online.geometry.ring + window)  # of the ring
        tokens = self._tokens(stretches, first)
        sinks = self._sinks(stretches, length) if first and stretches[0].remembers else None
        answers = answers_with_sinks(self.tracker, tokens, sinks)
        losses = losses_of_answers(self.tracker, answers, tokens, _truth(stretches, first), self.config.losses, draw)
        losses["total"] = weighted(losses, self.config.losses)
        return losses

    def _tokens(self, stretches: Sequence[Stretch], first: int) -> Tensor:
        """Object tokens [V, R, N, C] of the frames in the ring, with gradients.

        The encoder begins some windows earlier: as far as a token's neighbourhood reaches back.
        """
        geometry = self._online.geometry
        reach = geometry.window * (-(-geometry.layers // 2) + 1)
        early = max(0, first - reach)
        queries = torch.stack([s.stream.queries[s.begin + early : s.end].float() for s in stretches])
        audio = torch.stack([s.stream.audio[s.begin + early : s.end] for s in stretches])
        tokens: Tensor = self.tracker.fuse(self.tracker.encode(queries), audio)[:, first - early :]
        return tokens

    @torch.no_grad()
    def _sinks(self, stretches: Sequence[Stretch], length: int) -> list[tuple[Tensor, Tensor]]:
        """What each decoder layer's queries keep of the frames before the ring: values [V, M, A, d], lse [V, A, M]."""
        like, window = self.tracker.query_feat.weight, self._online.geometry.window
        memories = [TrackerMemory.empty(self._model_config, self._online.geometry, True, like) for _ in stretches]
        self.tracker.eval()  # online, odd layers are always shifted
        with torch.autocast(like.device.type, enabled=False):  # and memories are float32
            for at in range(0, (length - 1) // window * window, window):
                arrivals = [
                    Arrival(s.stream.queries[part].float(), s.stream.audio[part])
                    for s in stretches
                    for part in [slice(s.begin + at, s.begin + at + window)]
                ]
                self._online.answer(memories, self._online.push(memories, arrivals))
        self.tracker.train(self.training)
        return [
            (torch.cat([m.sink_value[n] for m in memories]), torch.cat([m.sink_lse[n] for m in memories]))
            for n in range(len(self.tracker.decoder))
        ]


def answers_with_sinks(
    tracker: Tracker, tokens: Tensor, sinks: Sequence[tuple[Tensor, Tensor]] | None
) -> list[ClipPrediction]:
    """`Tracker.decode` with something to remember: the same maths as `StreamTracker.answer`, with gradients.

    Args:
        tracker: Whose decoder.
        tokens: [V, R, N, C].
        sinks: Of each decoder layer, values [V, M, A, d] and log weights [V, A, M]; None: nothing.
    """
    value, key = tokens.flatten(1, 2), (tokens + tracker.fq_pos.weight).flatten(1, 2)
    embed = tracker.query_embed.weight
    state = tracker.query_feat.weight.expand(len(tokens), -1, -1)
    plan = whole_plan(len(embed), value.shape[1])
    predictions = []
    for number, layer in enumerate(tracker.decoder):
        assert isinstance(layer, DecoderLayer)
        attn = layer.cross_attn.attn
        (q,), (k,), (v,) = attn.project(state + embed, "q"), attn.project(key, "k"), attn.project(value, "v")
        looked, lse = range_attn(q, k, v, plan.q_starts, plan.k_ranges, return_lse=True)
        if sinks is not None:
            looked, _ = merge_partials(sinks[number], (looked, lse))
        state = layer.exchange(layer.cross_attn.norm(state + attn.merge(looked)), embed)
        predictions.append(tracker.predict(state))
    return predictions


def _truth(stretches: Sequence[Stretch], first: int) -> LocalizedClips:
    """What is true of stretches whose ring begins with frame `first` of them."""
    targets, found = [], []
    for s in stretches:
        stream, ring = s.stream, slice(s.begin + first, s.end)
        masks = stream.masks[:, list(s.mask_frames)]
        kept = masks.flatten(1).any(dim=1) | stream.masks[:, ring].flatten(1).any(dim=1)
        sounding = None if stream.sounding is None else stream.sounding[kept, ring]
        targets.append(Targets(stream.labels[kept], masks[kept], kept.nonzero()[:, 0], sounding))
        found.append(list(stream.found[ring]))
    chances = [s.stream.chance[s.begin + first : s.end] for s in stretches if s.stream.chance is not None]
    return LocalizedClips(
        queries=torch.stack([s.stream.queries[s.begin + first : s.end].float() for s in stretches]),
        audio=torch.stack([s.stream.audio[s.begin + first : s.end] for s in stretches]),
        mask_features=torch.stack([s.stream.mask_features[list(s.mask_frames)].float() for s in stretches]),
        targets=targets,
        found=found,
        chance=torch.stack(chances) if chances else None,
    )
