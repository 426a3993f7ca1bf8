"""`avis-stream devices`: cameras and microphones that can be named as sources."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from avis_stream.commands.output import aligned
from avis_stream.errors import SourceError
from avis_stream.sources.child import list_microphones


def print_devices(out: TextIO) -> None:
    """Writes what there is, and why something may be missing."""
    found = cameras()
    if found:
        rows = [["--video", "camera"], *([camera["source"], camera["name"]] for camera in found)]
        out.write(aligned(rows, last_is_text=True) + "\n")
    else:
        out.write("no camera: " + camera_remedy() + "\n")
    out.write("\n")
    try:
        microphones = list_microphones()
    except SourceError as error:
        out.write(f"no microphone: {error}\n")
        return
    if not microphones:
        out.write("no microphone: PortAudio sees none; is the sound server running (pulseaudio or pipewire)?\n")
        return
    rows = [["--audio", "rate", "channels", "microphone"]]
    for device in microphones:
        name = device["name"] + (" (the default: --audio mic)" if device["default"] else "")
        rows.append([f"mic:{device['index']}", str(device["rate"]), str(device["channels"]), name])
    out.write(aligned(rows, last_is_text=True) + "\n")


def cameras() -> list[dict[str, Any]]:
    """Video devices of Linux that may be read: number, name."""
    found = []
    for device in sorted(Path("/dev").glob("video[0-9]*"), key=lambda path: int(path.name[5:])):
        name_file = Path("/sys/class/video4linux") / device.name / "name"
        name = name_file.read_text().strip() if name_file.exists() else "unnamed"
        found.append({"source": device.name[5:], "name": f"{name}{_access(device)}"})
    return found


def _access(device: Path) -> str:
    try:
        with device.open("rb"):
            return ""
    except OSError as error:
        return f" (cannot be opened: {error.strerror}; add yourself to the group video)"


def camera_remedy() -> str:
    """What to do where there is none."""
    if not sys.platform.startswith("linux"):
        return "they are not listed on this system; --video 0 is the first one"
    return "there is no /dev/video*; plug one in, or give an address, a file or synthetic://flashbeep"
