"""How a session runs: what may be dropped, how long anything may wait, how many threads the model gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avis_stream.checks import require
from avis_stream.stream.cores import usual_threads
from avis_stream.stream.policy import POLICIES, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session runs."""

    policy: Policy = "auto"
    max_latency_ms: int = 500
    """With `auto`: no frame that is older goes to the model while there is a newer one."""
    audio_wait_ms: int = 200
    """A live frame waits so long for the end of its second of sound."""
    audio_offset_ms: int = 0
    """Added to the time of sound; `avis-stream doctor --av-sync` measures what your devices need."""
    num_threads: int | None = None
    """Of the model; None: all cores up to four, beyond that half of them."""
    max_unread: int = 8
    """Results that may wait for the reader; of live sources the oldest go, others wait."""
    refresh: bool = True
    """Masks, and who sounds, on every frame; False: results only once a hop."""
    keep_seconds: float = 10.0
    on_gap: Literal["keep", "reset"] = "keep"
    """After an interruption of more than `keep_seconds`: each identity must be recognised, or all begins anew."""

    def __post_init__(self) -> None:
        require(self.policy in POLICIES, "policy", self.policy, "one of " + ", ".join(POLICIES))
        require(self.max_latency_ms > 0, "max_latency_ms", self.max_latency_ms, "> 0")
        require(self.max_unread > 0, "max_unread", self.max_unread, "> 0")
        require(self.num_threads is None or self.num_threads > 0, "num_threads", self.num_threads, "> 0 or None")

    @property
    def threads(self) -> int:
        """Threads that the model uses."""
        return self.num_threads or usual_threads()
