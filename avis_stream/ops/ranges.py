"""Which keys each query sees, as groups of queries and key ranges: the plans that `range_attn` runs.

A plan never builds a mask. Queries are cut into groups, one after the other, and all queries of a group attend to the
same few half-open ranges of keys. Everything that AVISM does over time has this form, so windows that its official code
makes by padding, rolling and masking are just boundaries here:

    W = 5, T = 12        0  1  2  3  4  5  6  7  8  9 10 11
    plain              |--------------|--------------|-----|
    shifted            |-----|--------------|--------------|      boundaries at W//2 + i * W

Pure functions of integers. Tokens are ordered frame by frame, the queries of a frame one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from avis_stream.checks import require

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Groups of queries and the keys that each sees."""

    q_starts: tuple[int, ...]
    """[G + 1] first query of each group, then the number of queries."""
    k_ranges: tuple[tuple[Range, ...], ...]
    """[G][R] half-open ranges of keys, the same R for every group; an unused one is (0, 0)."""

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.k_ranges)

    def split(self, groups: int) -> Iterator[tuple[slice, AttentionPlan]]:
        """Cuts a plan of self-attention into parts that never meet, of at most `groups` groups each.

        Yields:
            The tokens of a part, and its plan on these tokens alone.

        Raises:
            ConfigError: `groups` < 1, or a group sees keys other than its own tokens.
        """
        require(groups >= 1, "groups", groups, ">= 1")
        for first in range(0, len(self), groups):
            edges = self.q_starts[first : first + groups + 1]
            for own, ranges in zip(pairwise(edges), self.k_ranges[first : first + groups], strict=True):
                require(ranges == (own,), "k_ranges", ranges, f"{(own,)}, the group's own tokens, to be split")
            shifted = tuple(edge - edges[0] for edge in edges)
            yield slice(edges[0], edges[-1]), AttentionPlan(shifted, tuple((own,) for own in pairwise(shifted)))


def whole_plan(queries: int, keys: int) -> AttentionPlan:
    """Every query sees every key.

    Args:
        queries: How many, >= 0.
        keys: How many, >= 0.
    """
    return AttentionPlan((0, queries), (((0, keys),),))


def window_plan(
    frames: int, window: int, queries_per_frame: int, tokens_per_frame: int, *, shifted: bool = False
) -> AttentionPlan:
    """Windows of AVISM's object encoder, cut at the last frame instead of padded.

    The official shift rolls time by ceil(W / 2) and masks what does not belong together; that leaves windows which
    begin at W // 2 + i * W, with a shorter one in front.

    Args:
        frames: Frames in the clip, T >= 0.
        window: Frames a window, W; 0 means one window over the whole clip.
        queries_per_frame: Queries a frame: as many as keys in self-attention, 1 for the audio of the fusion.
        tokens_per_frame: Keys a frame.
        shifted: Whether the boundaries are the shifted ones (odd layers).
    Source: official `avism.py`, `_window_attn` and `_shift_window_attn`; `avism_model` section "Object encoder".
    Example:
        >>> window_plan(7, 5, 1, 1, shifted=True)
        AttentionPlan(q_starts=(0, 2, 7), k_ranges=(((0, 2),), ((2, 7),)))
    """
    _check_frames(frames, queries_per_frame, tokens_per_frame)
    require(window >= 0, "window", window, ">= 0")
    inner = range(window // 2 if shifted else window, frames, window) if window else range(0)
    edges = sorted({0, frames, *inner})
    return AttentionPlan(
        q_starts=tuple(edge * queries_per_frame for edge in edges),
        k_ranges=tuple(((start * tokens_per_frame, stop * tokens_per_frame),) for start, stop in pairwise(edges)),
    )


def rolling_plan(
    frames: int, window: int, queries_per_frame: int, tokens_per_frame: int, *, sink_frames: int = 0
) -> AttentionPlan:
    """Causal rolling window with attention sinks: frame t sees the first frames and itself with the W - 1 before it.

        T = 7, W = 3, one sink frame         t=5 sees  # . . # # # .

    Args:
        frames: Frames in the clip, T >= 0.
        window: Frames that a query sees, its own included, W >= 1.
        queries_per_frame: Queries a frame: as many as keys in self-attention, 1 for the audio of the fusion.
        tokens_per_frame: Keys a frame.
        sink_frames: First frames of the clip that stay visible for ever.
    """
    _check_frames(frames, queries_per_frame, tokens_per_frame)
    require(window >= 1, "window", window, ">= 1")
    require(sink_frames >= 0, "sink_frames", sink_frames, ">= 0")
    ranges = []
    for t in range(frames):
        first = max(0, t - window + 1)
        seen = [(0, t + 1)] if first <= sink_frames else [(0, sink_frames), (first, t + 1)]
        ranges.append([(start * tokens_per_frame, stop * tokens_per_frame) for start, stop in seen if stop > start])
    return AttentionPlan(tuple(t * queries_per_frame for t in range(frames + 1)), _same_length(ranges))


def ring_pages(frames_seen: int, page_frames: int, pages: int, tokens_per_frame: int) -> tuple[Range, ...]:
    """Where the last frames of a stream lie in a ring of pages, oldest page first.

    Page p of the stream (frames p * page_frames and on) lives in slot p % pages; only the newest may be part full.

        ring of 3 pages, 2 frames each, 9 frames seen:   slot 0: 6 7 | slot 1: 8 . | slot 2: 4 5   ->  4 5 | 6 7 | 8

    Args:
        frames_seen: Frames written since the stream began, >= 0.
        page_frames: Frames a page, the encoder's window.
        pages: Pages in the ring.
        tokens_per_frame: Tokens a frame.
    Returns:
        Up to `pages` half-open token ranges within the ring, in the order of time; for `range_attn_paged`, which
        merges pages in the order given.
    """
    _check_frames(frames_seen, 1, tokens_per_frame)
    require(page_frames >= 1, "page_frames", page_frames, ">= 1")
    require(pages >= 1, "pages", pages, ">= 1")
    newest = -(-frames_seen // page_frames)  # pages begun
    ranges = []
    for page in range(max(0, newest - pages), newest):
        start = page % pages * page_frames
        length = min(page_frames, frames_seen - page * page_frames)
        ranges.append((start * tokens_per_frame, (start + length) * tokens_per_frame))
    return tuple(ranges)


def dense_mask(plan: AttentionPlan, keys: int) -> Tensor:
    """The plan as a matrix, bool [Nq, keys], True where a query sees a key. For tests and for literal forms only."""
    mask = torch.zeros(plan.q_starts[-1], keys, dtype=torch.bool)
    for first, last, ranges in zip(plan.q_starts, plan.q_starts[1:], plan.k_ranges, strict=False):
        for start, stop in ranges:
            mask[first:last, start:stop] = True
    return mask


def _check_frames(frames: int, queries_per_frame: int, tokens_per_frame: int) -> None:
    require(frames >= 0, "frames", frames, ">= 0")
    require(queries_per_frame >= 1, "queries_per_frame", queries_per_frame, ">= 1")
    require(tokens_per_frame >= 1, "tokens_per_frame", tokens_per_frame, ">= 1")


def _same_length(ranges: list[list[Range]]) -> tuple[tuple[Range, ...], ...]:
    longest = max(map(len, ranges), default=1)
    return tuple(tuple(own + [(0, 0)] * (longest - len(own))) for own in ranges)
