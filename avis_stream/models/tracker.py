"""Video-level sounding object tracker: windowed object encoder, audio-visual fusion, object decoder.

Source: "Audio-Visual Instance Segmentation" (CVPR 2025) section 4.3; encoder and decoder from VITA (Heo et al.,
NeurIPS 2022). No token carries its time, so the order inside a window, and of the windows, is invisible to the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avis_stream.config import AVISMConfig, TrackerConfig
from avis_stream.models.localizer import DecoderLayer
from avis_stream.nn.attention import AttentionBlock, FeedForward
from avis_stream.nn.layers import MLP
from avis_stream.ops.ranges import AttentionPlan, window_plan

_WINDOWS_AT_ONCE = 16
"""Attention windows that go through an encoder layer together in inference: bounds its temporaries on long clips."""


@dataclass(frozen=True, slots=True)
class ClipPrediction:
    """What the tracker says of a clip after one decoder layer, for a batch of B independent clips."""

    logits: Tensor
    """[B, M, K + 1]; the last class is "no object"."""
    mask_embed: Tensor
    """[B, M, Cm]; mask logits of frame t are its products with the clip mask features of t."""
    similarity: Tensor
    """[B, M, C]: sigmoid of a dot product with a frame query's embedding is the chance of being the same object."""


class WindowLayer(nn.Module):
    """Attention inside windows and a feed-forward network; self-attention of objects, or of sound over objects."""

    def __init__(self, config: TrackerConfig, channels: int) -> None:
        super().__init__()
        self.attn = AttentionBlock(channels, config.heads)
        self.ffn = FeedForward(channels, config.ffn_channels)

    def forward(self, x: Tensor, key: Tensor, plan: AttentionPlan) -> Tensor:
        """Queries [B, Nq, C] over `key` [B, Nk, C], by `plan`: new queries [B, Nq, C]."""
        advanced: Tensor = self.ffn(self.attn.ranged(x, x, key, key, plan))
        return advanced


