"""Cores for a model beside decoders: how many threads it gets, and that they sleep while they wait for each other.

torch's threads are OpenMP's. libgomp lets them spin for milliseconds between two operations, which takes cores from the
decoder, and whatever takes a core from one of them makes all wait. `OMP_WAIT_POLICY=passive` would stop that, but only
if it is set before torch is loaded, and then for all that a program does. While libgomp manages more threads than
there are cores it does not let them spin either (its `gomp_managed_threads`): a second pool that sleeps, for as long as
the model runs, is enough. With another OpenMP it costs a sleeping thread and changes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

_GRAIN = 32_768
"""Elements that torch gives a thread at least."""
_PLENTY = 4
"""Threads beyond which the small operations of a frame gain little."""

_ONE_AT_A_TIME = threading.Lock()


def usual_threads() -> int:
    """As many as `OMP_NUM_THREADS` says; else all cores up to four, beyond that half of them."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    cores = os.cpu_count() or 1
    return max(min(cores, _PLENTY), cores // 2)


def set_own_threads(number: int) -> None:
    """As `torch.set_num_threads`, for the current thread alone.

    torch lets a thread start with what was set last anywhere, when it first asks. So that this stays what the program
    has chosen, and not what one of several models needs, a new thread asks for it, and another sets it again.
    """
    if torch.get_num_threads() == number:
        return
    with _ONE_AT_A_TIME:
        usual = _in_a_new_thread(torch.get_num_threads)
        torch.set_num_threads(number)
        _in_a_new_thread(lambda: torch.set_num_threads(usual))


def _in_a_new_thread(work: Callable[[], Any]) -> Any:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(work()), name="avis cores", daemon=True)
    thread.start()
    thread.join()
    return made[0]


@contextmanager
def model_threads(number: int) -> Iterator[None]:
    """Lets torch use so many threads from this one, which sleep when they have nothing to do."""
    before = torch.get_num_threads()
    set_own_threads(number)
    try:
        with _asleep_while_idle(number):
            yield
    finally:
        with suppress(RuntimeError):  # at the end of the program no thread begins, and this one ends
            set_own_threads(before)


@contextmanager
def _asleep_while_idle(number: int) -> Iterator[None]:
    """Keeps a second pool, so that the threads of the first, `number` of them, do not spin."""
    if number == 1:
        yield
        return
    over = threading.Event()
    asleep = threading.Event()
    more_than_cores = max(2, (os.cpu_count() or 1) - number + 2)  # a pool counts without the thread that owns it
    pool = threading.Thread(target=_sleep, args=(more_than_cores, asleep, over), name="avis sleeper", daemon=True)
    pool.start()
    asleep.wait()
    try:
        yield
    finally:
        over.set()
        pool.join()


def _sleep(number: int, asleep: threading.Event, over: threading.Event) -> None:
    """Makes a pool of threads by one operation, which none comes after."""
    set_own_threads(number)
    torch.zeros(number * _GRAIN).add_(1)
    asleep.set()
    over.wait()
