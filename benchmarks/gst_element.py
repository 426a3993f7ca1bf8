"""What the GStreamer element costs each frame, with and without a model behind it.

python benchmarks/gst_element.py [--frames 300] [--size 640x360] [--model] [--live]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

import avis_stream.interop.follower as follower
from avis_stream.interop.gst_element import Gst, register
from avis_stream.online import OnlineConfig
from avis_stream.types import AVPair, OnlineResult


class NoModel:
    """Finds nothing, at once."""

    config = OnlineConfig()

    def init_state(self) -> Any:
        return None

    def step_pair(self, pair: AVPair, state: Any) -> tuple[OnlineResult, Any]:
        return self.refresh_pair(pair, state), state

    def refresh_pair(self, pair: AVPair, state: Any) -> OnlineResult:
        none = torch.zeros(0)
        mask = torch.zeros(0, *pair.frame.image.shape[1:], dtype=torch.bool)
        return OnlineResult(
            pts_ns=pair.frame.pts_ns, frame_id=pair.frame.frame_id, track_id=none.long(), class_id=none.long(),
            score=none, sounding=none.bool(), mask=mask, box=torch.zeros(0, 4),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--model", action="store_true", help="avism_mini with random weights behind it")
    parser.add_argument("--live", action="store_true", help="30 frames a second, else as fast as they go")
    options = parser.parse_args()
    live = "is-live=true" if options.live else ""
    width, height = options.size.split("x")
    if not options.model:
        follower.model_segmenter = lambda *_: (NoModel(), ("nothing",), False)  # type: ignore[assignment]
    register()
    pipeline = Gst.parse_launch(
        f"videotestsrc {live} num-buffers={options.frames} ! "
        f"video/x-raw,format=RGB,width={width},height={height},framerate=30/1 ! queue ! "
        "avisseg name=m weights=random post-messages=false ! fakesink "
        f"audiotestsrc {live} num-buffers={options.frames} samplesperbuffer=533 ! "
        "audio/x-raw,format=F32LE,rate=16000,channels=1 ! queue ! m.audio_sink"
    )
    pipeline.set_state(Gst.State.PLAYING)
    pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    stats = pipeline.get_by_name("m").get_property("stats")
    names = ("frames-in", "frames-out", "results", "frame-p50-us", "frame-p99-us", "step-p50-us", "refresh-p50-us")
    print(json.dumps({name: stats.get_value(name) for name in names} | {"size": options.size, "model": options.model}))
    pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
