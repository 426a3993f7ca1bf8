#!/usr/bin/env python3
"""Makes the README's picture from what `make demo` left: three moments of the overlay above the timeline.

python tools/readme_picture.py out/demo docs/demo.jpg --at 2.5 7 18.6
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image

_WIDTH = 1280
_GAP = 8


def moments(film: Path, seconds: list[float]) -> list[Image.Image]:
    """The pictures shown at some times, in their order."""
    found: dict[float, Image.Image] = {}
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            for wanted in seconds:
                if frame.time is not None and frame.time <= wanted:
                    found[wanted] = frame.to_image()
    return [found[wanted] for wanted in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--at", type=float, nargs="+", default=[1, 7, 16], metavar="SECONDS")
    options = parser.parse_args()
    shown = moments(options.demo / "overlay.mp4", options.at)
    width = (_WIDTH - _GAP * (len(shown) - 1)) // len(shown)
    height = round(width * shown[0].height / shown[0].width)
    timeline = Image.open(options.demo / "timeline.png").convert("RGB")
    timeline = timeline.resize((_WIDTH, round(_WIDTH * timeline.height / timeline.width)), Image.Resampling.LANCZOS)
    canvas = Image.fromarray(np.full((height + _GAP + timeline.height, _WIDTH, 3), 255, np.uint8))
    for place, picture in enumerate(shown):
        canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (place * (width + _GAP), 0))
    canvas.paste(timeline, (0, height + _GAP))
    canvas.save(options.picture, quality=85)


if __name__ == "__main__":
    main()
