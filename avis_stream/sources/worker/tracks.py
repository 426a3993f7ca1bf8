"""Which of several streams of one kind is meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

_DEFAULT = 1  # AV_DISPOSITION_DEFAULT: the readers' Python may have another PyAV, which words it otherwise


class _HasDisposition(Protocol):
    @property
    def disposition(self) -> int: ...


S = TypeVar("S", bound=_HasDisposition)


def default_first(streams: Iterable[S]) -> list[S]:
    """Streams as players choose among them: those that the container marks as default come first."""
    return sorted(streams, key=lambda stream: not int(stream.disposition) & _DEFAULT)
