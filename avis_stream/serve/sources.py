"""What is watched: sources by short ids, each with a session and a hub of its own; they come, go and begin anew."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from avis_stream.errors import ConfigError
from avis_stream.serve.hub import Hub
from avis_stream.sources.address import audio_address, video_address
from avis_stream.stream.session import Session

Watch = Callable[[str, str | None], Session]
"""Makes a session of the addresses of pictures and of sound."""

_BY_WORD = ("camera", "network", "synthetic")
_HEARD_BY_WORD = ("microphone",)


@dataclass(slots=True, eq=False)
class Watched:
    """One source."""

    id: str
    video: str
    """With everything in it; for nobody to see."""
    audio: str | None
    hub: Hub
    """Another after each restart."""

    def prometheus(self) -> str:
        """Its figures. Short names may be the same, so all but the first source add their id."""
        name = self.hub.session.source_ids[0]
        return self.hub.session.stats().as_prometheus(name if self.id == "1" else f"{name} #{self.id}")

    def record(self) -> dict[str, Any]:
        """What a visitor may know."""
        audio = None if self.audio is None else audio_address(self.audio)
        return {
            "id": self.id, "video": video_address(self.video).shown,
            "audio": audio if audio is None or isinstance(audio, str) else audio.shown,
            "state": self.hub.state, "error": self.hub.reason,
        }  # fmt: skip


class Sources:
    """All that is watched. Methods that wait are for the event loop; the first source is added before that runs."""

    def __init__(self, watch: Watch, classes: Sequence[str], *, most: int = 8) -> None:
        """`watch`: makes sessions, which may share a model; `most`: so many at once."""
        self._watch, self._classes, self._most = watch, tuple(classes), most
        self._ids = itertools.count(1)
        self._watched: dict[str, Watched] = {}
        self._lock = asyncio.Lock()
        """One change at a time."""
        self.ending = False
        """Nothing begins any more, as nobody would ever end it; viewers are sent away."""
        self._opening: asyncio.Future[Session] | None = None
        """The one at hand, or the last that was."""

    def __iter__(self) -> Iterator[Watched]:
        return iter(list(self._watched.values()))

    def find(self, source: str | None) -> Watched | None:
        """The source of an id; None as id: the first there is."""
        return next(iter(self), None) if source is None else self._watched.get(source)

    @property
    def viewers(self) -> int:
        """How many watch, all sources together."""
        return sum(one.hub.viewers for one in self)

    def open(self, video: str, audio: str | None) -> Watched:
        """Adds a source; it begins with `start`.

        Raises:
            AvisStreamError: The address makes no sense, cannot be read, is watched already, or there are too many; or
                all are told to end.
        """
        self._require_place(video)
        return self._added(video, audio, self._watch(video, audio))

    def _require_place(self, video: str) -> None:
        self._require_going_on()
        if len(self._watched) >= self._most:
            raise ConfigError(f"sources must be at most {self._most}, there are as many; remove one")
        if any(one.video == video for one in self):
            raise ConfigError(f"sources must differ, {video_address(video).shown} is watched already; restart it")

    def _added(self, video: str, audio: str | None, session: Session) -> Watched:
        one = Watched(str(next(self._ids)), video, audio, Hub(session, self._classes))
        self._watched[one.id] = one
        return one

    # --- on the loop -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins with all of them."""
        for one in self:
            one.hub.start(asyncio.get_running_loop())

    async def stop(self) -> None:
        """Ends all of them, and for good; returns when they are gone. What is being opened is given up at once."""
        self.ending = True
        if self._opening is not None and not self._opening.done():
            self._opening.set_exception(_about_to_end())
        async with self._lock:  # another change at hand is made first; none of them takes longer than a session's end
            await asyncio.gather(*(asyncio.to_thread(one.hub.stop) for one in self))

    async def add(self, video: str, audio: str | None) -> Watched:
        """Adds a source that a visitor asks for, and begins with it.

        Raises:
            AvisStreamError: As `open`; or it is a file or a pipeline: a visitor must not read this machine's files,
                and a pipeline can do anything.
        """
        check_by_word(video, audio)
        async with self._lock:
            self._require_place(video)
            one = self._added(video, audio, await self._opened(video, audio))
            one.hub.start(asyncio.get_running_loop())
        return one

    async def restart(self, one: Watched) -> None:
        """Begins anew with a source: identities too. What it was is ended first, as a device opens only once.

        Raises:
            AvisStreamError: It cannot be opened any more, and stays in the list, ended; or it was removed meanwhile.
        """
        async with self._lock:
            self._require_going_on()
            if self._watched.get(one.id) is not one:  # nobody would ever end what begins now
                raise ConfigError(f"source {one.id} must be watched to begin anew, it was removed meanwhile; add it")
            await asyncio.to_thread(one.hub.stop)
            hub = Hub(await self._opened(one.video, one.audio), self._classes)
            hub.start(asyncio.get_running_loop())
            one.hub = hub

    async def _opened(self, video: str, audio: str | None) -> Session:
        """A session, made beside the loop: an address may take for ever to answer, and may be given up meanwhile.

        On a thread that holds no program back, as those of `asyncio.to_thread` would.
        """
        self._require_going_on()
        loop = asyncio.get_running_loop()
        self._opening = opening = loop.create_future()

        def tell(session: Session | None, error: Exception | None) -> None:
            if opening.done():  # given up; a session that has not begun holds nothing
                return
            if error is not None:
                opening.set_exception(error)
            else:
                opening.set_result(session)

        def make() -> None:
            session = failure = None
            try:
                session = self._watch(video, audio)
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, session, failure)

        threading.Thread(target=make, name="avis opening", daemon=True).start()
        session: Session = await opening
        return session

    def _require_going_on(self) -> None:
        if self.ending:
            raise _about_to_end()

    async def remove(self, one: Watched) -> None:
        """Ends a source; its viewers are sent away."""
        async with self._lock:
            self._watched.pop(one.id, None)
            await asyncio.to_thread(one.hub.stop)


def _about_to_end() -> ConfigError:
    return ConfigError("the server must go on for a source to begin, it is about to end")


def check_by_word(video: str, audio: str | None) -> None:
    """Raises ConfigError unless visitors may ask for these."""
    if video_address(video).kind not in _BY_WORD:
        raise ConfigError("video must be a camera, an address or synthetic://flashbeep here; files and pipelines are "
                          "for the command line")  # fmt: skip
    sound = audio_address(audio)
    if sound is not None and not isinstance(sound, str) and sound.kind not in _HEARD_BY_WORD:
        raise ConfigError('audio must be "source", "mic", "mic:NAME" or null here; files are for the command line')


def together(texts: Sequence[str]) -> str:
    """Prometheus texts of several sources as one, in which each family of figures is announced once."""
    families: dict[str, list[str]] = {}
    rows: list[str] = []
    for line in itertools.chain.from_iterable(text.splitlines() for text in texts):
        if line.startswith("# HELP "):
            rows = families.setdefault(line, [])
        elif line not in rows:
            rows.append(line)
    return "".join(f"{line}\n" for about, rows in families.items() for line in (about, *rows))
