"""A model that follows a stream without slowing it: it works on the newest frame, the stream takes the newest answer.

frames   |  |  |  |  |  |  |  |  |  |          never wait
model    [---------][---------][-------        each on the newest frame when it becomes free
answers            a         b                 frames after a carry a, with its age, until there is b
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avis_stream.interop.answer import Answer, Row, layer_of
from avis_stream.interop.stamps import GoneBack
from avis_stream.stream.cores import model_threads, set_own_threads
from avis_stream.stream.lanes import Lanes, lanes_for
from avis_stream.stream.ring import SoundRing, sample_of
from avis_stream.stream.stats import StatsKeeper
from avis_stream.stream.two_rates import PERIOD_DISTANCES, Segmenter, TwoRates, is_earlier, is_old_enough, period_of
from avis_stream.threads import ComputingThread
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AVPair, OnlineResult, VideoFrame

_MILLISECOND = 1_000_000
_RING_SECONDS = 16.0
_AHEAD_NS = 8 * NANOSECONDS
"""Sound of a file may be so far ahead of the pictures, before it would push out what frames to come belong to."""
_LOOK_SECONDS = 0.05
_STUCK_NS = 10 * NANOSECONDS
"""Without a picture for so long, pictures wait for the sound that is held back, or there is a hole in them."""
_LET_NS = 2 * NANOSECONDS
"""So much of it is let go at a time: the ring must still hold what the next picture belongs to."""
_NEXT_LET_NS = NANOSECONDS // 4
"""After the first time; in between pictures have time to come, and a long hole is passed in an eighth of its length."""


class Picture(Protocol):
    """A frame's pixels, where they lie: most frames are passed over, and only those that the model takes are read."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""

    def pixels(self) -> NDArray[np.uint8]:
        """A copy, uint8 [H, W, 3]; called from the thread that runs the model."""


class _Arrived(NamedTuple):
    """A frame; made for each in the stream's own thread, so of the cheapest kind."""

    picture: Picture
    pts_ns: int
    number: int
    at_ns: int
    """On the monotonic clock."""
    rates: TwoRates
    """The stream that it belongs to: after a seek another one begins."""

    def image(self) -> Tensor:
        return torch.from_numpy(self.picture.pixels()).permute(2, 0, 1)


