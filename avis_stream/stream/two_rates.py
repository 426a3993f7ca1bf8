"""Two rates: a tracker step once a second, as the models were trained, and in between masks drawn anew on each frame.

camera     | | | | | | | | | | | | | | | | | | | | | | | | |
step       S                         S                         ids, classes, scores, who sounds
refresh      R R R R R R R R R R R R   R R R R R R R R R R     the same, where they are now, and who sounds by now
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from avis_stream.checks import require
from avis_stream.online import OnlineConfig, OnlineState
from avis_stream.types import NANOSECONDS, AVPair, OnlineResult, VideoFrame

_EARLY_NS = 20_000_000
"""A step may come so much early, lest the frame after a second be waited for."""


class Segmenter(Protocol):
    """What is needed of `OnlineSegmenter`: `refresh_pair` must leave the state as it is.

    One that has an attribute `concurrent_refreshes`, and it is true, is asked for several refreshes at once.
    """

    @property
    def config(self) -> OnlineConfig: ...

    def init_state(self) -> OnlineState: ...

    def step_pair(self, pair: AVPair, state: OnlineState) -> tuple[OnlineResult, OnlineState]: ...

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesConfig:
    """How identities live through interruptions, and whether masks follow motion."""

    refresh: bool = True
    """Draw masks anew on frames between steps; False: such frames get no result."""
    keep_seconds: float = 10.0
    """After an interruption of up to so long identities simply go on; after a longer one each must be recognised."""
    on_gap: str = "keep"
    """`reset`: begin anew after an interruption longer than `keep_seconds`; ids then start again at 1."""

    def __post_init__(self) -> None:
        require(self.keep_seconds >= 0, "RatesConfig.keep_seconds", self.keep_seconds, ">= 0 s")
        require(self.on_gap in ("keep", "reset"), "RatesConfig.on_gap", self.on_gap, '"keep" or "reset"')


class TwoRates:
    """One stream through a segmenter. Pure but for its state: time is the frames' own.

    Each result is that of the frame just given, so the segmenter must not keep frames back.

    Raises:
        ConfigError: It does: `alignment="official"` or `refine_delay`.
    """

    def __init__(self, segmenter: Segmenter, config: RatesConfig | None = None) -> None:
        segmenter.config.require_at_once("a live stream")
        self._segmenter = segmenter
        self._config = config or RatesConfig()
        self._state = segmenter.init_state()
        self._hop_ns = round(segmenter.config.hop_seconds * NANOSECONDS)
        self._last_step_ns: int | None = None
        self._last_ns: int | None = None
        self._distance_ns = 0
        """Between the last two frames."""
        self._segment = 0
        """Of the source."""
        self._told_segment = 0
        """What the segmenter was told: goes up with long interruptions only."""

    @property
    def state(self) -> OnlineState:
        """The tracker's."""
        return self._state

    def is_step(self, pair: AVPair) -> bool:
        """Whether this frame is one for the tracker."""
        return pair.frame.segment != self._segment or self._is_due(pair.frame.pts_ns)

    def expects_step(self) -> bool:
        """Whether the next frame is one for the tracker, if it comes as long after the last one as that came."""
        return self._last_ns is None or self._is_due(self._last_ns + self._distance_ns)

    def __call__(self, pair: AVPair) -> tuple[OnlineResult, bool] | None:
        """Takes the next frame; returns what is known about it and whether it was only refreshed.

        None: between steps, with `refresh=False`. Frames must come in order of time.
        """
        if not self.is_step(pair):
            refresh = self.between(pair)
            return None if refresh is None else (refresh(), True)
        frame = pair.frame
        if frame.segment != self._segment:
            self._interrupted(frame)
        told = replace(pair, frame=replace(frame, segment=self._told_segment))
        result, self._state = self._segmenter.step_pair(told, self._state)
        self._note(frame.pts_ns)
        self._last_step_ns = frame.pts_ns
        return result, False

    def between(self, pair: AVPair) -> Callable[[], OnlineResult] | None:
        """Takes a frame between steps; returns what is left to do for it, or None with `refresh=False`.

        That may be done on any thread and beside others of its kind, before the next step, which consumes the state.
        """
        self._note(pair.frame.pts_ns)
        if not self._config.refresh:
            return None
        state = self._state
        return lambda: replace(self._segmenter.refresh_pair(pair, state), frame_id=pair.frame.frame_id)

    def _is_due(self, pts_ns: int) -> bool:
        last = self._last_step_ns
        return last is None or pts_ns - last >= self._hop_ns - min(_EARLY_NS, self._hop_ns // 4)

    def _note(self, pts_ns: int) -> None:
        self._distance_ns = 0 if self._last_ns is None else pts_ns - self._last_ns
        self._last_ns = pts_ns

    def _interrupted(self, frame: VideoFrame) -> None:
        self._segment = frame.segment
        away = NANOSECONDS * self._config.keep_seconds
        if self._last_ns is None or frame.pts_ns - self._last_ns <= away:
            return
        self._told_segment += 1
        if self._config.on_gap == "reset":
            self._state = self._segmenter.init_state()


_PREVIOUS_NS = (100_000_000 - _EARLY_NS, 250_000_000)
"""A picture so much older shows what moved since: models with a motion cue want the one about 100 ms before."""


def is_earlier(pts_ns: int, of_ns: int) -> bool:
    """Whether a picture of time `pts_ns` is one that a frame of time `of_ns` can be compared with."""
    return is_old_enough(pts_ns, of_ns) and of_ns - pts_ns <= _PREVIOUS_NS[1]


def is_old_enough(pts_ns: int, of_ns: int) -> bool:
    """Whether no frame from time `of_ns` on can want a picture older than that of time `pts_ns`."""
    return of_ns - pts_ns >= _PREVIOUS_NS[0]


class EarlierPictures:
    """Gives each frame the picture about 100 ms before it, for models with a motion cue."""

    def __init__(self) -> None:
        self._frames: deque[VideoFrame] = deque(maxlen=32)

    def attach(self, frame: VideoFrame) -> VideoFrame:
        """The frame, with `previous` where there is a fitting one."""
        while self._frames and not self._fits(self._frames[0], frame):
            self._frames.popleft()
        earlier = [f for f in self._frames if is_earlier(f.pts_ns, frame.pts_ns)]
        self._frames.append(frame)
        return replace(frame, previous=earlier[-1].image) if earlier and frame.previous is None else frame

    def _fits(self, earlier: VideoFrame, frame: VideoFrame) -> bool:
        near = frame.pts_ns - earlier.pts_ns <= _PREVIOUS_NS[1]
        return near and earlier.segment == frame.segment and earlier.image.shape == frame.image.shape


PERIOD_DISTANCES = 9
"""Distances between frames, the last ones, that tell how long a frame is shown."""


def period_of(distances: Iterable[int]) -> int:
    """How long a frame is shown, in nanoseconds, by the distances between the last ones; 40 ms if there is none.

    Of frames seconds apart it is one second, so that what is heard begins with the frame, as at one frame a second.
    """
    in_order = sorted(distances)
    if not in_order:
        return 40_000_000
    return min(max(in_order[len(in_order) // 2], 1_000_000), NANOSECONDS)


class FramePeriod:
    """How long a frame is shown: the median of the last distances, which single late or lost frames do not move."""

    def __init__(self) -> None:
        self._distances: deque[int] = deque(maxlen=PERIOD_DISTANCES)
        self._last: VideoFrame | None = None

    def of(self, frame: VideoFrame) -> int:
        """Nanoseconds; 40 ms until there is a distance."""
        last, self._last = self._last, frame
        if last is not None and last.segment == frame.segment:
            self._distances.append(frame.pts_ns - last.pts_ns)
        return period_of(self._distances)
