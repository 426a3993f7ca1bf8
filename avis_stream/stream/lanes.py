"""Lanes: pictures between two steps are worked on beside each other, and their results go on in order.

lane 1   [--- 1 ---]    [--- 3 ---] [---- 5 ----]
lane 2      [------ 2 ------]   [--- 4 ---]
results             1       2       3     4     5      one that is ready early waits for those before it

A small network has hundreds of small operations, after each of which torch's threads wait for each other; two pictures
on a thread each take little longer than one does on two threads. On two cores that is 21 pictures a second for 12.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from avis_stream.stream.cores import set_own_threads
from avis_stream.stream.two_rates import Segmenter

Item = TypeVar("Item")
Made = TypeVar("Made")
Job = tuple[int, Callable[[], Made], Callable[[Made], object]]
"""Its number, what is to be done, and who gets what that makes."""
_MOST = 4
"""Lanes that a stream needs at most: beyond, they get more threads."""
_QUICK_NS = 250_000_000
"""A picture that takes longer on a lane is one for a large network, which keeps all threads busy with each."""
_TRIED = 4
"""Jobs of each lane until that is decided by the quickest: the first ones make what others find ready."""


def lanes_for(segmenter: Segmenter, threads: int) -> tuple[int, ...]:
    """How many threads each of a stream's lanes gets; one lane if the segmenter does not say that it allows more."""
    return shares_of(threads) if getattr(segmenter, "concurrent_refreshes", False) else (threads,)


def shares_of(threads: int) -> tuple[int, ...]:
    """How many threads each lane gets of so many."""
    number = min(threads, _MOST)
    return tuple(threads // number + (lane < threads % number) for lane in range(number))


class Lanes(Generic[Made]):
    """Threads that take jobs from one other thread, which waits for a free lane before it chooses the next job.

    Jobs that turn out to be long are done one after the other by whoever gives them, with all of its threads, and so
    are all jobs if there is only one lane. A context: when it is left, what was begun is finished and the threads are
    gone.
    """

    def __init__(self, threads: Sequence[int], failed: Callable[[BaseException], object]) -> None:
        """Begins them.

        Args:
            threads: That torch may use, in each lane.
            failed: Called once, on a lane, with what a job raised there. Nothing is handed on after that.
        """
        self._failed = failed
        self._jobs: SimpleQueue[Job[Made] | None] = SimpleQueue()
        self._change = threading.Condition()
        """Guards and announces the counters."""
        self._given = self._done = 0
        self._broken = False
        self._quickest_ns = math.inf
        """What a job took at least."""
        self._lanes: list[threading.Thread] = []
        if len(threads) > 1:
            self._begin(threads)

    def wait(self) -> None:
        """Returns when a lane is free."""
        with self._change:
            self._change.wait_for(lambda: self._given - self._done < max(1, len(self._lanes)))

    def drain(self) -> None:
        """Returns when all that was given has been handed on, or thrown away after a failure."""
        with self._change:
            self._change.wait_for(lambda: self._given == self._done)

    def put(self, work: Callable[[], Made], hand_on: Callable[[Made], object]) -> None:
        """Has a job done: what `work` makes is handed on, after that of all jobs before it.

        On a lane, or here and at once if it is better done with all threads; then it may raise.
        """
        if not self._pays():
            self.drain()
            if not self._broken:
                hand_on(work())
            return
        with self._change:
            self._given += 1
            number = self._given
        self._jobs.put((number, work, hand_on))

    def runs_here(self) -> bool:
        """Whether the current thread is one of them, which must not wait for their end."""
        return threading.current_thread() in self._lanes

    def __enter__(self) -> Lanes[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._lanes:
            self._jobs.put(None)
        for lane in self._lanes:
            lane.join()

    def _pays(self) -> bool:
        """Whether jobs are given to lanes: till all have been tried, and then if they are short."""
        tried = self._done >= _TRIED * len(self._lanes)
        return bool(self._lanes) and not (tried and self._quickest_ns > _QUICK_NS)

    def _begin(self, threads: Sequence[int]) -> None:
        ready = threading.Barrier(len(threads) + 1)
        for n, own in enumerate(threads, 1):
            lane = threading.Thread(target=self._run, args=(own, ready), name=f"avis lane {n}", daemon=True)
            self._lanes.append(lane)
            lane.start()
        ready.wait()

    def _run(self, threads: int, ready: threading.Barrier) -> None:
        set_own_threads(threads)
        ready.wait()
        while self._did_one():
            pass

    def _did_one(self) -> bool:
        """Does the next job; False: there are no more. Nothing of it is held while the next one is waited for."""
        job = self._jobs.get()
        if job is None:
            return False
        number, work, hand_on = job
        try:
            begin = time.monotonic_ns()
            made = work()
            took = time.monotonic_ns() - begin
            self._await_turn(number)
            self._quickest_ns = min(self._quickest_ns, took)
            if not self._broken:
                hand_on(made)
        except BaseException as error:  # whatever a segmenter raises: the others wait for this one
            self._await_turn(number)
            if not self._broken:
                self._broken = True
                self._failed(error)
        finally:  # whatever comes of it: all others wait for this
            self._await_turn(number)
            with self._change:
                self._done = number
                self._change.notify_all()
        return True

    def _await_turn(self, number: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self._done == number - 1)


def beside(work: Callable[[Item], Made], items: Iterable[Item], shares: Sequence[int]) -> Iterator[Made]:
    """As `map(work, items)`, with as many at once as there are lanes.

    Args:
        work: Done on any thread.
        items: Taken a few ahead of what comes out.
        shares: Threads of each lane.
    """
    made: SimpleQueue[Made] = SimpleQueue()
    errors: list[BaseException] = []

    def ready() -> Iterator[Made]:
        while not made.empty():
            yield made.get()
        if errors:
            raise errors[0]

    with Lanes[Made](shares, errors.append) as lanes:
        for item in items:
            lanes.wait()
            lanes.put(partial(work, item), made.put)
            yield from ready()
        lanes.drain()
        yield from ready()
