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
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

import torch

from avis_stream.online import OnlineSegmenter
from avis_stream.stream.two_rates import Segmenter

Made = TypeVar("Made")
_MOST = 4
"""Lanes that a stream needs at most: beyond, each gets more threads."""
_QUICK_NS = 250_000_000
"""A picture that takes longer on a lane is one for a large network, which keeps all threads busy with each."""


def lanes_for(segmenter: Segmenter, threads: int) -> tuple[int, int]:
    """How many lanes, and how many threads each, share a number of threads.

    More than one if pictures are known not to get in each other's way: a segmenter of the caller's may allow one at a
    time, and a GPU is shared by its own means.
    """
    if not isinstance(segmenter, OnlineSegmenter) or segmenter.model.device.type != "cpu":
        return 1, threads
    number = min(threads, _MOST)
    return number, threads // number


class Lanes(Generic[Made]):
    """Threads that take jobs from one other thread, which waits for a free lane before it chooses the next job.

    Jobs that turn out to be long are done one after the other by whoever gives them, with all of its threads, and so
    are all jobs if there is only one lane. A context: when it is left, what was begun is finished and the threads are
    gone.
    """

    def __init__(self, number: int, threads: int, failed: Callable[[Exception], object]) -> None:
        """Begins them.

        Args:
            number: Of lanes.
            threads: That torch may use in each.
            failed: Called once, on a lane, with what a job raised there. Nothing is handed on after that.
        """
        self._number, self._threads, self._failed = number, threads, failed
        self._jobs: SimpleQueue[tuple[int, Callable[[], Made], Callable[[Made], object]] | None] = SimpleQueue()
        self._change = threading.Condition()
        """Guards and announces the counters."""
        self._given = self._done = 0
        self._broken = False
        self._quickest_ns: float = 0.0 if number > 1 else math.inf
        """What a job took at least; 0: none is done yet."""
        self._lanes: list[threading.Thread] = []
        if number > 1:
            self._begin()

    def wait(self) -> None:
        """Returns when a lane is free."""
        with self._change:
            self._change.wait_for(lambda: self._given - self._done < self._number)

    def put(self, work: Callable[[], Made], hand_on: Callable[[Made], object]) -> None:
        """Gives a job to a lane. What it makes is handed on, from there, after that of all jobs before it."""
        if self._quickest_ns > _QUICK_NS:
            self.drain()
            if not self._broken:
                hand_on(work())
            return
        with self._change:
            self._given += 1
            number = self._given
        self._jobs.put((number, work, hand_on))

    def drain(self) -> None:
        """Returns when all that was given has been handed on."""
        with self._change:
            self._change.wait_for(lambda: self._given == self._done)

    def __enter__(self) -> Lanes[Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._lanes:
            self._jobs.put(None)
        for lane in self._lanes:
            lane.join()

    def _begin(self) -> None:
        before = torch.get_num_threads()
        ready = threading.Barrier(self._number + 1)
        for n in range(self._number):
            name = f"avis lane {n + 1}"
            self._lanes.append(threading.Thread(target=self._run, args=(ready,), name=name, daemon=True))
            self._lanes[-1].start()
        ready.wait()
        torch.set_num_threads(before)  # what threads begun later start with

    def _run(self, ready: threading.Barrier) -> None:
        torch.get_num_threads()  # a thread's first look takes over what was set last anywhere, later ones do not
        torch.set_num_threads(self._threads)
        ready.wait()
        while (job := self._jobs.get()) is not None:
            number, work, hand_on = job
            begin = time.monotonic_ns()
            try:
                made = work()
                took = time.monotonic_ns() - begin
                self._await_turn(number)
                self._quickest_ns = min(self._quickest_ns or math.inf, took)
                if not self._broken:
                    hand_on(made)
            except Exception as error:
                self._await_turn(number)
                if not self._broken:
                    self._broken = True
                    self._failed(error)
            with self._change:
                self._done = number
                self._change.notify_all()

    def _await_turn(self, number: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self._done == number - 1)
