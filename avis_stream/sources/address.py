"""What people write for a source, told apart; and texts without the passwords in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from avis_stream.errors import ConfigError
from avis_stream.files import printable

Kind = Literal["camera", "network", "pipeline", "synthetic", "file", "microphone"]

NETWORK = ("rtsp", "rtsps", "rtspt", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp", "srt")

_FEW_SLASHES = re.compile(rf"({'|'.join((*NETWORK, 'synthetic'))}):(/?)([^/].*)")
"""Also what `Path` makes of an address."""
_USER = re.compile(r"(\w+://)[^\s'\"]*@")
_SECRET = re.compile(
    r"((?:pass(?:word|wd|phrase)?|pwd|(?:user|proxy)-(?:pw|id)|token|secret|api_?key|key|auth|signature|sig)\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^&\s'\"]+)",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text without users, passwords and tokens of the addresses in it.

    Example:
        >>> redacted("rtsp://admin:1234@10.0.0.7/cam?token=abc")
        'rtsp://***@10.0.0.7/cam?token=***'
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text))


@dataclass(frozen=True, slots=True)
class Address:
    """A source as it was asked for."""

    kind: Kind
    text: str
    """With everything in it; for nobody to see."""

    @property
    def shown(self) -> str:
        """For people, logs and results."""
        if self.kind == "camera":
            return f"camera:{self.text}"
        if self.kind == "microphone":
            return f"mic:{self.text}" if self.text else "mic"
        return printable(Path(self.text).name) if self.kind == "file" else redacted(self.text)

    @property
    def options(self) -> dict[str, str]:
        """What follows the `?` of a synthetic source."""
        return dict(parse_qsl(self.text.partition("?")[2]))


def video_address(wanted: str | int | Path) -> Address:
    """Camera number or device, address, pipeline, `synthetic://...`, or a file.

    Raises:
        ConfigError: None of these.
    """
    text = str(wanted)
    if text.isdigit() or re.fullmatch(r"/dev/video\d+", text):
        return Address("camera", text)
    if text.startswith("gst:"):
        return Address("pipeline", text.removeprefix("gst:").removeprefix("//").strip())
    scheme, colon, rest = text.partition("://")
    if not colon:
        if (few := _FEW_SLASHES.fullmatch(text)) and not Path(text).exists():
            meant = redacted(f"{few[1]}://{few[3]}")
            got = "one" if few[2] else "none"
            raise ConfigError(f"an address must have two slashes after {few[1]}:, got {got}; write {meant!r}, as text")
        return Address("file", text)
    if scheme == "synthetic":
        name = rest.partition("?")[0].rstrip("/")
        if name != "flashbeep":
            raise ConfigError(f"a synthetic source must be flashbeep, got {name!r}; write synthetic://flashbeep?fps=25")
        return Address("synthetic", text)
    if scheme == "file":
        return Address("file", rest)
    if scheme not in NETWORK:
        raise ConfigError(
            f"video must be a camera (0, /dev/video0), a file, gst:..., synthetic://flashbeep, or an address that "
            f"begins with {', '.join(NETWORK)}://, got {redacted(text)!r}"
        )
    return Address("network", text)


def audio_address(wanted: str | Path | None) -> Address | Literal["source"] | None:
    """`source` (the sound that comes with the pictures), `mic`, `mic:NAME`, a file, or None for silence."""
    text = str(wanted)
    if wanted is None or text in ("none", ""):
        return None
    if text == "source":
        return "source"
    if text == "mic" or text.startswith("mic:"):
        return Address("microphone", text[4:])
    if "://" in text:
        raise ConfigError(f'audio must be "source", "mic", "mic:NAME", a file or None, got {redacted(text)!r}')
    return Address("file", text)
