"""A frame and its second of sound through the localizer: all that is done before time comes in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avis_stream.checks import check_finite, check_shape, require
from avis_stream.config import AVISMConfig, InputConfig
from avis_stream.models.avism import AVISM, FrameTokens
from avis_stream.models.localizer import FramePrediction
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.preprocess import network_input, network_size
from avis_stream.online.door import FrameInput
from avis_stream.online.state import LastQueries
from avis_stream.online.tracking import Arrival

MASK_STRIDE = 4
"""Of mask features, in pixels of the padded input."""


@dataclass(frozen=True, slots=True)
class FrameAnswer:
    """What the frame queries of a frame say, besides themselves."""

    features: Tensor
    """[Cm, h, w], mask features at stride 4."""
    chance: Tensor | None
    """[N], of each frame query to sound, or to be an object if the model does not say; None: nothing is said."""
    mask_embed: Tensor | None = None
    """[N, Cm], of each frame query's own mask, where objects are drawn by these."""
    logits: Tensor | None = None
    """[N, K + 1], classes; the last is "no object"; None where frame queries are not the objects."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the localizer made of one frame of a stream."""

    arrival: Arrival
    answer: FrameAnswer
    sizes: MaskSizes
    silent: bool
    """The second of sound holds next to nothing."""


class Eye:
    """The localizer of a model, for frames of any size.

    Args:
        model: Prepared for inference.
        silence_dbfs: A second with less power is silent; None: none is.
        input_config: How pictures are brought to the network's size; None: as the model's streams are.
    """

    def __init__(self, model: AVISM, silence_dbfs: float | None, input_config: InputConfig | None = None) -> None:
        self.model = model
        self._input = input_config or model.config.input
        self._least_power = None if silence_dbfs is None else 10 ** (silence_dbfs / 10)

    def sizes(self, frame_size: tuple[int, int]) -> MaskSizes:
        """The sizes that a mask on a picture of (height, width) goes through."""
        network = network_size(*frame_size, self._input)
        height, width = (side + -side % self._input.size_divisor for side in network)
        return MaskSizes((height, width), network, frame_size)

    def feature_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Size (h, w) of the mask features of a picture of (height, width)."""
        height, width = self.sizes(frame_size).padded
        return height // MASK_STRIDE, width // MASK_STRIDE

    def features_of(self, frame: Tensor) -> Tensor:
        """Mask features [Cm, h, w] of a picture, uint8 [3, H, W], alone.

        Raises:
            ShapeError: They are not finite.
        """
        features = self.model.drawing_features(self._prepared([frame]))[0]
        _check_answer("clip mask features", features)
        return features

    def look_again(
        self,
        frame: Tensor,
        last: LastQueries,
        seconds: Tensor,
        valid_samples: int,
        previous: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Mask features [Cm, h, w] of a picture, and the chance [N] of earlier frame queries to sound at its time.

        Args:
            frame: uint8 [3, H, W].
            last: Whom to ask.
            seconds: float32 [SAMPLE_RATE], the second that ends with it.
            valid_samples: How many of them were there.
            previous: uint8 [3, H, W], the picture 100 ms before; None: no motion cue, as in a step.

        Raises:
            ShapeError: They are not finite.
        """
        sound = self.model.hear(seconds[None], torch.tensor([valid_samples]))
        before = None
        if self.model.wants_previous and previous is not None:
            before = self._prepared([previous])
        found = FramePrediction(last.queries[None], last.logits[None], last.mask_embed[None])
        features, chance = self.model.asked_again(self._prepared([frame]), sound, found, before)
        _check_answer("clip mask features", features)
        _check_answer("sounding", chance)
        return features[0], chance[0]

    def look_at(self, given: Sequence[FrameInput]) -> list[Seen]:
        """Hears and localizes frames; those of one size go together, with or without a picture before.

        Raises:
            ShapeError: What came out of it is not finite.
        """
        model = self.model
        valid = torch.tensor([own.valid_samples for own in given])
        if not given:
            return []
        sound = model.hear(torch.stack([own.seconds for own in given]), valid)
        _check_answer("sound features", sound)
        alike: dict[tuple[tuple[int, int], bool], list[int]] = defaultdict(list)
        for n, own in enumerate(given):
            alike[own.size, model.wants_previous and own.previous is not None].append(n)
        found: dict[int, Seen] = {}
        for (size, _), members in alike.items():
            sizes = self.sizes(size)
            for first in range(0, len(members), model.frames_at_once):
                some = members[first : first + model.frames_at_once]
                tokens = self._localize([given[n] for n in some], sound[some])
                for place, n in enumerate(some):
                    found[n] = self._seen(given[n], tokens, place, sound[n], sizes)
        return [found[n] for n in range(len(given))]

    def _localize(self, given: Sequence[FrameInput], sound: Tensor) -> FrameTokens:
        """Frames that all have a picture before, or of which none is to be compared with one."""
        earlier = [own.previous for own in given if own.previous is not None]
        before = self._prepared(earlier) if self.model.wants_previous and earlier else None
        tokens = self.model.localize(self._prepared([own.image for own in given]), sound, before)
        for name in ("frame_queries", "logits", "mask_embed", "sounding", "clip_mask_features"):
            if (values := getattr(tokens, name)) is not None:
                _check_answer(name.replace("_", " "), values)
        return tokens

    def _prepared(self, pictures: Sequence[Tensor]) -> Tensor:
        return network_input(torch.stack([picture.cpu() for picture in pictures]), self._input, self.model.device)

    def _seen(self, given: FrameInput, tokens: FrameTokens, place: int, sound: Tensor, sizes: MaskSizes) -> Seen:
        thing = 1 - tokens.logits[place].softmax(-1)[:, -1]
        chance = thing if tokens.sounding is None else tokens.sounding[place]
        arrival = Arrival(tokens.frame_queries[place][None], sound[None], thing.max()[None])
        embed = None if tokens.mask_embed is None else tokens.mask_embed[place]
        answer = FrameAnswer(tokens.clip_mask_features[place], chance, embed, tokens.logits[place])
        return Seen(arrival, answer, sizes, self.is_silent(given.seconds))

    def is_silent(self, seconds: Tensor) -> bool:
        """Whether a second of sound, float32 [SAMPLE_RATE], holds next to nothing."""
        power = seconds.double().square().mean()
        return self._least_power is not None and bool(power < self._least_power)