class Tracker(nn.Module):
    """Frame queries and sound of a clip to its sounding objects."""

    def __init__(self, config: AVISMConfig) -> None:
        super().__init__()
        self.config = config.tracker
        channels = config.channels
        self.input_proj_dec = nn.Linear(channels, channels)
        self.encoder = nn.ModuleList(WindowLayer(self.config, channels) for _ in range(self.config.encoder_layers))
        fused = self.config.audio_fusion
        self.audio_proj = nn.Linear(config.audio.feature_dim, channels) if fused else None
        self.fusion = nn.ModuleList(
            WindowLayer(self.config, channels) for _ in range(self.config.encoder_layers if fused else 0)
        )
        self.fq_pos = nn.Embedding(config.localizer.queries, channels)
        self.query_feat = nn.Embedding(self.config.queries, channels)
        self.query_embed = nn.Embedding(self.config.queries, channels)
        self.decoder = nn.ModuleList(
            DecoderLayer(channels, self.config.heads, self.config.ffn_channels)
            for _ in range(self.config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, len(config.classes) + 1)
        self.mask_embed = MLP(channels, channels, config.mask_channels, 3)
        self.sim_embed_frame = nn.Linear(channels, channels)
        self.sim_embed_clip = nn.Linear(channels, channels)

    def forward(self, frame_queries: Tensor, audio: Tensor) -> tuple[list[ClipPrediction], Tensor]:
        """Tracks B independent clips (in training: the same clip, seen by the last decoder layers of the localizer).

        Args:
            frame_queries: [B, T, N, C].
            audio: [T, feature_dim], the sound of the frames, shared by the B clips; or [B, T, feature_dim].
        Returns:
            One `ClipPrediction` after each decoder layer, the last is the answer; and the object tokens [B, T, N, C]
            that `similarity_of_frames` takes.
        """
        objects = self.encode(frame_queries)
        heard = self.listen(objects, audio)
        # Nobody else holds the objects: on long clips a copy of them would be hundreds of megabytes.
        tokens = objects + heard if torch.is_grad_enabled() else objects.add_(heard)
        return self.decode(tokens), tokens

    def encode(self, frame_queries: Tensor) -> Tensor:
        """Object encoder: [B, T, N, C] to [B, T, N, C], by self-attention inside windows, every odd layer's shifted."""
        _, frames, slots, _ = frame_queries.shape
        x = self.input_proj_dec(frame_queries).flatten(1, 2)  # [B, T N, C]
        shifts = self.config.shift_in_training or not self.training
        for i, layer in enumerate(self.encoder):
            plan = window_plan(frames, self.config.token_window, slots, slots, shifted=shifts and i % 2 == 1)
            x = self._over_windows(layer, x, plan)
        objects: Tensor = x.unflatten(1, (frames, slots))
        return objects

    def _over_windows(self, layer: nn.Module, x: Tensor, plan: AttentionPlan) -> Tensor:
        if torch.is_grad_enabled():
            together: Tensor = layer(x, x, plan)
            return together
        # Windows of one layer never meet, so each run of them can replace its own tokens.
        for tokens, part in plan.split(_WINDOWS_AT_ONCE):
            run = x[:, tokens]
            x[:, tokens] = layer(run, run, part)
        return x

    def fuse(self, objects: Tensor, audio: Tensor) -> Tensor:
        """Audio-visual fusion: object tokens [B, T, N, C] plus what the frame's sound found in their windows."""
        fused: Tensor = objects + self.listen(objects, audio)
        return fused

    def listen(self, objects: Tensor, audio: Tensor) -> Tensor:
        """What the sound of each frame finds among the object tokens of its windows, to be added to each of them.

        The official code runs one audio query for each object; they start equal, see the same keys and never meet, so
        they stay equal, and one a frame gives the same numbers (quirk Q27).

        Args:
            objects: [B, T, N, C], from `encode`.
            audio: [T, feature_dim] or [B, T, feature_dim], the sound of the frames.
        Returns:
            [B, T, 1, C]; [1], a zero, in a tracker that does not listen.
        """
        if self.audio_proj is None:
            return objects.new_zeros(1)
        batch, frames, slots, _ = objects.shape
        y = self.audio_proj(audio).expand(batch, -1, -1)  # [B, T, C]
        keys = objects.flatten(1, 2)
        for i, layer in enumerate(self.fusion):
            y = layer(y, keys, window_plan(frames, self.config.token_window, 1, slots, shifted=i % 2 == 1))
        heard: Tensor = y[:, :, None]
        return heard

    def decode(self, tokens: Tensor) -> list[ClipPrediction]:
        """Object decoder: video queries over all tokens [B, T, N, C] of the clip; no notion of when."""
        batch = len(tokens)
        value = tokens.flatten(1, 2)
        key = (tokens + self.fq_pos.weight).flatten(1, 2)
        embed = self.query_embed.weight
        state = self.query_feat.weight.expand(batch, -1, -1)
        predictions = []
        for layer in self.decoder:
            state = layer(state, embed, key, value)
            predictions.append(self.predict(state))
        return predictions

    def predict(self, state: Tensor) -> ClipPrediction:
        """The heads on a decoder state [B, M, C]."""
        queries = self.decoder_norm(state)
        return ClipPrediction(self.class_embed(queries), self.mask_embed(queries), self.sim_embed_clip(queries))

    def similarity_of_frames(self, tokens: Tensor) -> Tensor:
        """Similarity embeddings of object tokens [B, T, N, C], to compare with `ClipPrediction.similarity`."""
        embedded: Tensor = self.sim_embed_frame(tokens)
        return embedded


def same_object(similarity: Tensor, of_frames: Tensor) -> Tensor:
    """Chance [B, M, T, N] that each frame query is each video query's object, for `presence_of` and `likeliest`.

    Args:
        similarity: [B, M, C], of `ClipPrediction`.
        of_frames: [B, T, N, C], from `Tracker.similarity_of_frames`.
    """
    return torch.einsum("bmc,btnc->bmtn", similarity, of_frames).sigmoid()


def presence_of(same: Tensor, sounding: Tensor) -> Tensor:
    """Chance [B, M, T] that each video query's object sounds in each frame: that of the frame query likeliest it.

    Args:
        same: [B, M, T, N], from `same_object`.
        sounding: [B, T, N], chance of each frame query to sound.
    """
    return (same * sounding[:, None]).amax(dim=-1)


def likeliest(same: Tensor) -> tuple[Tensor, Tensor]:
    """Which frame query of each frame is likeliest each video query's object.

    Args:
        same: [B, M, T, N], from `same_object`.
    Returns:
        Its number, int64 [B, M, T], and the chance that it is, [B, M, T].
    """
    chance, number = same.max(dim=-1)
    return number, chance
