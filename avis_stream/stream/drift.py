"""Whether sound and picture of a live source drift apart: by how much later than stamped each of them arrives.

Arrivals jitter, late only; the least lateness within a window does not. What both streams share (the network got
slower) does not count, only their difference against the first windows does.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["video", "audio"]


class DriftWatch:
    """Watches one source."""

    def __init__(self, *, window_ns: int = 30_000_000_000, limit_ns: int = 80_000_000) -> None:
        """Windows of `window_ns`; a drift of more than `limit_ns` wants a correction."""
        self._window_ns, self._limit_ns = window_ns, limit_ns
        self._begin: int | None = None
        self._least: dict[Kind, int] = {}
        self._normal: int | None = None
        self.drift_ns = 0
        """How much later sound has come to arrive than pictures, as of the last whole window."""

    def observe(self, kind: Kind, pts_ns: int, arrival_ns: int) -> int:
        """Notes an arrival; returns how much to add to the time stamps of sound from now on, nearly always 0.

        Args:
            kind: Of what arrived.
            pts_ns: Its time stamp, with all that was to be added so far.
            arrival_ns: When it arrived.
        """
        self._begin = arrival_ns if self._begin is None else self._begin
        late = arrival_ns - pts_ns
        if arrival_ns - self._begin >= self._window_ns:
            correction = self._close()
            self._begin = arrival_ns
            # Sound that closes a window is the first of the next one, and of that which is moved.
            self._least = {kind: late - correction if kind == "audio" else late}
            return correction
        self._least[kind] = min(self._least.get(kind, late), late)
        return 0

    def _close(self) -> int:
        if len(self._least) < 2:
            return 0  # one of them is absent; nothing can be said
        apart = self._least["audio"] - self._least["video"]
        if self._normal is None:
            self._normal = apart
        self.drift_ns = apart - self._normal
        if abs(self.drift_ns) <= self._limit_ns:
            return 0
        correction, self.drift_ns = self.drift_ns, 0  # with it, sound is stamped as late as it arrives
        return correction
