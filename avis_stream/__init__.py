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
from avis_stream.types import AVPair, Event, OnlineResult, VideoFrame
from avis_stream.weights import from_official, load

__all__ = [
    "AVISM",
    "AVISMConfig",
    "AVPair",
    "AvisStreamError",
    "CheckpointError",
    "ClipResult",
    "ClockError",
    "ConfigError",
    "DataError",
    "Event",
    "MediaError",
    "NativeUnavailableError",
    "OnlineResult",
    "RawOutputs",
    "ShapeError",
    "SourceError",
    "StateConsumedError",
    "VideoFrame",
    "__version__",
    "from_official",
    "load",
    "metrics",
    "ops",
]

if TYPE_CHECKING:
    from avis_stream import metrics


def __getattr__(name: str) -> Any:
    """Loads `avs.metrics` when it is first used: scipy takes longer to import than all the rest of the package."""
    if name == "metrics":
        import importlib

        return importlib.import_module("avis_stream.metrics")
    raise AttributeError(f"module 'avis_stream' has no attribute {name!r}")
