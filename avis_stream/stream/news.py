"""What people are told of a session's events; programs get them all, with the results."""

from __future__ import annotations

from collections.abc import Iterable

from avis_stream.types import Event

TROUBLE = frozenset({"unreachable", "lost"})
"""Events after which a source gives nothing until it is there again."""


def sentence(event: Event) -> str:
    """An event of a source, for people."""
    gap = "" if event.gap_seconds is None else f" after {event.gap_seconds:.1f} s"
    detail = f": {event.detail}" if event.detail else ""
    hint = "; it is tried again" if event.kind in TROUBLE else ""
    if event.kind == "unreachable" and event.source_id.startswith("camera:"):
        hint += ", avis-stream devices lists what there is"
    return f"{event.source_id}: {event.kind.replace('_', ' ')}{gap}{detail}{hint}"


class News:
    """Picks what concerns a source as a whole; what happens to single identities is in the picture."""

    def __init__(self) -> None:
        self._full = ""
        """What was said last of the full table; empty: there is room."""

    def of(self, events: Iterable[Event], *, step: bool = False) -> tuple[Event, ...]:
        """The events to tell, in their order.

        A table of identities that is full says so at each step. People hear it when it begins and when the number of
        those without a place is another, or it would crowd out everything else.

        Args:
            events: Of a result, or of sources between two results.
            step: They are those of a step of the tracker; without `full` among them there is room again.
        """
        told = []
        full = ""
        for event in events:
            if event.kind == "full":
                full = event.detail
                if full == self._full:
                    continue
                self._full = full
            if event.source_id:
                told.append(event)
        if step and not full:
            self._full = ""
        return tuple(told)
