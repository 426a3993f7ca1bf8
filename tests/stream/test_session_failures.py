"""Whatever a caller's own source or model raises ends a session, and is raised where results are read."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from live_tools import StubSegmenter

from avis_stream.errors import ConfigError, SourceError
from avis_stream.online import OnlineState
from avis_stream.stream.session import Session, SessionConfig
from avis_stream.types import AVPair, OnlineResult, VideoFrame

S = 1_000_000_000
FAILURES = [SystemExit(3), KeyboardInterrupt(), ValueError("the driver says no")]


def frames(count: int, failure: BaseException | None = None) -> Iterator[VideoFrame]:
    for n in range(count):
        yield VideoFrame(image=torch.zeros(3, 24, 32, dtype=torch.uint8), pts_ns=n * S // 25, frame_id=n)
    if failure is not None:
        raise failure


def read(session: Session) -> None:
    while session.next(30) is not None:
        pass


class Failing(StubSegmenter):
    """Gives up in its second step, or in its second picture between steps, on a lane."""

    concurrent_refreshes = True

    def __init__(self, failure: BaseException, *, between: bool) -> None:
        super().__init__(hop_seconds=1.0 if between else 0.04)
        self.failure, self.between, self.calls = failure, between, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise self.failure

    def step_pair(self, pair: AVPair, state: OnlineState) -> tuple[OnlineResult, OnlineState]:
        if not self.between:
            self._count()
        return super().step_pair(pair, state)

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        if self.between:
            self._count()
        return super().refresh_pair(pair, state)


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_source_may_raise_anything(failure: BaseException) -> None:
    session = Session(StubSegmenter(hop_seconds=0.04), frames(3, failure), None)
    with session, pytest.raises(SourceError, match=type(failure).__name__):
        read(session)
    assert session.over


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_model_may_raise_anything(failure: BaseException, between: bool) -> None:
    session = Session(
        Failing(failure, between=between), frames(20), None, config=SessionConfig(num_threads=2, policy="every")
    )
    with session, pytest.raises(type(failure)):
        read(session)
    assert session.over


def test_who_asks_whether_it_is_over_hears_of_a_failure() -> None:
    session = Session(StubSegmenter(hop_seconds=0.04), frames(3, ValueError("the driver says no")), None)

    def poll() -> None:
        while not session.over:
            session.next(0.02)
            time.sleep(0.1)  # it fails meanwhile

    with session, pytest.raises(SourceError, match="the driver says no"):
        poll()


def test_one_buffer_for_all_pictures() -> None:
    """As cameras are read: the next picture is written where the last one was."""
    buffer, heard = torch.zeros(3, 24, 32, dtype=torch.uint8), torch.zeros(16_000)

    def filmed() -> Iterator[AVPair]:
        for n in range(6):
            buffer.fill_(10 * n)
            heard.fill_(n / 10)
            frame = VideoFrame(image=buffer, pts_ns=n * S, frame_id=n, previous=buffer)
            yield AVPair(frame=frame, audio=heard, audio_valid=1.0, end_ns=(n + 1) * S)

    with Session(StubSegmenter(), filmed(), config=SessionConfig(policy="every")) as session:
        pairs = [result.pair for result in session]
    assert [int(pair.frame.image[0, 0, 0]) for pair in pairs] == [0, 10, 20, 30, 40, 50]
    assert [round(float(pair.audio[0]), 1) for pair in pairs] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_times_are_whole_numbers() -> None:
    with pytest.raises(ConfigError, match=r"VideoFrame\.pts_ns must be a whole number of 64 bits, got 0\.5"):
        VideoFrame(image=torch.zeros(3, 24, 32, dtype=torch.uint8), pts_ns=0.5, frame_id=0)  # type: ignore[arg-type]
