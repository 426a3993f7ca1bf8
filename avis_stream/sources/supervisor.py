"""When a live source is opened, given up, and tried again. Pure: whoever calls says what time it is, and does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avis_stream.checks import require
from avis_stream.types import NANOSECONDS, Event


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """How patient to be."""

    stall_seconds: float = 2.0
    """Without a picture for so long (or sound, of a microphone), a source counts as lost."""
    open_seconds: float = 8.0
    """How long connecting may take."""
    first_wait_seconds: float = 0.25
    """Before the second try; doubled with each further one."""
    longest_wait_seconds: float = 5.0
    give_up_seconds: float | None = None
    """A source that is away for so long ends the session; None: it is waited for for ever."""

    def __post_init__(self) -> None:
        for name in ("stall_seconds", "open_seconds", "first_wait_seconds", "longest_wait_seconds"):
            require(getattr(self, name) > 0, f"SupervisorConfig.{name}", getattr(self, name), "> 0 s")


class Supervisor:
    """Follows one source through any number of connections.

    begin --open--> opening --first media--> running --ended, stalled--> waiting --due--> opening ...
    """

    def __init__(self, source_id: str, config: SupervisorConfig) -> None:
        self.source_id = source_id
        self._config = config
        self.state: Literal["new", "opening", "running", "waiting"] = "new"
        self.segment = 0
        """Goes up with the first media after an interruption, and where stamps jump."""
        self.reconnects = 0
        self._wait = config.first_wait_seconds
        self._since_ns = 0
        """When the state began, or of the last media while running."""
        self._due_ns = 0
        self._lost_ns: int | None = None
        self._told: str | None = None
        self._ever = False

    def opened(self, now_ns: int) -> None:
        """A connection is being made."""
        self.state, self._since_ns = "opening", now_ns

    def media(self, now_ns: int) -> tuple[Event, ...]:
        """A picture or a block of sound came."""
        before, self.state, self._since_ns = self.state, "running", now_ns
        if before == "running":
            return ()
        self._wait = self._config.first_wait_seconds
        self._told = None
        lost, self._lost_ns = self._lost_ns, None
        if not self._ever:
            self._ever = True
            return (Event(kind="connected", source_id=self.source_id),)
        self.segment += 1
        self.reconnects += 1
        gap = None if lost is None else (now_ns - lost) / NANOSECONDS
        return (Event(kind="reconnected", source_id=self.source_id, gap_seconds=gap),)

    def jumped(self, by_ns: int, what: str) -> Event:
        """Time stamps go on elsewhere, as after an interruption, though the connection holds.

        Args:
            by_ns: How far away.
            what: Whose stamps: `pictures` (another segment begins) or `sound`.
        """
        self.segment += what == "pictures"
        return Event(
            kind="jumped", detail=f"stamps of {what} by {by_ns / NANOSECONDS:+.1f} s", source_id=self.source_id
        )

    def ended(self, cause: str, now_ns: int) -> tuple[Event, ...]:
        """The connection is gone, or there never was one; the same cause is told once."""
        if self.state == "waiting":
            return ()
        if self._lost_ns is None:
            self._lost_ns = self._since_ns if self.state == "running" else now_ns
        kind = "lost" if self.state == "running" else "unreachable"
        self.state, self._since_ns = "waiting", now_ns
        self._due_ns = now_ns + round(self._wait * NANOSECONDS)
        self._wait = min(2 * self._wait, self._config.longest_wait_seconds)
        if cause == self._told:
            return ()
        self._told = cause
        return (Event(kind=kind, detail=cause, source_id=self.source_id),)

    def wants(self, now_ns: int) -> Literal["open", "close", "give_up"] | None:
        """What is to be done now: `close` is followed by `ended`, `open` by `opened`."""
        limit = self._config.give_up_seconds
        if limit is not None and self._lost_ns is not None and now_ns - self._lost_ns > limit * NANOSECONDS:
            return "give_up"
        if self.state == "new":
            return "open"
        if self.state == "waiting":
            return "open" if now_ns >= self._due_ns else None
        # The worker minds the same limits; one that hangs as a whole does not, so it gets half a second more.
        patience = self._config.stall_seconds if self.state == "running" else self._config.open_seconds
        return "close" if now_ns - self._since_ns > (patience + 0.5) * NANOSECONDS else None

    @property
    def impatience(self) -> str:
        """Why it wants to be closed."""
        if self.state == "running":
            return f"nothing came for {self._config.stall_seconds:g} s"
        return f"no connection within {self._config.open_seconds:g} s"
