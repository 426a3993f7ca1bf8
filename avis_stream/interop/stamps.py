"""Time stamps of a pipeline that go back: some are late, others another beginning, as of a film that is looped.

`sources/stream_clock.py` tells that of live sources, by when they come; here a stream may run as fast as it can.
"""

from __future__ import annotations

from avis_stream.types import NANOSECONDS

_WELL_BELOW_NS = NANOSECONDS // 2
"""A stamp so far below those before it is not merely late."""
_FOR_GOOD = 3
"""So many of these in a row, in order, are another beginning."""


class GoneBack:
    """Tells stamps that have begun anew from a few that are late: those go on in order, well below where they were."""

    def __init__(self) -> None:
        self._last_ns, self._count = 0, 0

    def is_for_good(self, pts_ns: int, reached_ns: int) -> bool:
        """Whether time begins anew with this stamp; `reached_ns`: where it was."""
        if pts_ns >= reached_ns - _WELL_BELOW_NS:
            self._count = 0
            return False
        self._count = self._count + 1 if self._count and pts_ns > self._last_ns else 1
        self._last_ns = pts_ns
        return self._count >= _FOR_GOOD
