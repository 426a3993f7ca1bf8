"""Every error this library raises on purpose.

Each message has three parts: what was wanted, what came, what to do about it.
"""


class AvisStreamError(Exception):
    """Base class: catch it to catch everything that `avis_stream` raises on purpose."""


class ShapeError(AvisStreamError, ValueError):
    """A tensor has the wrong rank, size, dtype or device."""


class ConfigError(AvisStreamError, ValueError):
    """A configuration value or a combination of values makes no sense."""


class CheckpointError(AvisStreamError):
    """Weights cannot be read, or do not fit the model; the message lists every key at fault."""


class DataError(AvisStreamError):
    """A data set, prediction or annotation file is missing or broken; the message names file and field."""


class ClockError(AvisStreamError, ValueError):
    """Time went backwards, or a time stamp is missing where one is needed."""


class SourceError(AvisStreamError, OSError):
    """A camera, microphone, stream or file cannot be opened or has died."""


class MediaError(SourceError):
    """A media file holds nothing that can be segmented, or cannot be read."""


class NativeUnavailableError(AvisStreamError, RuntimeError):
    """A native kernel was required (`AVIS_STREAM_REQUIRE=native` or `cuda`) and is not there; the message says why."""


class StateConsumedError(AvisStreamError, RuntimeError):
    """An online state was used after a step had already consumed it; branch with `state.clone()` beforehand."""
