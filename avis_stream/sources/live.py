"""A camera, a microphone or a stream, followed through any number of connections.

worker process -> its thread -> session's queue -> `receive`, on the session's thread -> items on the session clock
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from avis_stream.errors import SourceError
from avis_stream.sources.address import redacted
from avis_stream.sources.child import Child, Message
from avis_stream.sources.items import Finished, Item, Lost, Post, SessionClock, SoundOver
from avis_stream.sources.stream_clock import MicrophoneClock, StreamClock
from avis_stream.sources.supervisor import Supervisor, SupervisorConfig
from avis_stream.sources.worker import wire
from avis_stream.types import NANOSECONDS, SAMPLE_RATE, AudioChunk, Event, VideoFrame

_QUIET_NS = 1 * NANOSECONDS
"""Without sound for so long beside pictures that come, frames stop waiting for it."""
_CLOSE_SECONDS = 1.0
_LONGEST_FILLER = 8 * SAMPLE_RATE


class LiveSource:
    """One source of pictures, of sound, or of both."""

    live = True

    def __init__(
        self, source_id: str, request: Mapping[str, Any], *, gives_pictures: bool, gives_sound: bool,
        config: SupervisorConfig | None = None,
    ) -> None:  # fmt: skip
        """Opens nothing yet.

        Args:
            source_id: Name for results and events; without passwords.
            request: What the worker is to read; it may hold passwords.
            gives_pictures: Whether pictures are wanted.
            gives_sound: Whether sound is wanted.
            config: None: the usual patience.
        """
        config = config or SupervisorConfig()
        self.source_id = source_id
        self.gives_pictures = gives_pictures
        self.gives_sound = gives_sound
        self._request = dict(request) | {
            "video": gives_pictures, "audio": gives_sound,
            "stall_seconds": config.stall_seconds, "open_seconds": config.open_seconds,
        }  # fmt: skip
        self._supervisor = Supervisor(source_id, config)
        self._child: Child | None = None
        self._killed: Child | None = None
        self._connection: Connection | None = None
        self._number = 0
        self._frames = 0
        self._last_pts_ns = -1
        self._sound_ns = 0
        self._quiet = False

    @property
    def reconnects(self) -> int:
        """How often it was found again."""
        return self._supervisor.reconnects

    def start(self, clock: SessionClock, post: Post) -> None:
        """Notes where to post; `tick` opens."""
        self._clock, self._post = clock, post

    def stop(self) -> None:
        """Kills the worker."""
        child, self._child = self._child, None
        self._number += 1  # whatever it has still said is old
        if child is not None:
            child.kill()
            self._killed = child

    def join(self, timeout: float) -> None:
        """Waits for the worker and its thread."""
        if self._killed is not None:
            self._killed.join(timeout)

    def _close(self) -> None:
        """Ends one connection of several: the next must find the device free."""
        self.stop()
        self.join(_CLOSE_SECONDS)

    def tick(self, now_ns: int) -> Iterable[Item]:
        """Opens, closes and gives up when it is time."""
        wish = self._supervisor.wants(now_ns)
        if wish == "open":
            self._open(now_ns)
        elif wish == "close":
            self._close()
            yield from self._gone(self._supervisor.impatience, now_ns)
        elif wish == "give_up":
            self._close()
            yield Finished(SourceError(f"{self.source_id} must come back, it is away for too long; is it on?"))
        if self._is_quiet(now_ns):
            self._quiet = True
            yield SoundOver()
            yield Event(kind="audio_missing", source_id=self.source_id)

    def _is_quiet(self, now_ns: int) -> bool:
        running = self._supervisor.state == "running" and self.gives_sound and self.gives_pictures
        return running and not self._quiet and now_ns - self._sound_ns > _QUIET_NS

    def _open(self, now_ns: int) -> None:
        self._number += 1
        number = self._number
        self._supervisor.opened(now_ns)
        self._connection = Connection(self._clock.origin_ns, known=self._request["reader"] == "gstreamer")
        name = f"avis source {self.source_id}"

        def deliver(message: Message) -> None:
            self._post((number, message))

        self._child = Child(self._request, deliver, name=name)

    def receive(self, what: object, now_ns: int) -> Iterator[Item]:
        """Makes items of a worker's message; those of connections that are over are left out."""
        number, message = cast("tuple[int, Message]", what)
        if number != self._number or self._connection is None:
            return
        if message.kind in (wire.ENDED, wire.FATAL):
            why = redacted(message.text)
            self._close()
            if message.kind == wire.FATAL:
                yield Finished(SourceError(f"{self.source_id} cannot be read: {why}"))
            elif why == "finished":
                yield Finished()
            else:
                yield from self._gone(why, now_ns)
        elif message.kind == wire.OPENED:
            self._connection.opened(json.loads(message.text))
            self._sound_ns = now_ns
            if self.gives_sound and self._connection.about.get("audio") is False:
                self._quiet = True
                yield SoundOver()
                yield Event(kind="audio_missing", detail="it has no sound", source_id=self.source_id)
        else:
            yield from self._media(message, now_ns)

    def _gone(self, why: str, now_ns: int) -> Iterator[Item]:
        if self.gives_sound:
            yield SoundOver()
        yield from self._supervisor.ended(why, now_ns)

    def _media(self, message: Message, now_ns: int) -> Iterator[Item]:
        assert self._connection is not None
        lost = self._connection.newly_lost(message)
        if lost:
            yield Lost(lost, "reader")
        is_picture = message.kind == wire.VIDEO
        if is_picture or not self.gives_pictures:
            events = self._supervisor.media(now_ns)
            yield from events
            if is_picture and any(event.kind == "reconnected" for event in events):
                self._connection.fresh = True
        if is_picture:
            yield from self._picture(message)
        else:
            yield from self._sound(message, now_ns)

    def _picture(self, message: Message) -> Iterator[Item]:
        assert self._connection is not None
        self._frames += 1
        pts_ns = self._connection.picture_time(message)
        if pts_ns is None:
            yield Lost(1, "wrong_stamp") if self._connection.settled else Lost(1, "reconnect")
            return
        if (jump := self._connection.take_jump()) is not None:
            yield self._supervisor.jumped(jump, "pictures")
            self._connection.fresh = True
        if pts_ns <= self._last_pts_ns:
            yield Lost(1, "out_of_order")
            return
        self._last_pts_ns = pts_ns
        fresh, self._connection.fresh = self._connection.fresh, False
        yield VideoFrame(
            image=image_of(message), pts_ns=pts_ns, frame_id=self._frames - 1, source_id=self.source_id,
            segment=self._supervisor.segment, discontinuity=fresh, wall_utc=self._clock.wall(pts_ns),
        )  # fmt: skip

    def _sound(self, message: Message, now_ns: int) -> Iterator[Item]:
        assert self._connection is not None
        if self._quiet:
            self._quiet = False
            yield Event(kind="audio_back", source_id=self.source_id)
        self._sound_ns = now_ns
        chunks = list(self._connection.sound(message))
        if (jump := self._connection.take_jump()) is not None:
            yield self._supervisor.jumped(jump, "sound")
        for chunk in chunks:
            if not chunk.valid:
                yield Event(
                    kind="audio_lost", detail=f"{len(chunk.samples) / SAMPLE_RATE:.3f} s", source_id=self.source_id
                )
            yield chunk


