"""The online path: frames and seconds of sound in, identities out, in constant memory and time."""

from avis_stream.online.config import OnlineConfig
from avis_stream.online.seeing import TrackerAnswer
from avis_stream.online.segmenter import OnlineSegmenter
from avis_stream.online.state import OnlineState

__all__ = ["OnlineConfig", "OnlineSegmenter", "OnlineState", "TrackerAnswer"]
