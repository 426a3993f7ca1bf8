"""Attention and feed-forward blocks, post-norm, batch first, as Mask2Former-style decoders use them.

Parameter names and packing follow `torch.nn.MultiheadAttention` (`in_proj_weight` holds q, k and v in its rows), so
that official weights load without being cut up; the arithmetic goes through `avis_stream.ops` or SDPA.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avis_stream.nn.packed import Linear
from avis_stream.ops import range_attn
from avis_stream.ops.ranges import AttentionPlan

_FFN_CHUNK_TOKENS = 16_384
"""Tokens that go through a feed-forward block at once in inference: bounds its wide hidden layer on long clips."""


class MultiheadAttention(nn.Module):
    """Projections of a multi-head attention around whichever kernel the caller needs.

    Initialised as the official modules are: xavier-uniform matrices, zero biases.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.channels = channels
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, parts: str) -> tuple[Tensor, ...]:
        """Projects tokens [B, N, C] to those of q, k, v named in `parts` (a run of "qkv"), each [B, N, A, D]."""
        first = "qkv".index(parts)
        rows = slice(first * self.channels, (first + len(parts)) * self.channels)
        projected = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return tuple(p.unflatten(-1, (self.heads, -1)) for p in projected.chunk(len(parts), dim=-1))

    def merge(self, attended: Tensor) -> Tensor:
        """Heads [B, N, A, D] to tokens [B, N, C]."""
        merged: Tensor = self.out_proj(attended.flatten(-2))
        return merged

    def masked(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attention of all queries over all keys, by SDPA.

        Args:
            query: [B, Nq, C].
            key: [B, Nk, C].
            value: [B, Nk, C]; pass the same tensor as `key` to project both in one product.
            visible: bool [B, 1, Nq, Nk], True where a query may look; None: everywhere.
        Returns:
            [B, Nq, C].
        """
        q, k, v = self._project_all(query, key, value)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible
        )  # [B, A, Nq, D]
        return self.merge(attended.transpose(1, 2))

    def ranged(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        """Attention of groups of queries over contiguous ranges of keys, by `ops.range_attn`.

        Args:
            query: [B, Nq, C].
            key: [B, Nk, C].
            value: [B, Nk, C].
            plan: Which keys each group of queries sees.
        Returns:
            [B, Nq, C].
        """
        q, k, v = self._project_all(query, key, value)
        return self.merge(range_attn(q, k, v, plan.q_starts, plan.k_ranges))

    def _project_all(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects in as few matrix products as the arguments allow: tensors handed over twice are read once."""
        if query is key and key is value:
            q, k, v = self.project(query, "qkv")
        elif query is key:
            (q, k), (v,) = self.project(query, "qk"), self.project(value, "v")
        elif key is value:
            (q,), (k, v) = self.project(query, "q"), self.project(key, "kv")
        else:
            (q,), (k,), (v,) = self.project(query, "q"), self.project(key, "k"), self.project(value, "v")
        return q, k, v


class AttentionBlock(nn.Module):
    """`norm(x + attention(...))`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = MultiheadAttention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def masked(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Residual `x` [B, Nq, C] plus `MultiheadAttention.masked`, normalised."""
        normed: Tensor = self.norm(x + self.attn.masked(query, key, value, visible))
        return normed

    def ranged(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        """Residual `x` [B, Nq, C] plus `MultiheadAttention.ranged`, normalised."""
        normed: Tensor = self.norm(x + self.attn.ranged(query, key, value, plan))
        return normed


class FeedForward(nn.Module):
    """`norm(x + linear2(relu(linear1(x))))`."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.linear1 = Linear(channels, hidden_channels, activation="relu")
        self.linear2 = Linear(hidden_channels, channels)
        self.norm = nn.LayerNorm(channels)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]."""
        if not torch.is_grad_enabled() and x.shape[1] > _FFN_CHUNK_TOKENS:
            return torch.cat([self._one_chunk(part) for part in x.split(_FFN_CHUNK_TOKENS, dim=1)], dim=1)
        return self._one_chunk(x)

    def _one_chunk(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x + self.linear2(self.linear1(x)))
        return normed
