"""Session time of what a live source hands out, from its own stamps and from when things arrive. Pure.

Arrivals jitter, late only. A stream's clock and ours drift apart by up to some hundred ppm; what comes later and later
faster than that is a connection that cannot keep up, and stays visible as latency.
"""

from __future__ import annotations

from collections import deque

from avis_stream.sources.sample_clock import SampleClock
from avis_stream.types import NANOSECONDS, SAMPLE_RATE

_MILLISECOND = 1_000_000
JUMP_NS = 5 * NANOSECONDS
"""Nothing is so much earlier or later than usual: a stamp that would be is wrong, or its clock was set."""
_TOGETHER_NS = 1 * NANOSECONDS
"""Pictures and sound whose stamps jumped by as much, but for so much, jumped by the same."""


class StreamClock:
    """Places one connection's stamps, of pictures and of sound alike, on the session clock.

    Stamps may be wrong: a single one that lies seconds away from when it came is left out; where they go on elsewhere
    (the sender began anew) they are moved to when they come, as are those of the other kind, if they jump as well.
    """

    LARGEST_PPM = 200
    WINDOW_NS = 30 * NANOSECONDS
    SETTLE_NS = 500 * _MILLISECOND

    def __init__(self, *, known: bool, finite: bool = False) -> None:
        """Begins a connection.

        Args:
            known: Stamps are on the session clock already (GStreamer); else they begin anywhere, and half a second is
                passed over: it lay in buffers while the connection was made, and what is not that old shows where the
                stamps' zero is.
            finite: A film: it is read as fast as it comes, so nothing of it is stale, and no stamp can be told wrong.
        """
        self._offset_ns: float | None = 0.0 if known else None
        self._finite = finite
        self.settled = known
        """Whether stamps can be placed."""
        self._settling: list[int] = []
        """How late the first stamps came, by their own zero."""
        self._begin_ns: int | None = None
        self._window_begin_ns = 0
        self._least_ns: float | None = None
        self._normal_ns: float | None = None
        self._goal_ns = 0.0
        self._last_stamp_ns: int | None = None
        self._kinds: dict[str, _Stamps] = {}
        self._jump_ns: int | None = None

    def place(self, stamp_ns: int, arrival_ns: int, kind: str = "video") -> int | None:
        """Session time of a stamp; None: the connection has not settled, or this one is wrong: leave it out.

        Args:
            stamp_ns: As it came.
            arrival_ns: When it came.
            kind: Of what it is the stamp; each kind jumps by itself.
        """
        if self._begin_ns is None:
            self._begin_ns = self._window_begin_ns = arrival_ns
        if not self.settled and not self._settle(arrival_ns - stamp_ns, arrival_ns):
            return None
        assert self._offset_ns is not None
        stamps = self._kinds.setdefault(kind, _Stamps())
        if not self._finite:
            moved = stamps.judged(stamp_ns + stamps.shift_ns + round(self._offset_ns), arrival_ns)
            if moved is None:
                return None
            if moved:
                self._move(stamps, moved)
        stamp_ns += stamps.shift_ns
        self._follow(stamp_ns)
        placed = stamp_ns + round(self._offset_ns)
        stamps.note(placed, arrival_ns)
        self._observe(arrival_ns - placed, arrival_ns)
        return placed

    def take_jump(self) -> int | None:
        """By how much the stamp just placed has jumped, told once; None: it goes on from the last one."""
        jump, self._jump_ns = self._jump_ns, None
        return jump

    def _settle(self, late_ns: int, arrival_ns: int) -> bool:
        assert self._begin_ns is not None
        self._settling.append(late_ns)
        if not self._finite and arrival_ns - self._begin_ns < self.SETTLE_NS:
            return False
        middle = sorted(self._settling)[len(self._settling) // 2]  # one wrong stamp among them does not move it
        self._offset_ns = self._goal_ns = float(min(late for late in self._settling if late > middle - JUMP_NS))
        self.settled = True
        self._settling.clear()
        return True

    def _move(self, stamps: _Stamps, by_ns: int) -> None:
        self._jump_ns = -by_ns
        shift = stamps.shift_ns + by_ns
        # What jumped together stays together: when the first of them came tells it only to some milliseconds.
        others = (other.shift_ns for other in self._kinds.values() if other is not stamps)
        stamps.shift_ns = next((other for other in others if abs(other - shift) < _TOGETHER_NS), shift)

    def _observe(self, late_ns: int, arrival_ns: int) -> None:
        assert self._offset_ns is not None
        if arrival_ns - self._window_begin_ns >= self.WINDOW_NS and self._least_ns is not None:
            if self._normal_ns is None:
                self._normal_ns = self._least_ns
            self._goal_ns = self._offset_ns + self._least_ns - self._normal_ns
            self._window_begin_ns, self._least_ns = arrival_ns, None
        self._least_ns = late_ns if self._least_ns is None else min(self._least_ns, late_ns)

    def _follow(self, stamp_ns: int) -> None:
        """Moves towards the goal, by no more than clocks differ."""
        assert self._offset_ns is not None
        if self._last_stamp_ns is not None:
            most = max(0, stamp_ns - self._last_stamp_ns) * self.LARGEST_PPM * 1e-6
            self._offset_ns += min(most, max(-most, self._goal_ns - self._offset_ns))
        self._last_stamp_ns = max(stamp_ns, self._last_stamp_ns or stamp_ns)


class _Stamps:
    """One kind of stamps: by how much they are moved, and whether the next of them can be right.

    Nothing comes before it was taken, and later than usual only what goes on from the stamp before. Else a stamp is
    doubted, and left out; when they are doubted for half a second, they have jumped for good.
    """

    def __init__(self) -> None:
        self.shift_ns = 0
        self._usual_ns = 0
        """The least that they were late by lately."""
        self._newest_ns: int | None = None
        self._arrival_ns = 0
        self._doubt: tuple[int, int] | None = None
        """(Since when they are doubted, the least that these are late by)."""

    def judged(self, placed_ns: int, arrival_ns: int) -> int | None:
        """By how much a placed stamp must be moved, nearly always 0; None: it is wrong, as far as one knows yet."""
        late = arrival_ns - placed_ns
        goes_on = self._newest_ns is None or placed_ns > self._newest_ns
        if late > min(self._usual_ns, 0) - JUMP_NS and (goes_on or late < self._usual_ns + JUMP_NS):
            self._doubt = None
            return 0
        since, least = (arrival_ns, late) if self._doubt is None else self._doubt
        least = min(late, least) if abs(late - least) < JUMP_NS else late  # else wrong in another way
        self._doubt = since, least
        if arrival_ns - since < StreamClock.SETTLE_NS:
            return None
        self._doubt = None
        return least - self._usual_ns

    def note(self, placed_ns: int, arrival_ns: int) -> None:
        """Notes a stamp that was right."""
        late = arrival_ns - placed_ns
        if self._newest_ns is not None:  # what is least is forgotten by a hundredth of the time
            late = min(late, self._usual_ns + (arrival_ns - self._arrival_ns) // 100)
        self._usual_ns, self._arrival_ns = late, arrival_ns
        self._newest_ns = placed_ns if self._newest_ns is None else max(placed_ns, self._newest_ns)


class MicrophoneClock:
    """Places blocks of a microphone by counting samples, and notices when some were lost.

    A loss makes every following block late by its length; a busy computer makes blocks late for a moment. So what
    counts is by how much the *least* late block of a while is late.
    """

    WATCH_SECONDS = 1.5
    LOSS_NS = 20 * _MILLISECOND

    def __init__(self, *, latency_ns: int = 0, rate: int = SAMPLE_RATE) -> None:
        """`latency_ns`: what the device says that samples need until they arrive."""
        self._clock = SampleClock(rate)
        self._rate = rate
        self._latency_ns = latency_ns
        self._samples = 0
        self._recent: deque[tuple[int, int]] = deque()  # (samples so far, lateness)

    @property
    def rate_ppm(self) -> float:
        """How much slower than nominal the card runs."""
        return self._clock.rate_ppm

    def place(self, samples: int, arrival_ns: int) -> tuple[int, int]:
        """Session time of the first of so many samples, and how many were lost before it (mostly 0)."""
        lost, is_late = self._lost(samples, arrival_ns)
        begin = self._samples = self._samples + lost
        self._samples += samples
        if lost or not is_late:  # what is late tells nothing about the card's rate, and after a loss all is
            self._clock.observe(self._samples, arrival_ns)
        return self._clock.time_of(begin) - self._latency_ns, lost

    def _lost(self, samples: int, arrival_ns: int) -> tuple[int, bool]:
        """Samples lost before this block, and whether it is late."""
        if self._samples < 2 * self._rate:  # the first blocks may have lain about for half a second
            return 0, False
        end = self._samples + samples
        self._recent.append((end, arrival_ns - self._clock.time_of(end)))
        horizon = end - round(self.WATCH_SECONDS * self._rate)
        full = self._recent[0][0] <= horizon
        while self._recent[0][0] < horizon:
            self._recent.popleft()
        least = min(late for _, late in self._recent)
        if not full or least < self.LOSS_NS:
            return 0, self._recent[-1][1] >= self.LOSS_NS
        self._recent.clear()
        return least * self._rate // NANOSECONDS, True
