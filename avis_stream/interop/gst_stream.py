"""One run of the element `avisseg`, from PAUSED to READY: frames and sound in, frames with results out."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import gi
import numpy as np

from avis_stream.interop.answer import Answer
from avis_stream.interop.follower import Follower
from avis_stream.interop.gst_frames import BufferPicture, draw_into, mask_buffer
from avis_stream.interop.gst_metadata import Analytics, Regions, message_of
from avis_stream.interop.gst_time import NO_TIME, SegmentTime, SoundPlaces
from avis_stream.sources.worker.layout import Layout
from avis_stream.stream.cores import usual_threads
from avis_stream.types import AVPair
from avis_stream.writers.jsonl import result_record

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

_EVERYTHING = (
    Gst.BufferCopyFlags.FLAGS | Gst.BufferCopyFlags.TIMESTAMPS | Gst.BufferCopyFlags.META | Gst.BufferCopyFlags.MEMORY
)
_KEPT_TIMES = 1024
_KEPT_TEXTS = 64
"""A frame takes along all that wait, and answers come of frames, so that more than a few never do."""
_LAST_ANSWER_SECONDS = 10.0
"""The JSON's end waits so long for the last frames' answers; some models take seconds for one."""
_LATE_FRAMES = 10
"""So many without the end of their sound are worth a warning; a microphone that begins late costs a few."""
_AFTER_MS = 100
"""A result may be of a picture so much later than the frame, as some come a little out of order."""

_STAMPED = "set format=time and do-timestamp=true on an appsrc, or stamp its buffers"


class Stream:
    """What the element does while it runs. It is made anew for each run, so nothing has to be forgotten."""

    def __init__(
        self, name: str, pads: Mapping[str, Any], values: Mapping[str, Any], model: tuple[Any, tuple[str, ...], bool],
        *, post: Callable[[Any], object], warn: Callable[[str, str], object], fail: Callable[[str, str], object],
        playing: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Starts the model's thread, unless frames wait for their results.

        Args:
            name: Of the element.
            pads: Its pads by the names of their templates; those on request come and go.
            values: Its properties, as they are at any moment.
            model: From `model_segmenter`.
            post: Takes the structure of an element message; from the thread that runs the model.
            warn: Takes a warning and its remedy.
            fail: Takes an error and its remedy; from any thread.
            playing: Whether the pipeline is, rather than paused.
        """
        segmenter, self._classes, wants_previous = model
        self._sync = bool(values["sync"])
        """For the whole run: there is a model's thread, or the frames' own is it; two would share one state."""
        self._pads, self._values, self._post, self._warn, self._fail = pads, values, post, warn, fail
        self._playing = playing
        self._follower = Follower(
            segmenter, self._classes, num_threads=values["num-threads"] or usual_threads(),
            audio_wait_ms=values["audio-wait-ms"], draw=lambda: bool(values["overlay"]), told=self._tell,
            failed=lambda error: fail(f"the model failed: {type(error).__name__}: {error}", "see what it was given"),
            wants_previous=wants_previous, source_id=name,
        )  # fmt: skip
        self._time, self._sound_places = SegmentTime.from_zero(), SoundPlaces()
        self._sound_flush: int | None = None
        """Number of the last seek that flushed the sound; the video's flush has the same, before or after."""
        self._layout: Layout | None = None
        self._regions, self._analytics = Regions(), Analytics()
        self._masks, self._texts = SideStream(f"{name}/mask_src"), SideStream(f"{name}/json_src")
        self._mask_caps: Any = None
        self._written: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_TEXTS)
        """JSON of answers, by their numbers, that the next frame takes along."""
        self._writing = threading.Lock()
        """Guards `_written`: what is in it is for the pad that there is."""
        self._left = 0
        """Answers up to this number are of a stream that has been left."""
        self._shown = (NO_TIME, NO_TIME)
        """Time and duration of the last frame."""
        self._warned: set[str] = set()
        """Warnings that have been given."""
        self._times: deque[int] = deque(maxlen=_KEPT_TIMES)
        self._frames_in = self._frames_out = 0
        self.age_ms = -1
        """Of the last frame's result; -1: it has none."""
        self.audio_pad_changed()
        if not self._sync:
            self._follower.start()

    def stop(self) -> None:
        """Lets go whatever waits, and ends the model's thread after the step at hand."""
        self._follower.stop()

    def audio_pad_changed(self) -> None:
        """There is a pad for sound now, or none any more."""
        if "audio_sink" in self._pads:
            self._follower.expect_sound()
        else:
            self._follower.sound_over()

    # --- frames ------------------------------------------------------------------------------------------------------

    def take_frame(self, buffer: Any) -> Any:
        """Hands a frame to the model, and on with the newest result there is."""
        with self._follower.in_hand():  # downstream may hold it for as long as it likes
            return self._through(buffer)

    def _through(self, buffer: Any) -> Any:
        begin = time.perf_counter_ns()
        follower, layout = self._follower, self._layout
        if layout is None:
            return Gst.FlowReturn.NOT_NEGOTIATED
        self._frames_in += 1
        pts_ns = self._time.of_buffer(buffer.pts)
        waited, picture = 0, None
        if pts_ns != NO_TIME:  # else it has none, or is outside the segment: nobody knows what is heard then
            picture = BufferPicture(buffer, layout)
        elif buffer.pts == NO_TIME or not self._time.is_time:
            self._warn_once("frames without time stamps pass without results", _STAMPED)
        if picture is not None and self._sync:
            before = time.perf_counter_ns()
            follower.frame_sync(picture, pts_ns)
            waited = time.perf_counter_ns() - before
        if follower.failure is not None:  # it is on the bus
            return Gst.FlowReturn.ERROR
        self._shown = (buffer.pts, buffer.duration)
        answer = self._fitting(follower.answer, pts_ns, layout)
        try:
            out = self._with_answer(buffer, answer, layout) if answer is not None else buffer
        except ValueError as error:
            self._fail(f"a frame cannot be drawn into: {error}", "see the element before video_sink")
            return Gst.FlowReturn.ERROR
        self._push_beside(answer, layout)
        if picture is not None and not self._sync:
            follower.frame(picture, pts_ns)  # wakes the model, so it comes last: both want the interpreter
        if follower.counts["late_sound"] >= _LATE_FRAMES:
            wait = self._values["audio-wait-ms"]
            self._warn_once(
                f"sound comes more than {wait} ms after its frames",
                "put a queue before video_sink and audio_sink, raise audio-wait-ms, or give the source of sound a "
                "smaller latency",
            )
        if follower.counts["begun_anew"]:
            self._warn_once(
                "time stamps of frames went back, so that results begin anew", "see what is before video_sink"
            )
        self._times.append(time.perf_counter_ns() - begin - waited)
        self._frames_out += 1
        return self._pads["video_src"].push(out)

    def _warn_once(self, text: str, remedy: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text, remedy)

    def _fitting(self, answer: Answer | None, pts_ns: int, layout: Layout) -> Answer | None:
        """The newest answer, if it is of such frames and not too old."""
        self.age_ms = -1
        if answer is None or answer.size != layout.size:
            return None
        age_ms = 0 if pts_ns == NO_TIME else (pts_ns - answer.result.pts_ns) // 1_000_000
        if age_ms < -_AFTER_MS:
            return None
        age_ms = max(0, age_ms)
        limit = self._values["max-latency-ms"]
        if limit and age_ms > limit:
            return None
        self.age_ms = int(age_ms)
        return answer

    def _with_answer(self, buffer: Any, answer: Answer, layout: Layout) -> Any:
        drawn = answer.layer if self._values["overlay"] else None
        if not answer.rows and drawn is None:
            return buffer
        # `copy` would be another reference to the same buffer, to which nothing may be added.
        out = buffer.copy_deep() if drawn is not None else buffer.copy_region(_EVERYTHING, 0, 2**64 - 1)
        if drawn is not None:
            draw_into(out, drawn, layout)
        self._regions.attach(out, answer)
        self._analytics.attach(out, answer)
        return out

    def _push_beside(self, answer: Answer | None, layout: Layout) -> None:
        """Masks with every frame, JSON with every result; what becomes of them does not stop the video."""
        masks = self._pads.get("mask_src")  # once: others may release it meanwhile
        if masks is not None:
            mask = mask_buffer(None if answer is None else answer.id_map(), layout.size)
            self._masks.push(masks, mask, self._shown, self._mask_caps, self._time.segment)
        self._push_texts()

    def _push_texts(self) -> None:
        texts = self._pads.get("json_src")
        while texts is not None:
            with self._writing:
                if not self._written:
                    return
                number, text = self._written.popleft()
            if number > self._left:
                caps = texts.get_pad_template_caps()
                self._texts.push(texts, Gst.Buffer.new_wrapped(text), self._shown, caps, self._time.segment)

    def _tell(self, pair: AVPair, answer: Answer) -> None:
        """From the thread that runs the model: if that is its own, a text that takes a millisecond keeps no frame."""
        if self._values["post-messages"]:
            self._post(message_of(answer))
        pad = self._pads.get("json_src")
        if pad is not None:
            text = json.dumps(result_record(pair, answer.result, self._classes)) + "\n"
            with self._writing:
                if self._pads.get("json_src") is pad:  # another one gets what is answered from its beginning on
                    self._written.append((answer.number, text.encode()))

    def json_pad_released(self) -> None:
        """There is none any more: what was written for it goes with it."""
        with self._writing:
            self._written.clear()

    def end_texts(self, event: Any) -> None:
        """Hands on the video's end to the pad for JSON, behind the last frames' answers, which the model may still owe.

        Called when the video has its end already, so that only the texts wait.
        """
        pad = self._pads.get("json_src")
        if pad is not None and pad.is_linked() and not self._follower.finish(_LAST_ANSWER_SECONDS):
            self._warn(f"the last frame's result took more than {_LAST_ANSWER_SECONDS:g} s, its JSON is missing",
                       "with sync=true every frame waits for its own")  # fmt: skip
        self._push_texts()
        self._texts.hand_on(event, self._pads.get("json_src"))

    # --- sound -------------------------------------------------------------------------------------------------------

    def take_sound(self, buffer: Any) -> Any:
        """Keeps a block of sound for the frames that it belongs to."""
        places = self._sound_places
        if not places.knows(buffer.pts):
            self._warn_once("sound without time stamps is not heard", _STAMPED)
        placed = places.place(buffer.pts, buffer.get_size() // np.dtype(np.float32).itemsize)
        if placed is None:
            return Gst.FlowReturn.OK
        good, info = buffer.map(Gst.MapFlags.READ)
        if good:
            samples = np.frombuffer(info.data, np.float32)[placed.samples].copy()
            buffer.unmap(info)
            pts_ns = placed.pts_ns
            if not self._is_live() and not self._follower.await_pictures(pts_ns, self._playing):
                self._warn("no picture comes while sound is held back for them, so it runs ahead until one comes",
                           "put a larger queue before video_sink and audio_sink")  # fmt: skip
            if "audio_sink" in self._pads:
                self._follower.sound(samples, pts_ns)
        return Gst.FlowReturn.OK

    def _is_live(self) -> bool:
        """Whether sound comes when it happens, so that holding it back would lose it elsewhere; assumed if unknown."""
        pad, query = self._pads.get("audio_sink"), Gst.Query.new_latency()
        return pad is None or not pad.peer_query(query) or bool(query.parse_latency()[0])

    def _take_gap(self, event: Any) -> None:
        """Sound that will not come: a paused microphone, a muted track."""
        pts, duration = event.parse_gap()
        time = self._sound_places.time
        if NO_TIME in (pts, duration) or not time.is_time:
            return  # what comes next says how long it was
        inside, *clipped = time.segment.clip(Gst.Format.TIME, pts, min(pts + duration, NO_TIME - 1))
        if inside:
            begin_ns, end_ns = sorted(map(time.of_buffer, clipped))  # backwards, it begins at its end
            self._follower.no_sound(begin_ns, end_ns)

    # --- events ------------------------------------------------------------------------------------------------------

    def video_event(self, event: Any) -> None:
        """Takes note of what comes between frames, and tells the pads beside."""
        kind = event.type
        if kind == Gst.EventType.CAPS:
            self._take_caps(event.parse_caps())
        elif kind == Gst.EventType.SEGMENT:
            self._time = SegmentTime.of(event.parse_segment())
            self._masks.new_segment()
            self._texts.new_segment()
        elif kind == Gst.EventType.GAP:
            self._take_video_gap(event)
        elif kind == Gst.EventType.FLUSH_START:
            self._follower.flush()
        elif kind == Gst.EventType.FLUSH_STOP:
            keeps_sound = event.get_seqnum() == self._sound_flush
            self._follower.reset(keeps_sound=keeps_sound)
            self._left = self._follower.counts["answers"]
            self._time = SegmentTime.from_zero()
            if not keeps_sound:  # else it may have ended since its flush
                self.audio_pad_changed()
        if kind in (Gst.EventType.EOS, Gst.EventType.FLUSH_START, Gst.EventType.FLUSH_STOP):
            self._masks.hand_on(event, self._pads.get("mask_src"))
            if kind == Gst.EventType.EOS:  # its texts: `end_texts`
                self._follower.frames_over()
            else:
                self._texts.hand_on(event, self._pads.get("json_src"))

    def _take_video_gap(self, event: Any) -> None:
        """Pictures that will not come: sound need not wait for them."""
        pts, duration = event.parse_gap()
        if NO_TIME not in (pts, duration) and self._time.is_time:
            ends = [self._time.of_buffer(ns) for ns in (pts, min(pts + duration, NO_TIME - 1))]
            self._follower.no_frame(max((ns for ns in ends if ns != NO_TIME), default=0))

    def hand_on_gap(self, push: Callable[[], bool]) -> bool:
        """Hands it on, which sinks may hold for as long as no picture is shown."""
        with self._follower.in_hand():
            return push()

    def _take_caps(self, caps: Any) -> None:
        self._layout = layout = Layout.of_caps(caps)
        known, number, base = caps.get_structure(0).get_fraction("framerate")
        self._mask_caps = Gst.Caps.from_string(
            f"video/x-raw,format=GRAY8,width={layout.width},height={layout.height},"
            f"framerate={number if known else 0}/{base if known else 1}"
        )

    def audio_event(self, event: Any) -> None:
        """Takes note of what comes between blocks of sound."""
        kind = event.type
        if kind == Gst.EventType.SEGMENT:
            self._sound_places.begin(SegmentTime.of(event.parse_segment()))
        elif kind == Gst.EventType.GAP:
            self._take_gap(event)
        elif kind in (Gst.EventType.EOS, Gst.EventType.FLUSH_START):
            self._follower.sound_over()
        elif kind == Gst.EventType.FLUSH_STOP:
            self._follower.forget_sound()
            self._sound_flush = event.get_seqnum()  # from here on the video's flush keeps what sound there is
            self.audio_pad_changed()
            self._sound_places.begin(SegmentTime.from_zero())

    # --- figures -----------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, int]:
        """Of the property `stats`."""
        times, counts, stats = sorted(self._times), dict(self._follower.counts), self._follower.stats
        return {
            "frames-in": self._frames_in, "frames-out": self._frames_out, "results": counts.get("answers", 0),
            "steps": counts.get("steps", 0), "refreshes": counts.get("refreshes", 0),
            "passed-over": counts.get("passed_over", 0), "late-sound": counts.get("late_sound", 0),
            "out-of-order": counts.get("out_of_order", 0),
            "frame-p50-us": times[len(times) // 2] // 1000 if times else 0,
            "frame-p99-us": times[len(times) * 99 // 100] // 1000 if times else 0,
            "step-p50-us": round(stats.spread("step").p50 * 1000),
            "refresh-p50-us": round(stats.spread("refresh").p50 * 1000),
        }  # fmt: skip


class SideStream:
    """The stream of a pad beside the video's: it begins, with all the events that it needs, when it has something."""

    def __init__(self, stream_id: str) -> None:
        self._id = stream_id
        self._pad: Any = None
        """That was told of the stream; pads on request come and go."""
        self._in_segment = False

    def push(self, pad: Any, buffer: Any, times: tuple[int, int], caps: Any, segment: Any) -> None:
        """Pushes a buffer; `times`: its time and duration, those of a frame."""
        if not pad.is_linked():
            return
        self._begin(pad)
        current = pad.get_current_caps()
        if current is None or not current.is_equal(caps):
            pad.push_event(Gst.Event.new_caps(caps))
        if not self._in_segment:
            self._in_segment = True
            pad.push_event(Gst.Event.new_segment(segment))
        buffer.pts, buffer.duration = times
        pad.push(buffer)

    def new_segment(self) -> None:
        """The segment is another; the next buffer says so."""
        self._in_segment = False

    def hand_on(self, event: Any, pad: Any) -> None:
        """Hands on an event of the video, if there is a pad whose stream has begun; its end also if none has."""
        if pad is not None and event.type == Gst.EventType.EOS and pad.is_linked():
            self._begin(pad)  # whoever waits for all ends would wait for ever
        if pad is not None and pad is self._pad:
            pad.push_event(event)

    def _begin(self, pad: Any) -> None:
        if pad is not self._pad:
            self._pad, self._in_segment = pad, False
            pad.push_event(Gst.Event.new_stream_start(self._id))
