"""Audio-visual instance segmentation, online: which objects are making sound, outlined, named, and followed.

import avis_stream as avs
model = avs.load("avism_r50_coco", weights="AVISM_R50_COCO.pth", audio_weights="vggish_model.ckpt")
clip = model.segment(images, audio)
"""

from typing import TYPE_CHECKING, Any

from avis_stream import ops
from avis_stream._version import __version__
from avis_stream.config import AVISMConfig
from avis_stream.errors import (
    AvisStreamError,
    CheckpointError,
    ClockError,
    ConfigError,
    DataError,
    MediaError,
    NativeUnavailableError,
    ShapeError,
    SourceError,
    StateConsumedError,
)
from avis_stream.models.avism import AVISM, RawOutputs
from avis_stream.models.clip import ClipResult
from avis_stream.types import AudioChunk, AVPair, Event, LiveResult, OnlineResult, VideoFrame
from avis_stream.weights import from_official, load

__all__ = [
    "AVISM",
    "AVISMConfig",
    "AVPair",
    "AudioChunk",
    "AvisStreamError",
    "CheckpointError",
    "ClipResult",
    "ClockError",
    "ConfigError",
    "DataError",
    "Event",
    "LiveResult",
    "MediaError",
    "NativeUnavailableError",
    "OnlineConfig",
    "OnlineResult",
    "OnlineSegmenter",
    "OnlineState",
    "RawOutputs",
    "Session",
    "SessionConfig",
    "ShapeError",
    "SourceError",
    "StateConsumedError",
    "VideoFrame",
    "__version__",
    "from_official",
    "live",
    "load",
    "metrics",
    "ops",
]

if TYPE_CHECKING:
    from avis_stream import metrics
    from avis_stream.online import OnlineConfig, OnlineSegmenter, OnlineState
    from avis_stream.stream.session import Session, SessionConfig, live

_LATE = {
    "metrics": "avis_stream.metrics",
    "OnlineConfig": "avis_stream.online",
    "OnlineSegmenter": "avis_stream.online",
    "OnlineState": "avis_stream.online",
    "Session": "avis_stream.stream.session",
    "SessionConfig": "avis_stream.stream.session",
    "live": "avis_stream.stream.session",
}
"""Names that need scipy or FFmpeg, which take longer to import than all the rest, and where they are."""


def __getattr__(name: str) -> Any:
    """Loads what is in `_LATE` when it is first used."""
    if name not in _LATE:
        raise AttributeError(f"module 'avis_stream' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(_LATE[name])
    return module if name == "metrics" else getattr(module, name)


def __dir__() -> list[str]:
    """Also the names in `_LATE`, loaded or not, so that prompts complete them."""
    return sorted({*globals(), *__all__})
