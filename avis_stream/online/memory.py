"""What the tracker remembers of one stream: buffers of fixed size, written in place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from avis_stream.config import AVISMConfig
from avis_stream.online.schedule import Geometry
from avis_stream.ops.range_attn import wide_dtype


@dataclass(slots=True)
class TrackerMemory:
    """The tracker's state between two frames.

    Letters: `L` encoder layers, `D` decoder layers, `A` attention heads, `d` channels of a head, `S` tokens that the
    decoder may see (`Geometry.keys`), `M` video queries, `N` frame queries, `C` channels.
    """

    seen: int
    """Frames pushed so far."""
    objects: list[Tensor]
    """[L + 1] of [frames, N, C]: inputs of the encoder's layers, then its output; `Geometry.capacity` frames each."""
    heard: Tensor
    """[frames, C], projected sound; `Geometry.heard` frames."""
    tokens: Tensor
    """[S, C]: the ring, oldest frame first, then the first frames, then the anchors."""
    keys: Tensor | None
    """[D, 1, S, A, d], the decoder's keys of `tokens`; None: projected each step."""
    values: Tensor | None
    """As `keys`."""
    sink_value: Tensor
    """[D, 1, M, A, d], what each video query saw in frames that have left the ring."""
    sink_lse: Tensor
    """[D, 1, A, M], the log of its weight; -inf: nothing."""
    anchor_slot: Tensor
    """int64 [anchors], whose position each anchor's key carries."""
    key_bias: Tensor
    """[1, S], added to the decoder's scores: 0, but for anchors the log of how many tokens they stand for."""
    evidence: Tensor
    """[R], the best chance of any frame query of a frame to be an object."""

    @staticmethod
    def empty(config: AVISMConfig, geometry: Geometry, kv_cache: bool, like: Tensor) -> TrackerMemory:
        """The memory of a stream that has not begun, with the dtype and on the device of `like`."""
        tracker, channels, slots = config.tracker, config.channels, geometry.slots
        heads, width, wide = tracker.heads, config.channels // tracker.heads, wide_dtype(like)
        layers, queries, keys = tracker.decoder_layers, tracker.queries, geometry.keys
        cache = [like.new_zeros(layers, 1, keys, heads, width) if kv_cache else None for _ in range(2)]
        bias = like.new_zeros(1, keys, dtype=wide)
        bias[:, keys - geometry.anchors :] = -torch.inf
        return TrackerMemory(
            seen=0,
            objects=[like.new_zeros(frames, slots, channels) for frames in geometry.capacity],
            heard=like.new_zeros(geometry.heard, channels),
            tokens=like.new_zeros(keys, channels),
            keys=cache[0],
            values=cache[1],
            sink_value=like.new_zeros(layers, 1, queries, heads, width, dtype=wide),
            sink_lse=like.new_full((layers, 1, heads, queries), -torch.inf, dtype=wide),
            anchor_slot=torch.zeros(geometry.anchors, dtype=torch.int64, device=like.device),
            key_bias=bias,
            evidence=like.new_zeros(geometry.ring, dtype=wide),
        )

    def scroll(self, geometry: Geometry, *, keep_first: bool) -> None:
        """Moves everything on by one window: the oldest page leaves, room for the next one appears.

        Args:
            geometry: As the memory was made with.
            keep_first: Copy the first frames of the page that leaves to where they stay.
        """
        window, page, ring = geometry.window, geometry.window * geometry.slots, geometry.ring * geometry.slots
        decoder_keys = [self.tokens.unsqueeze(0).unsqueeze(0)]
        decoder_keys += [cache for cache in (self.keys, self.values) if cache is not None]
        for cache in decoder_keys:  # [D or 1, 1, S, ...]
            if keep_first:
                kept = geometry.first_frames * geometry.slots
                cache[:, :, ring : ring + kept] = cache[:, :, :kept]
            _scroll(cache[:, :, :ring].movedim(2, 0), page)
        for buffer in (*self.objects, self.heard, self.evidence):
            _scroll(buffer, window)

    def reset_sinks(self, query: int) -> None:
        """Lets one video query forget what has left the ring; no other query's attention changes."""
        self.sink_value[:, :, query] = 0
        self.sink_lse[..., query] = -torch.inf

    def anchor(self, place: int, token: Tensor, slot: int, log_count: float) -> None:
        """Makes a token visible for ever.

        Args:
            place: Which anchor, from 0.
            token: [C], an object token.
            slot: The frame query it came from; its position goes into the key.
            log_count: Log of how many such tokens it stands for; -inf removes it.
        """
        first = self.tokens.shape[0] - len(self.anchor_slot)
        self.tokens[first + place] = token
        self.anchor_slot[place] = slot
        self.key_bias[0, first + place] = log_count


def _scroll(buffer: Tensor, step: int) -> None:
    """Moves a buffer's rows towards its beginning by `step`, in place; the last `step` rows keep old values.

    Row by row of `step`, since source and target of a copy must not overlap.
    """
    edges = [*range(0, len(buffer) - step, step), max(0, len(buffer) - step)]
    for start, stop in pairwise(edges):
        buffer[start:stop] = buffer[start + step : stop + step]