class Follower:
    """Sound and frames in at any time, the newest answer out; the model has a thread of its own.

    Times are the stream's, in nanoseconds. `start` begins the model's threads; without it, whoever calls `frame_sync`
    runs the model. What is called back is called from where the model runs, in either case, one call at a time.
    """

    def __init__(
        self, segmenter: Segmenter, classes: Sequence[str], *, num_threads: int, audio_wait_ms: int,
        draw: Callable[[], bool],
        told: Callable[[AVPair, Answer], object] = lambda pair, answer: None,
        failed: Callable[[BaseException], object] = lambda error: None, wants_previous: bool = True,
        source_id: str = "",
    ) -> None:  # fmt: skip
        """Begins nothing; see `start`.

        Args:
            segmenter: An `OnlineSegmenter`.
            classes: Class names by `class_id`.
            num_threads: Of the model, which may take several frames between two steps at once (`stream/lanes.py`).
            audio_wait_ms: A frame waits so long for the end of its second of sound.
            draw: Whether an answer is to be drawn, asked with each.
            told: Called with every answer and what it answers.
            failed: Called once, if the model or a picture fails; there are no answers after that.
            wants_previous: Whether the model wants the picture 100 ms earlier.
            source_id: Of the frames.
        """
        self._segmenter, self._classes = segmenter, tuple(classes)
        self._num_threads, self._wait_ms = num_threads, audio_wait_ms
        self._draw, self._told, self._failed, self._wants_previous = draw, told, failed, wants_previous
        self._source_id = source_id
        self._change = threading.Condition()
        """Of sound, and of what is to be done; frames have a quicker way."""
        self._slot = threading.Lock()
        """Guards `_newest` and `_at_work`; taken inside `_change`, never around it."""
        self._wake: SimpleQueue[bool] = SimpleQueue()
        """True for each frame that found the slot empty, False to stop."""
        self._newest: _Arrived | None = None
        self._at_work = 0
        """Frames that the model has in hand, until their answers have been told."""
        self._flushing = False
        """Nothing is waited for: the stream is about to be forgotten."""
        self._thread: threading.Thread | None = None
        self._lanes = Lanes[Answer]((num_threads,), self._fail)
        self._over = False
        self._in_hand = 0
        """Above 0 while a frame is on its way through."""
        self.failure: BaseException | None = None
        """Why there are no more answers."""
        self._first_sound_ns: int | None = None
        self.stats = StatsKeeper()
        self.counts: Counter[str] = Counter()
        self.reset()

    def reset(self, *, keeps_sound: bool = False) -> None:
        """Forgets the stream: after a seek, or when it begins anew.

        `keeps_sound`: what there is of sound, or that it has ended, belongs to the new one already.
        """
        with self._change:
            self._flushing = self._ended = False
            self._moved_ns = time.monotonic_ns()
            """When a picture came, or had gone through, last."""
            self._gap_ns: int | None = None
            """Until there no picture was to come."""
            self._let_ns: int | None = None
            """Sound was let go as if pictures had come until there; None: they have caught up."""
            if not keeps_sound:
                self._forget_sound()
            self._take()
            self._stamps: deque[int] = deque(maxlen=PERIOD_DISTANCES + 1)
            """Of the last frames, to know how long each is shown."""
            self._back = GoneBack()
            self._earlier: deque[_Arrived] = deque()
            self._rates = TwoRates(self._segmenter)  # which one it is tells this stream from those before
            self.answer: Answer | None = None
            self._change.notify_all()

    # --- what the stream does ----------------------------------------------------------------------------------------

    def sound(self, samples: NDArray[np.float32], pts_ns: int) -> None:
        """Takes a block of sound, float32 [n] at 16 kHz."""
        with self._change:
            self._has_sound = True
            if self._begins_anew(pts_ns):
                self._ring.clear()
            self._ring.push(samples, pts_ns)
            self._change.notify_all()

    def _begins_anew(self, pts_ns: int) -> bool:
        """Whether sound does, to where the pictures are; else they still need what the ring would have to forget."""
        end = self._ring.end
        if end is None or not self._sound_back.is_for_good(pts_ns, end * NANOSECONDS // SAMPLE_RATE):
            return False
        seen_ns = self._seen_ns()
        return abs(pts_ns - seen_ns) < abs(end * NANOSECONDS // SAMPLE_RATE - seen_ns)

    def await_pictures(self, pts_ns: int, playing: Callable[[], bool]) -> bool:
        """Waits while sound from there on is too far ahead of the pictures to be kept for them.

        For sound of files, which nobody else paces: demuxers hand out a whole track while the other waits.

        Args:
            pts_ns: Of the sound that has come.
            playing: Whether pictures should be coming.
        Returns:
            False: no picture came for long, for the first time. They may wait for this sound, so it is let go, little
            by little, until they have come.
        """
        with self._change:
            if self._first_sound_ns is None:
                self._first_sound_ns = pts_ns
            if pts_ns <= self._seen_ns() + _AHEAD_NS:
                self._let_ns = None
            while self._outruns(pts_ns):
                self._change.wait(_LOOK_SECONDS)
                if self._in_hand or not playing():
                    self._moved_ns = time.monotonic_ns()
                elif time.monotonic_ns() - self._moved_ns > (_STUCK_NS if self._let_ns is None else _NEXT_LET_NS):
                    self._let_ns = pts_ns - _AHEAD_NS + _LET_NS
                    self._moved_ns = time.monotonic_ns()
                    self.counts["let_go"] += 1
                    return self.counts["let_go"] > 1
        return True

    def _outruns(self, pts_ns: int) -> bool:
        gone = self._over or self._flushing or self._ended or self.failure is not None
        if gone or not self._has_sound:
            return False
        seen_ns = self._seen_ns()
        return pts_ns > (seen_ns if self._let_ns is None else max(seen_ns, self._let_ns)) + _AHEAD_NS

    def _seen_ns(self) -> int:
        """How far pictures have come; before the first, where sound began."""
        last_ns = self._stamps[-1] if self._stamps else self._first_sound_ns or 0
        return last_ns if self._gap_ns is None else max(last_ns, self._gap_ns)

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """While a frame, or what is told in its place, is on its way through: no picture is missing, however long."""
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
            self._moved_ns = time.monotonic_ns()

    def no_frame(self, end_ns: int) -> None:
        """Takes note that none comes until there."""
        with self._change:
            self._gap_ns = end_ns if self._gap_ns is None else max(self._gap_ns, end_ns)
            self._moved_ns = time.monotonic_ns()
            self._change.notify_all()

    def frames_over(self) -> None:
        """No frame comes any more: sound waits for none."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def no_sound(self, begin_ns: int, end_ns: int) -> None:
        """Takes note that there is none in [begin_ns, end_ns): nothing is waited for until there."""
        with self._change:
            self._has_sound = True
            end = sample_of(end_ns)
            begin = max(sample_of(begin_ns), end - self._ring.size)  # a gap may be hours long
            self._ring.push(np.zeros(max(0, end - begin), np.float32), begin * NANOSECONDS // SAMPLE_RATE, heard=False)
            self._change.notify_all()

    def sound_over(self) -> None:
        """No sound comes for now: nothing waits for it."""
        with self._change:
            self._has_sound = False
            self._change.notify_all()

    def flush(self) -> None:
        """Lets go whatever waits, until `reset`: nobody wants an answer any more."""
        with self._change:
            self._flushing = True
            self._change.notify_all()

    def forget_sound(self) -> None:
        """The sound there is belongs to no frame to come."""
        with self._change:
            self._forget_sound()

    def _forget_sound(self) -> None:
        self._ring, self._sound_back = SoundRing(_RING_SECONDS), GoneBack()
        self._has_sound = False
        self._first_sound_ns = self._let_ns = None

    def expect_sound(self) -> None:
        """Sound is about to come."""
        with self._change:
            self._has_sound = True

    def frame(self, picture: Picture, pts_ns: int) -> None:
        """Takes a frame, whose pixels must stay as they are while it is held; never waits."""
        arrived = self._arrived(picture, pts_ns)
        if arrived is None:
            return
        with self._slot:
            passed_over, self._newest = self._newest is not None, arrived
        if passed_over:
            self.counts["passed_over"] += 1
        else:
            self._wake.put(True)

    def frame_sync(self, picture: Picture, pts_ns: int) -> Answer | None:
        """Takes a frame and waits for its answer; None: its time is not later than the last one's, or `failure`."""
        arrived = self._arrived(picture, pts_ns)
        if arrived is None or self.failure is not None:
            return None
        set_own_threads(self._num_threads)
        with self.in_hand(), self._failing():
            self._think(self._paired(arrived), arrived.rates)
        return None if self.failure is not None else self.answer

    def _arrived(self, picture: Picture, pts_ns: int) -> _Arrived | None:
        """Notes a frame, as cheaply as can be: this happens in the stream's own thread."""
        number = self.counts["frames"]
        self.counts["frames"] += 1
        if self._stamps and self._back.is_for_good(pts_ns, self._stamps[-1]):
            self.counts["begun_anew"] += 1
            self.reset(keeps_sound=True)
        elif self._stamps and pts_ns <= self._stamps[-1]:
            self.counts["out_of_order"] += 1
            return None
        self._stamps.append(pts_ns)
        self._moved_ns = time.monotonic_ns()
        arrived = _Arrived(picture, pts_ns, number, time.monotonic_ns(), self._rates)
        if self._wants_previous:
            self._earlier.append(arrived)
            # Few are held, since cameras lend few buffers; one more than needed, as the model may be choosing just now.
            while len(self._earlier) > 2 and is_old_enough(self._earlier[2].pts_ns, pts_ns):
                self._earlier.popleft()
        return arrived

    def finish(self, seconds: float) -> bool:
        """Waits for the answers of all frames that the model takes, until they have been told.

        Returns:
            False: they were not there within so many seconds. True if none will come: after `stop`, `flush` or a
            failure.
        """

        def done() -> bool:
            with self._slot:
                at_rest = self._newest is None and self._at_work == 0
            return at_rest or self._over or self._flushing or self.failure is not None

        with self._change:
            return self._change.wait_for(done, seconds)

    # --- what the model does -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the model's threads."""
        self._over, self._wake, self._at_work = False, SimpleQueue(), 0
        self._thread = ComputingThread(self._run, end=self.stop, name="avis element")
        self._thread.start()

    def stop(self) -> None:
        """Ends them after what is at hand; called from one of them, without waiting for that."""
        with self._change:
            self._over = True
            self._change.notify_all()
        self._wake.put(False)
        own = self._thread is threading.current_thread() or self._lanes.runs_here()
        if self._thread is not None and not own:
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        threads = lanes_for(self._segmenter, self._num_threads)
        with self._failing(), model_threads(self._num_threads), Lanes[Answer](threads, self._fail) as self._lanes:
            while self._wake.get():
                if self._rates.expects_step():
                    self._lanes.drain()
                self._lanes.wait()  # before a frame is taken, so that it is the newest
                arrived = self._take(to_work=True)
                if arrived is None:
                    continue  # a seek was quicker
                pair = self._paired(arrived)
                is_step = arrived.rates.is_step(pair)
                if is_step:
                    self._lanes.drain()  # it consumes the state that they read
                if self._over or self.failure is not None:
                    return
                if is_step:
                    self._think(pair, arrived.rates)
                    self._rest()
                else:
                    self._glance(pair, arrived.rates)

    def _glance(self, pair: AVPair, rates: TwoRates) -> None:
        """Has a lane look at a pair between two steps, for the stream that it was taken from."""
        refresh = rates.between(pair)
        assert refresh is not None, "each frame gets a result"

        def hand_on(answer: Answer) -> None:
            self._tell(answer, pair, rates, refreshed=True)
            self._rest()

        self._lanes.put(lambda: self._answered(refresh, "refresh"), hand_on)

    def _take(self, *, to_work: bool = False) -> _Arrived | None:
        with self._slot:
            arrived, self._newest = self._newest, None
            if to_work and arrived is not None:
                self._at_work += 1
        return arrived

    def _rest(self) -> None:
        """One frame less in hand."""
        with self._change:
            with self._slot:
                self._at_work -= 1
            self._change.notify_all()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # whatever a segmenter raises: the stream goes on without it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._change:
            if self.failure is not None:
                return  # a lane was quicker
            self.failure = error
            self._change.notify_all()
        self._failed(error)

    def _paired(self, arrived: _Arrived) -> AVPair:
        """With its second of sound, for whose end it waits as long as it may."""
        frame = self._frame_of(arrived)  # copies pixels, which sound need not wait for
        end_ns = arrived.pts_ns + period_of(b - a for a, b in itertools.pairwise(list(self._stamps)))
        end = sample_of(end_ns)

        def heard() -> bool:
            gone = self._over or self._flushing or not self._has_sound
            return gone or (self._ring.end or 0) >= end

        rest = arrived.at_ns + self._wait_ms * _MILLISECOND - time.monotonic_ns()
        with self._change:
            if not self._change.wait_for(heard, max(0.0, rest / 1e9)):
                self.counts["late_sound"] += 1
            samples, share = self._ring.window(end)
            # As `AVAligner` has it: what came late or was lost counts as sound, a stream without sound has none.
            valid = SAMPLE_RATE if self._has_sound or self._ring.end is not None else 0
        return AVPair(
            frame=frame, audio=torch.from_numpy(samples), audio_valid=share, valid_samples=valid, end_ns=end_ns
        )

    def _frame_of(self, arrived: _Arrived) -> VideoFrame:
        size = arrived.picture.size
        fitting = (
            other
            for other in reversed(list(self._earlier))  # at once: the stream goes on
            if is_earlier(other.pts_ns, arrived.pts_ns) and other.picture.size == size
        )
        earlier = next(fitting, None)
        previous = None if earlier is None else earlier.image()
        return VideoFrame(
            image=arrived.image(), pts_ns=arrived.pts_ns, frame_id=arrived.number, source_id=self._source_id,
            previous=previous,
        )  # fmt: skip

    def _think(self, pair: AVPair, rates: TwoRates) -> None:
        """Runs the model on a pair, for the stream that it was taken from: after a seek that one leads nowhere."""
        if rates is not self._rates:
            return
        refreshed = not rates.is_step(pair)

        def result() -> OnlineResult:
            done = rates(pair)
            assert done is not None, "each frame gets a result"
            return done[0]

        self._tell(self._answered(result, "refresh" if refreshed else "step"), pair, rates, refreshed=refreshed)

    def _answered(self, work: Callable[[], OnlineResult], stage: str) -> Answer:
        """What the model says, in the forms that frames carry; not numbered yet."""
        begin = time.monotonic_ns()
        result = work()
        self.stats.time(stage, time.monotonic_ns() - begin)
        layer = layer_of(result, self._classes) if self._draw() else None
        return Answer(result, 0, layer, tuple(Row.all_of(result, self._classes)))

    def _tell(self, answer: Answer, pair: AVPair, rates: TwoRates, *, refreshed: bool) -> None:
        with self._change:
            if rates is not self._rates:
                return  # of a stream that has been left meanwhile
            self.counts["answers"] += 1
            self.counts["refreshes" if refreshed else "steps"] += 1
            self.answer = answer = replace(answer, number=self.counts["answers"])
        self._told(pair, answer)


def model_segmenter(
    name: str, weights: str | None, device: str, score_threshold: float, mask_threshold: float
) -> tuple[Any, tuple[str, ...], bool]:
    """A segmenter for `Follower`, the names of its classes, and whether it wants the picture 100 ms earlier.

    A negative `score_threshold` is the model's own.
    """
    from avis_stream.online import OnlineConfig, OnlineSegmenter
    from avis_stream.weights import load

    model = load(name, weights or None, device)
    config = OnlineConfig.of(model.config, mask_threshold=mask_threshold)
    if score_threshold >= 0:
        config = replace(config, show_score=score_threshold)
    return OnlineSegmenter(model, config), tuple(model.classes), model.wants_previous
