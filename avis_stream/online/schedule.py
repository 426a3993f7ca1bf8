"""Which tokens a new frame changes, which groups must be computed for it, and where they lie: integers only.

The object encoder attends inside windows of W frames, the odd layers' shifted by W // 2. A new frame joins the last
window of every layer, so each layer changes the tokens from the start of that window on, and the next layer those from
the start of the window that these reach into:

    W = 6, frame 13 is new        6  7  8  9 10 11 12 13
    layer 0 changes                                |-----|       window from 12
    layer 1 changes                        |-------------|       window from 9
    layer 2 changes               |----------------------|       windows from 6 and 12

All buffers begin a fixed number of frames before the current window and scroll by W frames when a window begins. So a
place in a buffer depends on t mod W alone, and one captured graph a phase serves for ever.

Letters: `W` window, `L` encoder layers, `R` frames in the ring, `P` pages of W frames in it, `N` slots a frame.
Source: ADR 0201.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from avis_stream.checks import require
from avis_stream.ops.ranges import AttentionPlan, Range


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes that fix every shape of a stream's memory."""

    window: int
    """W."""
    layers: int
    """L."""
    pages: int
    """P; the ring holds R = P * W frames."""
    slots: int
    """N."""
    first_frames: int = 0
    """Frames of the stream's beginning that stay for ever."""
    anchors: int = 0
    """Tokens of pinned identities."""
    frozen: bool = False
    """Whether each frame is encoded only once."""

    def __post_init__(self) -> None:
        require(
            self.window >= 1, "TrackerConfig.token_window", self.window, ">= 1: with one window over all frames "
            "nothing is ever final, so such a model runs offline only",
        )  # fmt: skip
        wanted = f">= {least_pages(self.layers)}, so that only final tokens leave; make ring_seconds longer"
        require(self.pages >= least_pages(self.layers), "pages of the ring", self.pages, wanted)
        wanted = f"<= {self.window}, a window: only one page is there to be kept when the first leaves"
        require(self.first_frames <= self.window, "OnlineConfig.first_frames", self.first_frames, wanted)

    @property
    def ring(self) -> int:
        """R."""
        return self.pages * self.window

    @property
    def keys(self) -> int:
        """Tokens that the decoder may see: those of the ring, then the first frames', then the anchors."""
        return (self.ring + self.first_frames) * self.slots + self.anchors

    @property
    def capacity(self) -> tuple[int, ...]:
        """[L + 1] frames that are kept of each encoder layer's input, and of its output."""
        return tuple(back + self.window for back in _reach(self)[0])

    @property
    def heard(self) -> int:
        """Frames whose sound is kept."""
        return _reach(self)[1] + self.window


