"""What an online run may choose: the tracker's memory, who is an identity, what is shown, and how long it may wait."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from avis_stream.checks import require
from avis_stream.config import AVISMConfig
from avis_stream.errors import ConfigError

_CONTINUES, _STAYS = 0.5, 0.75
"""Shares of a model's own score threshold above which a query may continue an identity, and that is shown."""
_SAME = 0.3
"""Least similarity then: place and class have their say in it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """Settings of `OnlineSegmenter`, for live use; `parity()` is for comparison with offline.

    `OnlineConfig.of(model.config)` has the thresholds that a model was given with its weights. The defaults of scores
    are for models that do not tell who sounds: starting values, as no published weights were at hand to tune them on.
    Source: ADR 0201.
    """

    # The tracker's memory.
    encoder: Literal["exact", "frozen"] = "exact"
    """`exact`: the tokens of all held frames stay those of the offline encoder. `frozen`: each frame is encoded once,
    with what was there; fewer operations, other numbers from the second frame on."""
    sinks: Literal["per_query", "first", "none"] = "per_query"
    """What is kept of frames that left the ring. `first` (StreamingLLM's) and `none` are for comparison."""
    first_frames: int = 4
    """With `sinks="first"`: so many first frames stay for ever."""
    half_life_s: float | None = None
    """Time in which a folded page loses half its weight; None: it keeps it."""
    sink_write_gate: float | None = None
    """Fold only pages in which a frame query's chance of being an object passes this; None: fold all."""
    hop_seconds: float = 1.0
    """Time from one step to the next; the sound of a step is a second all the same."""
    ring_seconds: float | None = None
    """Time that the ring holds, rounded up to whole windows. None: that of 6 windows at a step a second, whatever the
    hop, or more if the encoder needs it. With the published models that is 36 s: 36 frames at a hop of 1 s, 72 at
    0.5 s, so a shorter hop costs memory and time in proportion."""
    kv_cache: bool = True
    """Keep the decoder's keys and values of the ring; False: project them again each step, in a sixth of the memory."""
    max_anchors: int = 8
    """Places for the tokens of pinned identities."""

    # Who is an identity.
    max_identities: int = 64
    """In a full table only dormant identities make room, the one longest unheard first; with none, `full` is told."""
    prototypes: int = 4
    """Appearances remembered for each identity."""
    max_candidates: int = 32
    """Video queries looked at in a step, best first."""
    judge_at: Literal["features", "network"] = "features"
    """Where mask quality is measured: on the mask features' grid, or at network size as officially (quirk Q18), which
    costs 16 times as much."""
    candidate_score: float = 0.1
    """Least class score of a query that may continue an identity."""
    duplicate_iou: float | None = 0.7
    """Of two queries whose masks overlap more than this, the better counts; None: both do."""
    match_same: float = 0.5
    """Least similarity with a live identity."""
    match_same_slot: float = 0.25
    """The same, if it was the same query's within the last two steps."""
    match_dormant: float = 0.6
    match_margin: float = 0.1
    """A dormant identity returns only if no other is as similar, by this much: rather a new id than a wrong one."""
    match_colour: float | None = 0.4
    """A dormant identity also returns if it has the class of what is seen and, up to this distance, its colours
    (ADR 0202); by its look alone only if these are not twice as far apart. None: by its look alone. Chosen on val."""
    colour_margin: float = 0.05
    """By so much its colours must be nearer than those of any other dormant identity of its class."""
    slot_bonus: float = 0.3
    overlap_bonus: float = 0.3
    class_bonus: float = 0.2
    birth_score: float = 0.3
    """An identity is born above this class score x mask quality: the released threshold."""
    birth_hits: int = 1
    """Consecutive steps that it takes to be born; 2 removes flicker at one step of latency."""
    learn_score: float = 0.5
    """Prototypes learn above this class score x mask quality."""
    new_prototype_cosine: float = 0.7
    """A new prototype begins where the cosine with all others is below this."""
    dormant_s: float | None = None
    """Unseen for so long, an identity returns only by the stricter rules; None: the time that the ring holds.
    `math.inf`: never so."""
    forget_s: float = 1800.0
    """Unseen for so long, an identity is dead; `math.inf`: none ever is, and a full table alone makes room."""
    stable_class: bool = True
    """Report the class that most steps voted for; False: that of the step."""

    # What is shown.
    show_score: float = 0.15
    """An identity is shown above this score; lower than `birth_score`, so that it does not flicker."""
    mask_threshold: float = 0.5
    """A pixel belongs to a mask above this probability; more draws smaller masks. What `min_area` and the quality of
    masks look at is the area above 0.5 all the same, as officially."""
    min_area: float = 2e-4
    """Least share of the picture that a mask must cover."""
    presence_gate: bool = True
    """Show only what seems to sound in this frame. Models with a sounding head are always gated, as offline."""
    presence_threshold: float | None = None
    """None: the model's own with a sounding head, else 0.2."""
    silence_dbfs: float | None = -60.0
    """A second of sound with less power than this shows nothing; None: no such gate."""

    # How long it may wait.
    alignment: Literal["live", "official"] = "live"
    """`live`: the sound that comes with a frame is the frame's. `official`: the sound that comes with the next one is;
    results come a step later, so it is for `OnlineSegmenter` alone, not for sessions and recordings."""
    refine_delay: int = 0
    """Steps to wait, so that later ones help: masks are drawn by better informed queries; where frame queries are the
    objects, the seconds since tell who sounded, as in a clip. For `OnlineSegmenter` alone as well."""

    def __post_init__(self) -> None:
        choices = {
            "encoder": ("exact", "frozen"),
            "sinks": ("per_query", "first", "none"),
            "alignment": ("live", "official"),
            "judge_at": ("features", "network"),
        }
        for name, known in choices.items():
            require(getattr(self, name) in known, f"OnlineConfig.{name}", getattr(self, name), f"one of {known}")
        for name in (own.name for own in fields(self)):
            value = getattr(self, name)
            require(not isinstance(value, float) or not math.isnan(value), f"OnlineConfig.{name}", value, "a number")
        for name in ("first_frames", "max_identities", "prototypes", "max_candidates", "birth_hits"):
            require(getattr(self, name) >= 1, f"OnlineConfig.{name}", getattr(self, name), ">= 1")
        for name in ("max_anchors", "refine_delay", "min_area"):
            require(getattr(self, name) >= 0, f"OnlineConfig.{name}", getattr(self, name), ">= 0")
        require(0 < self.mask_threshold < 1, "OnlineConfig.mask_threshold", self.mask_threshold, "between 0 and 1")
        for name in ("hop_seconds", "forget_s"):
            require(getattr(self, name) > 0, f"OnlineConfig.{name}", getattr(self, name), "> 0 s")
        for name in ("hop_seconds", "ring_seconds", "slot_bonus", "overlap_bonus", "class_bonus"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), f"OnlineConfig.{name}", value, "finite")
        require(self.colour_margin >= 0, "OnlineConfig.colour_margin", self.colour_margin, ">= 0")
        for name in ("half_life_s", "ring_seconds", "dormant_s", "match_colour"):
            value = getattr(self, name)
            require(value is None or value > 0, f"OnlineConfig.{name}", value, "> 0, or None")

    @property
    def keeps_frames_back(self) -> bool:
        """Whether results are those of earlier frames, so that a stream's state needs to know their size."""
        return self.alignment == "official" or self.refine_delay > 0

    def require_at_once(self, who: str) -> None:
        """Refuses settings whose results come late, for those who show each result on the frame at hand.

        Args:
            who: Refuses them, e.g. `a session`.
        Raises:
            ConfigError: `keeps_frames_back`.
        """
        if self.keeps_frames_back:
            raise ConfigError(
                f'{who} shows each result on its own frame and so needs alignment="live" and refine_delay=0, got '
                f"alignment={self.alignment!r} and refine_delay={self.refine_delay}; for results of earlier frames "
                "call OnlineSegmenter.step with init_state((height, width)), then finish"
            )

    @staticmethod
    def of(model: AVISMConfig, **changes: Any) -> OnlineConfig:
        """What suits a model: its own thresholds where it tells who sounds, then `changes`.

        Such a model finds silent objects too, so a low score is no weak sound: an identity is as sure as an object
        offline when it begins, and little less while it goes on. Chosen on 28 videos of val (ADR 0010).
        """
        config = OnlineConfig()
        if model.localizer.sounding_head:
            own = model.postprocess
            config = OnlineConfig(
                candidate_score=_CONTINUES * own.score_threshold, duplicate_iou=own.duplicate_iou, match_same=_SAME,
                birth_score=own.score_threshold, show_score=_STAYS * own.score_threshold,
            )  # fmt: skip
        return replace(config, **changes)

    @staticmethod
    def parity() -> OnlineConfig:
        """As near to the released offline model as an online one can be: no gates, its thresholds, its classes."""
        return OnlineConfig(
            max_candidates=1000,
            judge_at="network",
            duplicate_iou=None,
            show_score=0.3,
            min_area=0.0,
            presence_gate=False,
            silence_dbfs=None,
            stable_class=False,
            match_colour=None,
        )
