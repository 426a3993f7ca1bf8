"""Which frames a model that is slower than the camera gets: a bounded queue that says what it dropped, and why."""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

from avis_stream.checks import require
from avis_stream.types import AVPair

Policy = Literal["auto", "latest", "every"]
POLICIES: tuple[Policy, ...] = ("auto", "latest", "every")
_MILLISECOND = 1_000_000
_SHARE = 0.05
"""Of the last take in the running mean of arrivals."""
_OVERLOAD = 1.3
"""Arrivals per take from which on a model does not keep up."""
_CATCH_UP_NS = 1_000_000_000
"""Nor does one behind which pairs have been waiting for longer: what a step leaves should be gone by the next."""


class PairQueue:
    """Pairs on their way to the model. Pure: whoever calls says what time it is, and does the waiting.

    | policy | live | recording |
    | --- | --- | --- |
    | `auto` | in order; the newest if the model falls behind; what is too old is skipped (2) | every pair (1) |
    | `latest` | one place, the newest wins | as live |
    | `every` | every pair (1); latency grows without bound if the model is slower | as `auto` |

    (1) `offer` refuses while the queue is full. (2) What is older than `max_latency_ms` and not the newest.
    """

    def __init__(self, policy: Policy = "auto", *, live: bool, max_latency_ms: int = 500, capacity: int = 32) -> None:
        """`capacity`: pairs that may wait; a full live `auto` queue drops its oldest."""
        require(policy in POLICIES, "policy", policy, "one of " + ", ".join(POLICIES))
        require(max_latency_ms > 0, "max_latency_ms", max_latency_ms, "> 0")
        require(capacity > 0, "capacity", capacity, "> 0")
        self._drops = policy == "latest" or (policy == "auto" and live)
        self._bound_ns = max_latency_ms * _MILLISECOND if policy == "auto" and live else None
        self._capacity = 1 if policy == "latest" else capacity
        self._pairs: deque[AVPair] = deque()
        self._arrived = 0
        """Since the last `take`."""
        self._arrivals_per_take = 1.0
        """Running mean; a model that keeps up takes one for each that arrives, even if a step now and then is long."""
        self._waiting_since_ns: int | None = None
        """From when on pairs were left behind by each take; None: the last one took the only pair."""
        self.dropped: Counter[str] = Counter()
        """Pairs that were never taken, by cause: `stale`, `queue_full`."""

    def __len__(self) -> int:
        return len(self._pairs)

    def offer(self, pair: AVPair) -> bool:
        """Puts a pair at the end; False: it is full and drops nothing, wait for a `take` and offer it again."""
        if len(self._pairs) >= self._capacity:
            if not self._drops:
                return False
            self._pairs.popleft()
            self.dropped["queue_full"] += 1
        self._pairs.append(pair)
        self._arrived += 1
        return True

    def take(self, now_ns: int) -> AVPair | None:
        """The next pair for the model; None: there is none.

        A live `auto` queue skips pairs that are too old, but for the newest: late is better than never. With a model
        that does not keep up it skips all but the newest: in order they would all be as old as is just allowed.
        """
        if not self._pairs:
            return None
        self._arrivals_per_take += _SHARE * (self._arrived - self._arrivals_per_take)
        self._arrived = 0
        while len(self._pairs) > 1 and (self._behind(now_ns) or self._stale(self._pairs[0], now_ns)):
            self._pairs.popleft()
            self.dropped["stale"] += 1
        taken = self._pairs.popleft()
        if not self._pairs:
            self._waiting_since_ns = None
        elif self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        return taken

    def _behind(self, now_ns: int) -> bool:
        if self._bound_ns is None:
            return False
        since = self._waiting_since_ns
        return self._arrivals_per_take > _OVERLOAD or (since is not None and now_ns - since > _CATCH_UP_NS)

    def _stale(self, pair: AVPair, now_ns: int) -> bool:
        return self._bound_ns is not None and now_ns - pair.frame.pts_ns > self._bound_ns