def check_features(
    config: AVISMConfig, slots: int, frame_queries: Tensor, audio_features: Tensor, last: FrameAnswer
) -> None:
    """Raises ShapeError unless what a localizer made of n >= 1 frames is as the tracker wants it, and finite.

    One NaN would stay in the memory for as long as the stream lasts.

    Args:
        config: Of the model.
        slots: Frame queries a frame, N.
        frame_queries: [n, N, C].
        audio_features: [n, A].
        last: Of the last frame.
    """
    check_shape(frame_queries, "frame_queries", "n N C", N=slots, C=config.channels)
    require(len(frame_queries) >= 1, "frame_queries", len(frame_queries), "at least one frame")
    check_shape(audio_features, "audio_features", "n A", n=len(frame_queries), A=config.audio.feature_dim)
    check_shape(last.features, "clip_mask_features", "Cm h w", Cm=config.drawn_channels)
    if last.chance is not None:
        check_shape(last.chance, "sounding", "N", N=slots)
    if last.mask_embed is not None:
        check_shape(last.mask_embed, "mask_embed", "N Cm", N=slots, Cm=config.drawn_channels)
    if last.logits is not None:
        check_shape(last.logits, "logits", "N K", N=slots, K=len(config.classes) + 1)
    given = {
        "frame_queries": frame_queries, "clip_mask_features": last.features, "audio_features": audio_features,
        "sounding": last.chance, "mask_embed": last.mask_embed, "logits": last.logits,
    }  # fmt: skip
    for name, values in given.items():
        if values is not None:
            check_finite(values, name, "leave the frame out, or look for what broke the localizer")


def _check_answer(name: str, values: Tensor) -> None:
    """Refuses what would stay in the tracker's memory for as long as a stream lasts, and make up identities from it.

    Of mask features nothing would be drawn, as if everything were silent.
    """
    check_finite(values, f"the model's {name}", "its weights are broken, or half precision overflowed: load others, "
                 "or compute in float32")  # fmt: skip
