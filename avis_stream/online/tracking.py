"""The tracker over streams: frames in, video queries out, through memories of fixed size.

Several streams go through each linear layer together, whatever their phases; attention stays within a stream.
Source: ADR 0201; split softmax from FlashDecoding; sinks that hold a weighted sum instead of a token are new to us.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from avis_stream.models.localizer import DecoderLayer
from avis_stream.models.tracker import ClipPrediction, Tracker, WindowLayer
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.schedule import Geometry, LayerPart, PushPlan, joined, least_pages, plan_push
from avis_stream.ops import kv_write_, range_attn_paged
from avis_stream.ops.ranges import AttentionPlan, Range

_DEFAULT_PAGES = 6
"""At a step a second, so 36 s with the published windows of 6 frames."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """New frames of one stream, all of one window."""

    frame_queries: Tensor
    """[n, N, C]."""
    audio: Tensor
    """[n, feature_dim]."""
    evidence: Tensor | None = None
    """[n], the best chance of any frame query to be an object, for `sink_write_gate`; None: certain."""

    def part(self, first: int, stop: int) -> Arrival:
        """The frames from `first` to `stop`."""
        evidence = None if self.evidence is None else self.evidence[first:stop]
        return Arrival(self.frame_queries[first:stop], self.audio[first:stop], evidence)


def geometry_of(tracker: Tracker, config: OnlineConfig) -> Geometry:
    """The sizes of a stream's memory.

    Raises:
        ConfigError: The model has no windows, or the ring is too short for them.
    """
    window, layers = tracker.config.token_window, tracker.config.encoder_layers
    if config.ring_seconds is None or window == 0:
        pages = max(math.ceil(_DEFAULT_PAGES / config.hop_seconds - 1e-9), least_pages(layers))
    else:
        pages = math.ceil(config.ring_seconds / config.hop_seconds / window - 1e-9)
    return Geometry(
        window=window,
        layers=layers,
        pages=pages,
        slots=tracker.fq_pos.num_embeddings,
        first_frames=min(config.first_frames, window) if config.sinks == "first" else 0,
        anchors=config.max_anchors,
        frozen=config.encoder == "frozen",
    )


class StreamTracker:
    """Pushes frames into memories and asks them; holds no state of any stream."""

    def __init__(self, tracker: Tracker, config: OnlineConfig) -> None:
        self.tracker = tracker
        self.config = config
        self.geometry = geometry_of(tracker, config)
        window_seconds = self.geometry.window * config.hop_seconds
        self._log_decay = 0.0 if config.half_life_s is None else -math.log(2) * window_seconds / config.half_life_s

    @torch.no_grad()
    def push(self, memories: Sequence[TrackerMemory], arrivals: Sequence[Arrival]) -> list[PushPlan]:
        """Encodes new frames of each stream and writes them into its memory.

        Args:
            memories: Of different streams, each at a time of its own.
            arrivals: As many.
        Returns:
            What was done, for `answer`.
        """
        plans = [
            plan_push(self.geometry, m.seen, m.seen + len(a.frame_queries) - 1)
            for m, a in zip(memories, arrivals, strict=True)
        ]
        for memory, plan in zip(memories, plans, strict=True):
            if plan.scroll:
                memory.scroll(self.geometry, keep_first=plan.keep_first)
        self._receive(memories, arrivals, plans)
        for number, layer in enumerate(self.tracker.encoder):
            assert isinstance(layer, WindowLayer)
            self._encode(layer, number, memories, [plan.encoder[number] for plan in plans])
        tokens = [
            own if heard is None else own + heard[:, None]
            for own, heard in zip(
                [m.objects[-1][slice(*p.fused)] for m, p in zip(memories, plans, strict=True)],
                self._listen(memories, plans),
                strict=True,
            )
        ]
        self._remember(memories, plans, tokens)
        for memory, arrival in zip(memories, arrivals, strict=True):
            memory.seen += len(arrival.frame_queries)
        return plans

    @torch.no_grad()
    def answer(self, memories: Sequence[TrackerMemory], plans: Sequence[PushPlan]) -> ClipPrediction:
        """What the video queries of each stream say after a push; folds a page that is about to leave.

        Once after each push at the end of a window, or the page is lost; at most once after each push.
        """
        tracker = self.tracker
        embed = tracker.query_embed.weight
        state = tracker.query_feat.weight.expand(len(memories), -1, -1)
        for number, layer in enumerate(tracker.decoder):
            assert isinstance(layer, DecoderLayer)
            attn = layer.cross_attn.attn
            (query,) = attn.project(state + embed, "q")  # [B, M, A, d]
            looked = [
                self._look(number, query[b : b + 1], memory, plan)
                for b, (memory, plan) in enumerate(zip(memories, plans, strict=True))
            ]
            state = layer.cross_attn.norm(state + attn.merge(torch.cat(looked)))
            state = layer.exchange(state, embed)
        return tracker.predict(state)

    def tokens_of_newest(self, memory: TrackerMemory, plan: PushPlan) -> Tensor:
        """Object tokens [N, C] of the frame pushed last."""
        slots = self.geometry.slots
        return memory.tokens[plan.newest * slots : (plan.newest + 1) * slots]

    def _receive(
        self, memories: Sequence[TrackerMemory], arrivals: Sequence[Arrival], plans: Sequence[PushPlan]
    ) -> None:
        projected = self.tracker.input_proj_dec(torch.cat([a.frame_queries for a in arrivals]))
        counts = [len(a.frame_queries) for a in arrivals]
        for memory, plan, new in zip(memories, plans, projected.split(counts), strict=True):
            memory.objects[0][slice(*plan.new)] = new
        if self.tracker.audio_proj is not None:
            heard = self.tracker.audio_proj(torch.cat([a.audio for a in arrivals]))
            for memory, plan, new in zip(memories, plans, heard.split(counts), strict=True):
                memory.heard[slice(*plan.heard_new)] = new
        for memory, plan, arrival in zip(memories, plans, arrivals, strict=True):
            place = slice(plan.newest + 1 - len(arrival.frame_queries), plan.newest + 1)
            memory.evidence[place] = 1.0 if arrival.evidence is None else arrival.evidence.to(memory.evidence.dtype)

    def _encode(
        self, layer: WindowLayer, number: int, memories: Sequence[TrackerMemory], parts: Sequence[LayerPart]
    ) -> None:
        inputs = [m.objects[number] for m in memories]
        queries = _tokens([x[slice(*p.queries)] for x, p in zip(inputs, parts, strict=True)])
        same = all(p.queries == p.keys for p in parts)
        keys = queries if same else _tokens([x[slice(*p.keys)] for x, p in zip(inputs, parts, strict=True)])
        changed = layer(queries, keys, self._joined(parts))[0].unflatten(0, (-1, self.geometry.slots))
        for memory, part, new in zip(memories, parts, changed.split([_length(p.outputs) for p in parts]), strict=True):
            memory.objects[number + 1][slice(*part.outputs)] = new

    def _listen(self, memories: Sequence[TrackerMemory], plans: Sequence[PushPlan]) -> list[Tensor | None]:
        """What the sound of the changed frames finds, [frames, C] a stream."""
        if self.tracker.audio_proj is None:
            return [None] * len(memories)
        first = [plan.fusion[0] for plan in plans]
        heard = torch.cat([m.heard[slice(*p.queries)] for m, p in zip(memories, first, strict=True)])[None]
        keys = _tokens([m.objects[-1][slice(*p.keys)] for m, p in zip(memories, first, strict=True)])
        for number, layer in enumerate(self.tracker.fusion):
            heard = layer(heard, keys, self._joined([plan.fusion[number] for plan in plans]))
        return list(heard[0].split([_length(p.queries) for p in first]))

    def _joined(self, parts: Sequence[LayerPart]) -> AttentionPlan:
        return joined([p.plan for p in parts], [_length(p.keys) * self.geometry.slots for p in parts])

    def _remember(self, memories: Sequence[TrackerMemory], plans: Sequence[PushPlan], tokens: Sequence[Tensor]) -> None:
        slots = self.geometry.slots
        for memory, plan, new in zip(memories, plans, tokens, strict=True):
            memory.tokens[plan.ring[0] * slots : plan.ring[1] * slots] = new.flatten(0, 1)
        if memories[0].keys is None:
            return
        value = _tokens(tokens)
        key = _tokens([new + self.tracker.fq_pos.weight for new in tokens])
        counts = [new.shape[0] * slots for new in tokens]
        for number in range(len(self.tracker.decoder)):
            k, v = self._project(number, key, value)
            for memory, plan, own_k, own_v in zip(
                memories, plans, k.split(counts, dim=1), v.split(counts, dim=1), strict=True
            ):
                assert memory.keys is not None
                assert memory.values is not None
                kv_write_(memory.keys[number], memory.values[number], own_k, own_v, plan.ring[0] * slots)

    def _project(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, n, A, d] of a decoder layer, of tokens [1, n, C] with and without position."""
        layer = self.tracker.decoder[number]
        assert isinstance(layer, DecoderLayer)
        attn = layer.cross_attn.attn
        return attn.project(key, "k")[0], attn.project(value, "v")[0]

    def _look(self, number: int, query: Tensor, memory: TrackerMemory, plan: PushPlan) -> Tensor:
        """Cross-attention of queries [1, M, A, d] over everything that a stream remembers."""
        keys, values = self._keys(number, memory)
        initial = None
        if self.config.sinks == "per_query":
            initial = memory.sink_value[number], memory.sink_lse[number]
        # Without anchors the bias is 0 everywhere.
        bias = memory.key_bias if self.geometry.anchors else None
        pages = page_table(plan.pages, query.device)
        looked, _, page_value, page_lse = range_attn_paged(query, keys, values, pages, bias, initial)
        if plan.fold and initial is not None:
            self._fold(number, memory, page_value[0], page_lse[0])
        return looked

    def _keys(self, number: int, memory: TrackerMemory) -> tuple[Tensor, Tensor]:
        slots, anchors = self.geometry.slots, self.geometry.anchors
        first_anchor = memory.tokens.shape[0] - anchors
        if memory.keys is not None and memory.values is not None:
            if anchors:  # few, and pinning knows no weights
                token = memory.tokens[first_anchor:]
                position = self.tracker.fq_pos.weight[memory.anchor_slot]
                k, v = self._project(number, (token + position)[None], token[None])
                kv_write_(memory.keys[number], memory.values[number], k, v, first_anchor)
            return memory.keys[number], memory.values[number]
        position = self.tracker.fq_pos.weight.repeat(first_anchor // slots, 1)
        position = torch.cat([position, self.tracker.fq_pos.weight[memory.anchor_slot]])
        return self._project(number, (memory.tokens + position)[None], memory.tokens[None])

    def _fold(self, number: int, memory: TrackerMemory, page_value: Tensor, page_lse: Tensor) -> None:
        """Merges what the queries saw in the oldest page into their sinks."""
        gate = self.config.sink_write_gate
        if gate is not None:  # as a value, not as a branch: a captured graph must not depend on it
            passes = memory.evidence[: self.geometry.window].max() > gate
            page_lse = torch.where(passes, page_lse, -torch.inf)
        value, lse = merge_partials(
            (memory.sink_value[number], memory.sink_lse[number] + self._log_decay), (page_value, page_lse)
        )
        memory.sink_value[number] = value
        memory.sink_lse[number] = lse


def page_table(pages: tuple[Range, ...], device: torch.device) -> Tensor:
    """Pages as int32 [P, 2] on a device: made once, since a captured CUDA graph may not copy from the host."""
    if torch.compiler.is_compiling():  # what a tracer makes is not to be kept
        return torch.tensor(pages, dtype=torch.int32, device=device)
    return _kept_page_table(pages, device)


@lru_cache(maxsize=1024)
def _kept_page_table(pages: tuple[Range, ...], device: torch.device) -> Tensor:
    return torch.tensor(pages, dtype=torch.int32, device=device)


def merge_partials(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from that over each.

    Args:
        a: Value [B, M, A, d] and lse [B, A, M].
        b: The same over other keys; an lse of -inf means no keys.
    """
    lse = torch.logaddexp(a[1], b[1])
    finite = torch.where(lse == -torch.inf, 0, lse)  # nothing on either side: shares of 0, not NaN
    shares = [torch.exp(part - finite).transpose(-1, -2)[..., None] for part in (a[1], b[1])]  # [B, M, A, 1]
    return a[0] * shares[0] + b[0] * shares[1], lse


def ring_frame(geometry: Geometry, seen: int, ago: int) -> int:
    """Which frame of the ring was pushed `ago` frames before the last, after `seen` frames in all."""
    return geometry.ring - geometry.window + (seen - 1) % geometry.window - ago


def _tokens(frames: Sequence[Tensor]) -> Tensor:
    """Tokens [frames, N, C] of several streams, one after the other: [1, n, C]."""
    return torch.cat([x.flatten(0, 1) for x in frames])[None]


def _length(part: tuple[int, int]) -> int:
    return part[1] - part[0]
