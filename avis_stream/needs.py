"""What must be there, as the environment says, and how to install what is not."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, requires
from typing import Literal

from avis_stream.errors import ConfigError

Need = Literal["native", "cuda", "gst", "mic", "arm"]
NEEDS: tuple[Need, ...] = ("native", "cuda", "gst", "mic", "arm")
"""Compiled kernels, those for GPUs, GStreamer's bindings, microphones; `arm`, for tests: a cross-compiler for ARM."""

_VARIABLE = "AVIS_STREAM_REQUIRE"


def required(what: Need) -> bool:
    """Whether `AVIS_STREAM_REQUIRE`, a comma list, says that it must be there: to do without is then an error.

    Raises:
        ConfigError: The list has a name that means nothing, which would otherwise demand nothing in silence.
    """
    listed = {name.strip() for name in os.environ.get(_VARIABLE, "").split(",")} - {""}
    if unknown := sorted(listed.difference(NEEDS)):
        raise ConfigError(f"{_VARIABLE} must list some of {', '.join(NEEDS)}, got {', '.join(unknown)}; correct it")
    return what in listed


def install_extra(extra: str) -> str:
    """The command that adds what an optional part needs.

    Its packages alone: `pip install '.[extra]'` would compile the kernels again.
    """
    named = re.compile(rf"""^(?P<package>[^;]+?)\s*;.*extra\s*==\s*['"]{extra}['"]""")
    try:
        texts = requires("avis_stream") or []
    except PackageNotFoundError:  # it runs where it lies
        return f"pip install what pyproject.toml lists as {extra}"
    found = [match["package"] for text in texts if (match := named.match(text))]
    return "pip install " + " ".join(f"'{package}'" if set(package) & set("<>=!~[ ") else package for package in found)
