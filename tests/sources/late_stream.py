"""Adds streams to the GStreamer reader's rtspsrc by hand, one after its "no more pads"; says which get a decoder.

Run by `test_live_streams.py`, in a process of its own: the reader expects to be alone with GStreamer.
"""

from __future__ import annotations

import io
from typing import Any, cast

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
from gi.repository import Gst  # noqa: E402

from avis_stream.sources.worker.gstreamer import _GStreamerReader  # noqa: E402
from avis_stream.sources.worker.layout import Layout  # noqa: E402


def add_stream(source: Any, media: str, encoding: str) -> None:
    """Adds a pad as rtspsrc does when the first packets of a stream come, and says whether anybody took it up."""
    caps = Gst.Caps.from_string(f"application/x-rtp,media={media},encoding-name={encoding},clock-rate=48000,payload=96")
    pad = Gst.Pad.new_from_template(Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.SOMETIMES, caps))
    pad.set_active(True)
    pad.push_event(Gst.Event.new_stream_start(media))
    pad.push_event(Gst.Event.new_caps(caps))
    source.add_pad(pad)
    print(f"{media}:{'linked' if pad.is_linked() else 'alone'}")


Gst.init(None)
wanted = {"url": "rtsp://127.0.0.1:9/cam", "video": True, "audio": True, "properties": {}}
reader = _GStreamerReader(Gst, Layout.of_caps, wanted, cast("Any", io.BytesIO()))
source = next(e for e in reader.pending if e.get_factory().get_name() in ("rtspsrc", "uridecodebin"))
add_stream(source, "video", "H264")
source.emit("no-more-pads")
print("more" if reader.pending else "settled")
add_stream(source, "audio", "L16")
