"""How often each client may ask: a bucket for each, that fills again with time. Pure: whoever calls says the time."""

from __future__ import annotations

from collections import OrderedDict


class Allowances:
    """One bucket of requests per client, so that none spends what another has left."""

    def __init__(self, per_second: float, *, most: int = 1024) -> None:
        """Knows nobody yet.

        Args:
            per_second: Requests that a bucket gains each second; it holds no more than that.
            most: Clients that are remembered; whoever has not asked for longest is forgotten first.
        """
        self._rate, self._most = per_second, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(Requests left, when that was), by client; who asked last is last."""

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, client: str, now: float) -> bool:
        """Takes one request out of the client's bucket; False: there is none left.

        Args:
            client: Its address.
            now: Seconds, of a clock that never goes back.
        """
        left, since = self._buckets.pop(client, (self._rate, now))
        left = min(self._rate, left + (now - since) * self._rate)
        may = left >= 1
        self._buckets[client] = (left - may, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return may
