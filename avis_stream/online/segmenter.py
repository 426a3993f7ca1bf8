"""`OnlineSegmenter`: a frame and its second of sound in, identities with their masks out; no clock, no thread.

frame, sound --> localizer --> tracker's memory --> queries ------> identity table --> gates, masks --> result
                 (a frame)     (schedule, memory,   (tracking)      (identities)       (seeing)
                                tracking)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from avis_stream.checks import check_shape, require, whole_number
from avis_stream.errors import ShapeError, StateConsumedError
from avis_stream.models.avism import AVISM
from avis_stream.models.postprocess import MaskSizes
from avis_stream.models.tracker import ClipPrediction
from avis_stream.online.between import can_be_asked, keep_queries, last_queries, odds_between
from avis_stream.online.config import OnlineConfig
from avis_stream.online.door import (
    FrameInput,
    check_owner,
    check_pictures,
    checked_frame,
    checked_sound,
    checked_time,
    fingerprint,
    layout_of,
)
from avis_stream.online.identities import IdentityKeeper
from avis_stream.online.identity_table import IdentityTable
from avis_stream.online.looking import Eye, FrameAnswer, Seen, check_features
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.schedule import PushPlan, windows_of
from avis_stream.online.seeing import TrackerAnswer, observe, said_by_frame_queries, said_by_video_queries
from avis_stream.online.showing import Presenter, nothing
from avis_stream.online.state import OnlineState, StreamBody
from avis_stream.online.tracking import Arrival, StreamTracker
from avis_stream.online.waiting import delay_line, held_frame, hold, put, released
from avis_stream.types import SAMPLE_RATE, AVPair, Event, OnlineResult


class OnlineSegmenter:
    """Runs streams through one model; all that it remembers of a stream is in the stream's `OnlineState`.

    Until the first frame leaves the ring (36 s with the published models) the tracker's answer equals the offline
    model's on the stream so far; afterwards the sinks stand for what has left.

    Args:
        model: Prepared for inference.
        config: None: `OnlineConfig.of(model.config)`, for live use.

    Raises:
        ConfigError: The model has no token windows, or the settings do not fit it.
    Source: ADR 0201.
    Example:
        >>> online = OnlineSegmenter(model)
        >>> state = online.init_state()
        >>> result, state = online.step(frame, audio, state)
    """

    def __init__(self, model: AVISM, config: OnlineConfig | None = None) -> None:
        self.model = model
        self.config = OnlineConfig.of(model.config) if config is None else config
        self.tracking = StreamTracker(model.tracker, self.config)
        geometry = self.tracking.geometry
        longest = geometry.ring - geometry.window
        wanted = f"<= {longest}, the frames that are always in the ring"
        require(self.config.refine_delay <= longest, "refine_delay", self.config.refine_delay, wanted)
        self._eye = Eye(model, self.config.silence_dbfs)
        self._presenter = Presenter(model, self.config, geometry)
        self._linked = model.config.tracker.objects == "frame"
        self._stay = model.config.postprocess.sounding_stay
        self._keeper = IdentityKeeper(self.config, geometry.ring * self.config.hop_seconds, self._stay)
        self._model_id = fingerprint(model)
        self._keeps_leavers = self._linked and self.config.refine_delay > 0
        self._layout = layout_of(geometry, self.config, keeps_leavers=self._keeps_leavers)

    @property
    def concurrent_refreshes(self) -> bool:
        """Whether `refresh` may be called from several threads at once, on one state too.

        Live it is, where that pays. One that remembers something while it refreshes must say False. A GPU is shared by
        its own means.
        """
        return self.model.device.type == "cpu"

    # --- states ------------------------------------------------------------------------------------------------------

    def init_state(self, frame_size: tuple[int, int] | None = None) -> OnlineState:
        """The state of a stream that has not begun.

        Args:
            frame_size: (height, width) of its frames; only needed with `alignment="official"` or `refine_delay`,
                which keep frames back.
        """
        model, config, geometry = self.model, self.config, self.tracking.geometry
        like = model.tracker.query_feat.weight
        memory = TrackerMemory.empty(model.config, geometry, config.kv_cache and not self._linked, like)
        table = IdentityTable.empty(config, len(model.classes), model.config.channels, model.config.drawn_channels)
        body = StreamBody(self._model_id, self._layout, memory, table)
        body.last_queries = last_queries(model.config, config, like)
        waits = config.keeps_frames_back
        wanted = "(height, width): this configuration keeps frames back"
        require(not waits or frame_size is not None, "frame_size", frame_size, wanted)
        own_masks = model.config.tracker.masks == "frame"
        if waits and frame_size is not None:
            body.frame_size = frame_size
            if config.alignment == "official":
                body.held = held_frame(frame_size)
            if config.refine_delay:
                features = like.new_zeros(model.config.drawn_channels, *self._eye.feature_size(frame_size))
                body.delay = delay_line(
                    config.refine_delay,
                    features,
                    like.new_zeros(geometry.slots),
                    config.max_identities,
                    like.new_zeros(geometry.slots, model.config.drawn_channels) if own_masks else None,
                    keeps_leavers=self._keeps_leavers,
                )
        return OnlineState(body)

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(
        self,
        frame: Tensor,
        audio: Tensor,
        state: OnlineState,
        pts_ns: int | None = None,
        previous: Tensor | None = None,
        *,
        frame_id: int | None = None,
        segment: int | None = None,
    ) -> tuple[OnlineResult, OnlineState]:
        """Takes one frame and its sound.

        Args:
            frame: uint8 [3, H, W], RGB. Its size may change from frame to frame: identities go on, by their looks.
            audio: float32 [16000] in [-1, 1]. A shorter one is a second whose end is missing.
            state: Consumed.
            pts_ns: Time of the frame; None: one hop after the last. After a jump, identities age by the clock.
            previous: uint8 [3, H, W], the picture about 100 ms before, for models with a motion cue.
            frame_id: Number of the frame; None: it is counted.
            segment: Of the source. A change announces a gap: every identity must then return by its look.
        Returns:
            What is known about the frame, and the state to go on with. With `alignment="official"` or `refine_delay`
            it is that of an earlier frame, whose `frame_id` it bears; -1 while there is none. Events are this step's.
        Raises:
            ShapeError: An argument differs, or the sound is not finite, or what the localizer makes of them is not:
                its weights are broken, or half precision overflowed. The state stays as it was: with
                `alignment="official"` it may be the frame kept back that fails, and would again until
                `OnlineState.drop_held_frame`.
            ClockError: The frame is not later than the last one; the state stays as it was.
            CheckpointError: The state is of another model or other settings; it stays as it was.
            StateConsumedError: Another step has consumed the state.
        """
        results, states = self.step_many(
            [frame], [audio], [state], [pts_ns], [previous], frame_id=[frame_id], segment=[segment]
        )
        return results[0], states[0]

    def step_pair(self, pair: AVPair, state: OnlineState) -> tuple[OnlineResult, OnlineState]:
        """`step` on what a source hands out."""
        frame = pair.frame
        return self.step(
            frame.image, pair.audio[: pair.valid_samples], state, frame.pts_ns, frame.previous,
            frame_id=frame.frame_id, segment=frame.segment,
        )  # fmt: skip

    @torch.no_grad()
    def step_many(
        self,
        frames: Sequence[Tensor],
        audio: Sequence[Tensor],
        states: Sequence[OnlineState],
        pts_ns: Sequence[int | None] | None = None,
        previous: Sequence[Tensor | None] | None = None,
        *,
        frame_id: Sequence[int | None] | None = None,
        segment: Sequence[int | None] | None = None,
    ) -> tuple[list[OnlineResult], list[OnlineState]]:
        """`step` for several streams at once, each at a time of its own; they share every matrix product.

        Args:
            frames: One a stream; their sizes may differ.
            audio: As many.
            states: As many, all different; consumed.
            pts_ns: As many; None: one hop after the last of each.
            previous: As many; None: none.
            frame_id: As many; None: they are counted.
            segment: As many; None: no gaps.

        Raises:
            ShapeError: As `step`, or the numbers of arguments differ. Whatever is refused, no state is consumed.
        """
        count = len(states)
        bodies = self._bodies(states)
        optional = [[None] * count if x is None else list(x) for x in (previous, pts_ns, frame_id, segment)]
        if any(len(x) != count for x in (frames, audio, *optional)):
            raise ShapeError(f"step_many must get as many frames, sounds and so on as states ({count})")
        given = [
            checked_frame(body, self.config, *own)
            for body, own in zip(bodies, zip(frames, audio, *optional, strict=True), strict=True)
        ]
        due = [_due(body, own) for body, own in zip(bodies, given, strict=True)]
        ready = {n: own for n, own in enumerate(due) if own is not None}
        seen = self._eye.look_at(list(ready.values()))  # may fail, so it comes before anything changes
        owned = [state.take() for state in states]
        for body, own in zip(owned, given, strict=True):
            self._note_time(body, own)
            if body.held is not None:
                hold(body.held, own)
        steps = dict(zip(ready, self._advance([owned[n] for n in ready], list(ready.values()), seen), strict=True))
        results = [steps[n] if n in steps else nothing(own, self._told(body, own))
                   for n, (body, own) in enumerate(zip(owned, given, strict=True))]  # fmt: skip
        return results, [OnlineState(body) for body in owned]

    @torch.no_grad()
    def catch_up(
        self,
        frames: Tensor,
        audio: Tensor,
        state: OnlineState,
        pts_ns: Sequence[int | None] | None = None,
        previous: Tensor | None = None,
        *,
        segment: Sequence[int | None] | None = None,
    ) -> tuple[OnlineResult, OnlineState]:
        """Takes the frames that piled up while a step took too long, and answers for the last.

        Memory, identities and the result are those of as many single steps (to rounding), and its events are those of
        all frames. Time is saved where frames go through the localizer together, and where no masks are drawn.

        Args:
            frames: uint8 [n, 3, H, W], n >= 1.
            audio: float32 [n, 16000].
            state: Consumed.
            pts_ns: [n]; None: a hop from one to the next.
            previous: uint8 [n, 3, H, W]; None: none.
            segment: [n], of the source; None: no gaps.

        Raises:
            ConfigError: The configuration keeps frames back: there is nothing to catch up with.
            ShapeError: As `step` for any of the frames, or there are not as many sounds, times, earlier pictures or
                segments as frames; the state stays as it was.
        """
        self.config.require_at_once("catch_up")
        check_shape(frames, "frames", "n 3 H W", dtype=torch.uint8)
        require(len(frames) >= 1, "frames", len(frames), "at least one")
        check_shape(audio, "audio", "n S", dtype=torch.float32, n=len(frames), hint="a second for each frame")
        if previous is not None:
            check_shape(previous, "previous", "n 3 H W", dtype=torch.uint8, n=len(frames))
        for name, of_each in (("pts_ns", pts_ns), ("segment", segment)):
            if of_each is not None and len(of_each) != len(frames):
                raise ShapeError(f"{name} must hold {len(frames)}, one for each frame, got {len(of_each)}")
        (body,) = self._bodies([state])
        last, given = (body.last_pts_ns, body.steps), []
        try:  # the times of the frames are checked one after the other
            for n, (image, sound) in enumerate(zip(frames, audio, strict=True)):
                before = None if previous is None else previous[n]
                time, part = (None if x is None else x[n] for x in (pts_ns, segment))
                own = checked_frame(body, self.config, image, sound, before, time, segment=part)
                given.append(own)
                body.last_pts_ns, body.steps = own.pts_ns, body.steps + 1
        finally:
            body.last_pts_ns, body.steps = last
        seen = self._eye.look_at(given)
        body = state.take()
        events: tuple[Event, ...] = ()
        for own, what in zip(given, seen, strict=True):  # a frame's tokens change with the next, so each is asked alone
            self._note_time(body, own)
            events += self._follow([body], [own], [what])[0]
        return self._result_of(body, given[-1], seen[-1], events), OnlineState(body)

    @torch.no_grad()
    def step_features(
        self,
        frame_queries: Tensor,
        clip_mask_features: Tensor,
        audio_feature: Tensor,
        state: OnlineState,
        sounding: Tensor | None = None,
        mask_embed: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> tuple[TrackerAnswer, OnlineState]:
        """The tracker alone, on what a localizer made of a frame; no gate touches it, and no identity.

        Args:
            frame_queries: [N, C].
            clip_mask_features: [Cm, h, w].
            audio_feature: [A].
            state: Consumed.
            sounding: [N], chance of each frame query to sound; None: `presence` will be None.
            mask_embed: [N, Cm], of the frame queries' own masks, with `TrackerConfig.masks="frame"`.
            logits: [N, K + 1], their classes, with `TrackerConfig.objects="frame"`; without them video queries
                answer, whose sinks hold what frames without them showed.

        Raises:
            ShapeError: An argument differs or is not finite; the state stays as it was. While a graph is exported,
                compiled or captured, values are not looked at.
        """
        return self.push_features(
            frame_queries[None], clip_mask_features, audio_feature[None], state, sounding, mask_embed, logits
        )

    @torch.no_grad()
    def push_features(
        self,
        frame_queries: Tensor,
        clip_mask_features: Tensor,
        audio_features: Tensor,
        state: OnlineState,
        sounding: Tensor | None = None,
        mask_embed: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> tuple[TrackerAnswer, OnlineState]:
        """`step_features` on n frames at once, with the answer after the last: the same as n steps, to rounding.

        Args:
            frame_queries: [n, N, C].
            clip_mask_features: [Cm, h, w] of the last frame.
            audio_features: [n, A].
            state: Consumed.
            sounding: [N] of the last frame.
            mask_embed: [N, Cm] of the last frame.
            logits: [N, K + 1] of the last frame.
        """
        seen = FrameAnswer(clip_mask_features, sounding, mask_embed, logits)
        check_features(self.model.config, self.tracking.geometry.slots, frame_queries, audio_features, seen)
        self._bodies([state])
        body = state.take()
        ask = not self._linked or mask_embed is None or logits is None
        plan, answer = self._drive(body, Arrival(frame_queries, audio_features), ask)
        for _ in range(len(frame_queries)):
            body.last_pts_ns = checked_time(body, self.config, None)
        body.steps += len(frame_queries)
        said = self._answer_of(0, answer, body.memory, plan, seen)
        return said, OnlineState(body)

    @torch.no_grad()
    def refresh(
        self,
        frame: Tensor,
        state: OnlineState,
        pts_ns: int | None = None,
        audio: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> OnlineResult:
        """Draws the sounding identities on a new camera frame before the next step, so that masks follow motion.

        The tracker is not asked: ids, classes and scores are those of the last step, and no event happens. Who sounds
        is asked anew if there is sound, where frame queries are the objects and a sounding head tells of them
        (`online/between.py`); else, and on frames older than the last step, it is who sounded in that. The state is
        read, not consumed.

        Args:
            frame: uint8 [3, H, W].
            state: After at least one step.
            pts_ns: Time of the frame; None: that of the last step.
            audio: float32 [16000] in [-1, 1], the second that ends with the frame. A shorter one is a second whose end
                is missing; None: who sounds stays.
            previous: uint8 [3, H, W], the picture about 100 ms before, for models with a motion cue.
        Raises:
            ShapeError: An argument differs, or what the model makes of it is not finite.
        """
        check_pictures(frame, previous)
        sound = None if audio is None else checked_sound(audio)
        (body,) = self._bodies([state])
        sizes = self._eye.sizes((int(frame.shape[1]), int(frame.shape[2])))
        time = (body.last_pts_ns or 0) if pts_ns is None else whole_number(pts_ns, "pts_ns")
        if sound is None or not can_be_asked(body, time):
            features, sounding = self._eye.features_of(frame), None
        elif self._eye.is_silent(sound[0]):
            features, sounding = self._eye.features_of(frame), torch.zeros_like(body.table.status).bool()
        else:
            features, sounding = self._asked_again(body, frame, sizes, sound, previous, time)
        return self._presenter.now(body.table, features, sizes, time, body.steps - 1, (), sounding)

    def refresh_pair(self, pair: AVPair, state: OnlineState) -> OnlineResult:
        """`refresh` on what a source hands out."""
        frame = pair.frame
        result = self.refresh(frame.image, state, frame.pts_ns, pair.audio[: pair.valid_samples], frame.previous)
        return replace(result, frame_id=frame.frame_id)

    @torch.no_grad()
    def finish(self, state: OnlineState, audio: Tensor | None = None) -> list[OnlineResult]:
        """The results that are still due when a stream ends; consumes the state for good.

        Args:
            state: Consumed.
            audio: With `alignment="official"`: the second of sound that follows the last frame; None: silence.
        Returns:
            In order of time. What happened since the last step, such as the end of identities that were forgotten, is
            told with the first. There is none unless the configuration keeps frames back, and then nobody is told.

        Raises:
            ShapeError: As `step`.
        """
        self._bodies([state])
        sound = torch.zeros(SAMPLE_RATE) if audio is None else audio
        checked_sound(sound)
        held = state.body.held
        last = [] if held is None or not held.waiting else [released(held, sound)]
        seen = self._eye.look_at(last)
        body = state.take()
        results = self._advance([body] * len(last), last, seen)
        if body.delay is not None and body.frame_size is not None:
            sizes, filled = self._eye.sizes(body.frame_size), body.delay.filled
            late = range(max(0, filled - self.config.refine_delay), filled)
            results += [self._presenter.late(body, frame, sizes, ()) for frame in late]
        due = [result for result in results if result.frame_id >= 0]
        events = (event for result in results if result.frame_id < 0 for event in result.events)
        if due and (told := (*events, *self._forgotten(body))):
            due[0] = replace(due[0], events=(*told, *due[0].events))
        return due

    def _asked_again(
        self,
        body: StreamBody,
        frame: Tensor,
        sizes: MaskSizes,
        sound: tuple[Tensor, int],
        previous: Tensor | None,
        pts_ns: int,
    ) -> tuple[Tensor, Tensor]:
        """Mask features [Cm, h, w] of a frame between two steps, and who of the table sounds there, bool [N]."""
        table, last = body.table, body.last_queries
        assert last is not None
        assert last.pts_ns is not None
        features, chance = self._eye.look_again(frame, last, *sound, previous)
        odds = odds_between(table, chance, self._stay, self.config.hop_seconds, last.pts_ns, pts_ns)
        least = self._presenter.gates(silent=False).least_odds
        return features, (odds > least) & (table.score > self.config.show_score)

    # --- inside a step -----------------------------------------------------------------------------------------------

    def _bodies(self, states: Sequence[OnlineState]) -> list[StreamBody]:
        bodies = [state.body for state in states]
        if len({id(body) for body in bodies}) < len(bodies):
            raise StateConsumedError("each stream of step_many must have a state of its own; branch with clone()")
        for body in bodies:
            check_owner(body, self._model_id, self._layout)
        return bodies

    def _note_time(self, body: StreamBody, given: FrameInput) -> None:
        body.last_pts_ns = given.pts_ns
        body.steps += 1

    def _told(self, body: StreamBody, given: FrameInput) -> tuple[Event, ...]:
        """Events that come before anything is looked at: what was forgotten, a gap, another size."""
        events = self._forgotten(body)
        if given.segment is not None:
            if body.segment is not None and given.segment != body.segment:
                events.append(Event(kind="gap", detail=f"segment {given.segment}"))
                events += self._keeper.interrupt(body.table)
            body.segment = given.segment
        if body.frame_size is not None and given.size != body.frame_size:
            events.append(Event(kind="resized", detail=f"{given.size[1]}x{given.size[0]}"))
            self._keeper.forget_places(body.table)
        body.frame_size = given.size
        return tuple(events)

    def _forgotten(self, body: StreamBody) -> list[Event]:
        """The ends of identities that were forgotten since this was asked last."""
        events = [Event(kind="dead", track_id=track_id, detail="forgotten") for track_id in body.forgotten]
        body.forgotten.clear()
        return events

    def _advance(
        self, bodies: Sequence[StreamBody], inputs: Sequence[FrameInput], seen: Sequence[Seen]
    ) -> list[OnlineResult]:
        if not inputs:
            return []
        events = self._follow(bodies, inputs, seen)
        return [self._result_of(*own) for own in zip(bodies, inputs, seen, events, strict=True)]

    def _follow(
        self, bodies: Sequence[StreamBody], inputs: Sequence[FrameInput], seen: Sequence[Seen]
    ) -> list[tuple[Event, ...]]:
        """What was seen goes into the tracker's memory and the identity table of each stream; what happened there."""
        memories = [body.memory for body in bodies]
        plans = self.tracking.push(memories, [s.arrival for s in seen])
        # Linked objects are frame queries: no video query is asked, so nothing falls to the sinks either (ADR 0010).
        answer = None if self._linked else self.tracking.answer(memories, plans)
        events = []
        for n, (body, own, what, plan) in enumerate(zip(bodies, inputs, seen, plans, strict=True)):
            said = self._answer_of(n, answer, body.memory, plan, what.answer)
            if body.last_queries is not None:
                keep_queries(body.last_queries, what, own.pts_ns)
            events.append((*self._told(body, own), *self._identify(body, own, what, said)))
        return events

    def _drive(self, body: StreamBody, arrival: Arrival, ask: bool) -> tuple[PushPlan, ClipPrediction | None]:
        """Pushes frames of one stream, window by window; asks video queries where it must: at folds and at the end."""
        first, count, answer = 0, len(arrival.frame_queries), None
        for size in windows_of(body.memory.seen, count, self.tracking.geometry.window):
            (plan,) = self.tracking.push([body.memory], [arrival.part(first, first + size)])
            first += size
            if ask and (plan.fold or first == count):
                answer = self.tracking.answer([body.memory], [plan])
        return plan, answer

    def _identify(self, body: StreamBody, given: FrameInput, seen: Seen, said: TrackerAnswer) -> tuple[Event, ...]:
        gates = self._presenter.gates(seen.silent)
        one_piece = self.model.config.postprocess.one_piece
        picture = None if self.config.match_colour is None else given.image
        what = observe(said, seen.sizes, self.config, gates, one_piece=one_piece, picture=picture)
        outcome = self._keeper.update(body.table, what, given.pts_ns, gates.least_odds)
        for slot in outcome.died_slots:
            body.memory.reset_sinks(slot)
        return outcome.events

    def _result_of(self, body: StreamBody, given: FrameInput, seen: Seen, events: tuple[Event, ...]) -> OnlineResult:
        """What is shown after a step."""
        if body.delay is None:
            return self._presenter.now(
                body.table, seen.answer.features, seen.sizes, given.pts_ns, given.frame_id, events
            )
        put(body.delay, given, seen, body.table, body.segment)
        due = body.delay.filled - 1 - self.config.refine_delay
        return self._presenter.late(body, due, seen.sizes, events) if due >= 0 else nothing(given, events)

    def _answer_of(
        self, n: int, answer: ClipPrediction | None, memory: TrackerMemory, plan: PushPlan, seen: FrameAnswer
    ) -> TrackerAnswer:
        """Stream n's part of what the tracker said of what was seen last."""
        # The memory goes on being written; what was said stays.
        tokens = self.tracking.tokens_of_newest(memory, plan).clone()
        of_frame = self.model.tracker.similarity_of_frames(tokens)
        if answer is None:
            return said_by_frame_queries(seen, tokens, of_frame)
        return said_by_video_queries(answer, n, seen, tokens, of_frame)


def _due(body: StreamBody, given: FrameInput) -> FrameInput | None:
    """What a step works on: the frame given, or the one held back that its sound completes; None: there is none yet."""
    if body.held is None:
        return given
    return released(body.held, given.seconds[: given.valid_samples]) if body.held.waiting else None