def least_pages(layers: int) -> int:
    """Pages that a ring needs so that only final tokens leave it.

    A token of window w has stopped changing when window w + ceil(L / 2) + 1 is complete.
    """
    return -(-layers // 2) + 1


def group_start(layer: int, frame: int, window: int) -> int:
    """First frame of the window of `frame` at a layer, for layer 0, 1, ..."""
    shift = window // 2 if layer % 2 else 0
    return max(0, (frame - shift) // window * window + shift)


@dataclass(frozen=True, slots=True)
class LayerPart:
    """What one layer does in a push, in frames of its buffers."""

    queries: tuple[int, int]
    """Range of the layer's input whose tokens are computed again."""
    keys: tuple[int, int]
    """Range of the keys that `plan` speaks of."""
    outputs: tuple[int, int]
    """Range of the next layer's input where results go."""
    plan: AttentionPlan


@dataclass(frozen=True, slots=True)
class PushPlan:
    """All that is to be done for a few new frames of one window; ranges are in frames of the buffer they name."""

    scroll: bool
    """A window begins: all buffers move on by W frames first."""
    keep_first: bool
    """Before that, the first frames of the page that leaves are kept."""
    new: tuple[int, int]
    """Where the new frames go in the first layer's input."""
    heard_new: tuple[int, int]
    encoder: tuple[LayerPart, ...]
    fusion: tuple[LayerPart, ...]
    """`queries` and `outputs` are in frames of the kept sound, `keys` in frames of the encoder's output."""
    fused: tuple[int, int]
    """Frames of the encoder's output whose tokens are final for this push, as `fusion` changed them."""
    ring: tuple[int, int]
    """Where these go in the ring."""
    pages: tuple[Range, ...]
    """[P + 2] token ranges that the decoder sees, oldest first, then the first frames and the anchors."""
    fold: bool
    """The oldest page leaves when the next window begins, so it is folded now."""
    newest: int
    """Frame of the ring that is the last pushed."""


def plan_push(geometry: Geometry, first: int, last: int) -> PushPlan:
    """What to do for frames `first` to `last`, all of one window.

    From a while after the beginning on, equal phases get the same plan object.
    """
    window = geometry.window
    if first // window != last // window or first > last:
        raise AssertionError(f"frames {first} to {last} are not of one window of {window}")
    settled = (geometry.pages + max(geometry.capacity) // window + 2) * window
    surplus = max(0, (first - settled) // window * window)
    return _plan(geometry, first - surplus, last - surplus)


def windows_of(first: int, count: int, window: int) -> Iterator[int]:
    """Cuts `count` frames from `first` on at the ends of windows; yields how many are in each cut."""
    while count > 0:
        size = min(count, window - first % window)
        yield size
        first, count = first + size, count - size


def joined(plans: Sequence[AttentionPlan], keys: Sequence[int]) -> AttentionPlan:
    """The plans of several streams as one over their tokens one after the other.

    Args:
        plans: One a stream, each group with one range of keys.
        keys: Keys of each stream.
    """
    if len(plans) == 1:
        return plans[0]
    starts, ranges, query_offset, key_offset = [0], [], 0, 0
    for plan, count in zip(plans, keys, strict=True):
        starts += [query_offset + start for start in plan.q_starts[1:]]
        ranges += [tuple((key_offset + a, key_offset + b) for a, b in own) for own in plan.k_ranges]
        query_offset, key_offset = starts[-1], key_offset + count
    return AttentionPlan(tuple(starts), tuple(ranges))


def _changed(geometry: Geometry, first: int) -> tuple[list[int], int, int]:
    """First frames that a push from `first` on needs.

    Returns:
        The first key frame of each layer; the first frame that the fusion changes; its first key frame.
    """
    window, low, keys = geometry.window, first, []
    for layer in range(geometry.layers):
        start = group_start(layer, low, window)
        keys.append(start)
        low = low if geometry.frozen else start
    heard = low if geometry.frozen else min(group_start(0, low, window), group_start(1, low, window))
    return keys, heard, min(group_start(0, heard, window), group_start(1, heard, window))


@lru_cache(maxsize=64)
def _reach(geometry: Geometry) -> tuple[tuple[int, ...], int]:
    """Frames before the current window that are ever needed: of each layer's input and the output, and of the sound."""
    base = (geometry.layers + 4) * geometry.window
    backs, heard_back = [0] * (geometry.layers + 1), 0
    for first in range(base, base + geometry.window):
        keys, heard, fusion_keys = _changed(geometry, first)
        backs = [max(back, base - start) for back, start in zip(backs, [*keys, fusion_keys], strict=True)]
        heard_back = max(heard_back, base - heard)
    # What a layer writes it must be able to hold: its output reaches as far back as its queries do.
    for layer in range(0 if geometry.frozen else geometry.layers):
        backs[layer + 1] = max(backs[layer], backs[layer + 1])
    return tuple(backs), heard_back


@lru_cache(maxsize=1024)
def _plan(geometry: Geometry, first: int, last: int) -> PushPlan:
    window, slots, end = geometry.window, geometry.slots, last + 1
    current = last // window * window
    backs, heard_back = _reach(geometry)
    keys, heard, fusion_keys = _changed(geometry, first)

    def within(start: int, back: int) -> tuple[int, int]:
        """Frames from `start` to the end, in a buffer that begins `back` frames before the current window."""
        return start - current + back, end - current + back

    encoder = []
    for layer, key in enumerate(keys):
        query = first if geometry.frozen else key
        plan = _groups(geometry, layer, query, key, end, slots)
        encoder.append(
            LayerPart(within(query, backs[layer]), within(key, backs[layer]), within(query, backs[layer + 1]), plan)
        )
    output, sound = backs[-1], within(heard, heard_back)
    fusion = [
        LayerPart(sound, within(fusion_keys, output), sound, _groups(geometry, layer, heard, fusion_keys, end, 1))
        for layer in range(geometry.layers)
    ]
    ring_start = current + window - geometry.ring
    return PushPlan(
        scroll=first % window == 0 and first > 0,
        keep_first=first == geometry.ring and geometry.first_frames > 0,
        new=within(first, backs[0]),
        heard_new=within(first, heard_back),
        encoder=tuple(encoder),
        fusion=tuple(fusion),
        fused=within(heard, output),
        ring=(heard - ring_start, end - ring_start),
        pages=tuple(_pages(geometry, ring_start, end)),
        fold=end % window == 0 and end >= geometry.ring,
        newest=last - ring_start,
    )


def _groups(geometry: Geometry, layer: int, first: int, first_key: int, end: int, per_frame: int) -> AttentionPlan:
    """Groups of the queries of frames `first` to `end`, over keys that are counted from frame `first_key` on."""
    starts, ranges, frame = [0], [], first
    while frame < end:
        start = group_start(layer, frame, geometry.window)
        if geometry.frozen:
            stop = frame + 1
        else:
            stop = frame + 1
            while stop < end and group_start(layer, stop, geometry.window) == start:
                stop += 1
        starts.append(starts[-1] + (stop - frame) * per_frame)
        ranges.append((((start - first_key) * geometry.slots, (stop - first_key) * geometry.slots),))
        frame = stop
    return AttentionPlan(tuple(starts), tuple(ranges))


def _pages(geometry: Geometry, ring_start: int, end: int) -> Iterator[Range]:
    window, slots = geometry.window, geometry.slots
    for page in range(geometry.pages):
        place = page * window
        length = max(0, min(window, end - ring_start - place)) if ring_start + place >= 0 else 0
        yield place * slots, (place + length) * slots
    place = geometry.ring * slots
    kept = geometry.first_frames * slots if end > geometry.ring else 0
    yield place, place + kept
    place += geometry.first_frames * slots
    yield place, place + geometry.anchors