class Connection:
    """What is known about one connection: its clocks and counts. Pure."""

    def __init__(self, origin_ns: int, *, known: bool) -> None:
        self.about: dict[str, Any] = {}
        self.fresh = False
        """The next picture is the first after an interruption."""
        self._origin_ns = origin_ns
        self._known = known
        self._clock = StreamClock(known=known)
        self._microphone: MicrophoneClock | None = None
        self._lost = 0
        self._sound_end_ns: int | None = None

    def opened(self, about: dict[str, Any]) -> None:
        """Takes what the worker tells about the source."""
        self.about = about
        if about.get("finite"):
            self._clock = StreamClock(known=self._known, finite=True)

    @property
    def settled(self) -> bool:
        """Whether a picture that has no time is wrong, rather than too early."""
        return self._clock.settled

    def take_jump(self) -> int | None:
        """By how much the stamp just placed has jumped, told once; None: it goes on from the last one."""
        return self._clock.take_jump()

    def newly_lost(self, message: Message) -> int:
        """Frames that the worker lost since it last spoke."""
        new, self._lost = message.lost - self._lost, message.lost
        return new

    def picture_time(self, message: Message) -> int | None:
        """Session time of a picture; None while the connection settles, and of a stamp that is wrong."""
        arrival = message.arrival_ns - self._origin_ns
        if message.stamp_ns is None:  # some cameras give none: when it came is all that is known
            return arrival
        return self._clock.place(message.stamp_ns - (self._origin_ns if self._known else 0), arrival)

    def sound(self, message: Message) -> Iterator[AudioChunk]:
        """A block of sound, after filler for what was lost before it."""
        samples = torch.frombuffer(message.payload, dtype=torch.float32) if message.payload else torch.zeros(0)
        if not len(samples):
            return
        arrival = message.arrival_ns - self._origin_ns
        if message.stamp_ns is None:
            pts_ns, lost = self._counted(len(samples), arrival)
            if lost:
                filler = min(lost, _LONGEST_FILLER)
                begin = pts_ns - filler * NANOSECONDS // SAMPLE_RATE
                yield AudioChunk(samples=torch.zeros(filler), pts_ns=begin, valid=False, discontinuity=True)
            yield AudioChunk(samples=samples, pts_ns=pts_ns)
            return
        placed = self._clock.place(message.stamp_ns - (self._origin_ns if self._known else 0), arrival, "audio")
        if placed is not None:
            yield AudioChunk(samples=samples, pts_ns=placed)

    def _counted(self, samples: int, arrival_ns: int) -> tuple[int, int]:
        if self._microphone is None:
            latency = round(float(self.about.get("latency", 0.0)) * NANOSECONDS)
            self._microphone = MicrophoneClock(latency_ns=latency)
        return self._microphone.place(samples, arrival_ns)


def image_of(message: Message) -> Tensor:
    """The picture as uint8 [3, H, W], without copying it."""
    width, height = message.sizes
    return torch.frombuffer(message.payload, dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)


def without_passwords(event: Event) -> Event:
    """The event, fit for logs."""
    return replace(event, detail=redacted(event.detail), source_id=redacted(event.source_id))
