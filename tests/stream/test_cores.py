"""Threads of a live model: as many as asked for, and asleep while they wait."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from avis_stream.stream.cores import model_threads, usual_threads


def sleepers() -> int:
    return sum(thread.name == "avis sleeper" for thread in threading.enumerate())


def test_the_model_gets_its_threads_and_nobody_else_is_changed() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as model:

        def run() -> tuple[int, int]:
            with model_threads(2):
                return torch.get_num_threads(), sleepers()

        assert model.submit(run).result(60) == (2, 1)
    assert sleepers() == 0
    assert torch.get_num_threads() == before


def test_models_at_the_same_time_leave_what_the_program_has_chosen() -> None:
    """torch lets a thread start with what was set last anywhere."""
    chosen = begun_now()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second = model_threads(chosen + 1), model_threads(chosen + 2)
        one.submit(first.__enter__).result(60)
        assert begun_now() == chosen
        other.submit(second.__enter__).result(60)
        assert begun_now() == chosen
        assert [pool.submit(torch.get_num_threads).result(60) for pool in (one, other)] == [chosen + 1, chosen + 2]
        one.submit(first.__exit__, None, None, None).result(60)
        other.submit(second.__exit__, None, None, None).result(60)
    assert begun_now() == chosen == torch.get_num_threads()


def begun_now() -> int:
    """How many threads a thread starts with."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(torch.get_num_threads).result(60)


def test_the_sleeper_goes_when_the_model_fails_and_one_thread_needs_none() -> None:
    def run() -> None:
        with model_threads(1):
            assert sleepers() == 0
        with model_threads(2):
            raise MemoryError

    with ThreadPoolExecutor(1) as model, pytest.raises(MemoryError):
        model.submit(run).result(60)
    assert sleepers() == 0


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (6, 4), (16, 8)])
def test_usual_threads(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usual_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usual_threads() == 3


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: torch has no threads that could spin")
@pytest.mark.skipif("OMP_WAIT_POLICY" in os.environ, reason="OMP_WAIT_POLICY says already how threads wait")
def test_threads_that_wait_take_no_cores() -> None:
    """Processor time of all threads, while one does an operation now and then."""

    def busy() -> float:
        some = torch.zeros(1 << 16)
        begin = time.process_time()
        for _ in range(200):
            some.add_(1)
            time.sleep(0.004)
        return time.process_time() - begin

    def spinning() -> float:
        torch.set_num_threads(os.cpu_count() or 1)
        return busy()

    def sleeping() -> float:
        with model_threads(os.cpu_count() or 1):
            return busy()

    with ThreadPoolExecutor(1) as one:
        before = one.submit(spinning).result()
    with ThreadPoolExecutor(1) as one:
        after = one.submit(sleeping).result()
    print(f"{before:.2f} s of processor time, {after:.2f} s with a sleeper")
    assert after < before / 3
