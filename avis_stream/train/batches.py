"""Numbered samples, a few at a time, made while the ones before are learnt from."""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from avis_stream.errors import AvisStreamError
from avis_stream.train.source import Source


class Sample(Protocol):
    """What a step learns from, a few at a time: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """For messages."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


S = TypeVar("S", bound=Sample)


class _Numbered(Dataset[list[S] | AvisStreamError]):
    """Runs of samples, by the number of the first."""

    def __init__(self, source: Source[S], size: int) -> None:
        self._source, self._size = source, size

    def __getitem__(self, first: int) -> list[S] | AvisStreamError:
        try:
            return [self._source.clip(first + i) for i in range(self._size)]
        except AvisStreamError as error:  # raised by whoever takes it: the loader would bury its words in a traceback
            return error


def _leave_signals_to_the_caller(_: int) -> None:
    """Terminals and schedulers signal whole groups of processes; clips must go on coming while the state is saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(source: Source[S], size: int, firsts: range, *, ahead: bool = True) -> Generator[list[S]]:
    """Runs of `size` samples that begin with the numbers `firsts`, made two runs ahead.

    By a process of its own: a thread would hold up every operator of the step that is learnt from meanwhile (Python's
    lock).

    Args:
        source: Numbered samples.
        size: Of a run.
        firsts: Their first numbers.
        ahead: False: the samples are there already, so they are taken when they are wanted.
    Raises:
        AvisStreamError: What the source raised.
    """
    own = torch.Generator()  # else it would take numbers from the generator that random points come from
    loader = DataLoader(
        _Numbered(source, size),
        None,
        sampler=firsts,
        num_workers=int(ahead),
        generator=own,
        worker_init_fn=_leave_signals_to_the_caller,
    )
    for samples in loader:
        if isinstance(samples, AvisStreamError):
            raise samples
        yield samples
