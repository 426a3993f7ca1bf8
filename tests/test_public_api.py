"""The names that people outside rely on."""

from __future__ import annotations

import subprocess
import sys

import avis_stream as avs


def test_names() -> None:
    assert sorted(avs.__all__) == [
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
    assert all(hasattr(avs, name) for name in avs.__all__)


def test_all_of_them_are_listed_before_they_are_loaded() -> None:
    code = "import avis_stream as avs, sys; print({*avs.__all__} - {*dir(avs)}, 'av' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set() False\n"


def test_errors_are_what_python_expects() -> None:
    assert issubclass(avs.ShapeError, ValueError)
    assert issubclass(avs.ConfigError, ValueError)
    assert issubclass(avs.SourceError, OSError)
    assert issubclass(avs.MediaError, avs.SourceError)
    assert all(issubclass(getattr(avs, name), avs.AvisStreamError) for name in avs.__all__ if name.endswith("Error"))
