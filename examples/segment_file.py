#!/usr/bin/env python3
"""Segments a recording with an official checkpoint and prints who sounds when.

python examples/segment_file.py street.mp4 AVISM_R50_COCO.pth vggish_model.ckpt
"""

import sys

import avis_stream as avs
from avis_stream.sources.file import open_clip


def main(recording: str, weights: str, audio_weights: str) -> None:
    """Reads, segments, prints one line an instance."""
    model = avs.load("avism_r50_coco", weights=weights, audio_weights=audio_weights)
    clip = model.segment_pairs(open_clip(recording, previous=model.wants_previous))
    for i, class_id in enumerate(clip.class_id.tolist()):
        seconds = [t for t in range(clip.frames) if clip.masks(t)[i].any()]
        print(f"{model.classes[class_id]:<12} {clip.score[i]:.2f}  sounds in seconds {seconds}")


if __name__ == "__main__":
    main(*sys.argv[1:])
