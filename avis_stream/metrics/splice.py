"""The splice test: a stream is cut, something else is put in between, and then it goes on. Who is known again?

    before the cut | as long as one likes of something else | after the cut

What was put in between has no part in the score: answers are scored on the stream as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any, TypeVar

import numpy as np

from avis_stream.checks import require
from avis_stream.metrics.pairs import VideoPair
from avis_stream.metrics.reid import ReturnCounts, majority, matches

T = TypeVar("T")


def spliced(stream: Sequence[T], filler: Sequence[T], cut: int, frames: int) -> list[T]:
    """A stream with something else in the middle.

    Args:
        stream: Its frames, in any form.
        filler: What comes in between, from its beginning; over and over, if it is too short.
        cut: Frames of the stream that come before.
        frames: So many of the filler.

    Raises:
        ConfigError: A cut that leaves nothing on one side, or nothing to put in.
    """
    require(0 < cut < len(stream), "cut", cut, f"within the stream's {len(stream)} frames")
    require(frames == 0 or len(filler) > 0, "filler", len(filler), "frames to put in")
    return [*stream[:cut], *islice(cycle(filler), frames), *stream[cut:]]


def without_filler(entries: Sequence[Mapping[str, Any]], cut: int, frames: int) -> list[dict[str, Any]]:
    """Entries of a predictions file about a spliced stream as entries about the stream as it was.

    Args:
        entries: With `segmentations` of all frames; one that was only seen in the filler is left out.
        cut: As it was spliced.
        frames: As it was spliced.
    """
    found = []
    for entry in entries:
        masks = entry["segmentations"]
        own = [*masks[:cut], *masks[cut + frames :]]
        if any(mask is not None for mask in own):
            found.append({**entry, "segmentations": own})
    return found


def across_cut(pair: VideoPair, cut: int) -> ReturnCounts:
    """Who is known by the same name on both sides of a cut, whatever the classes; crowds are left out.

    Of every object that is there on both sides, the name that most of its last matched frames before have must be that
    of most of the first ones after it, as with `reappearance`; it need not be there at the cut itself.

    Args:
        pair: The video, without what was put in.
        cut: First frame after it.
    """
    pair = pair.without_crowds()
    matched = matches(pair)
    seen = pair.truth.present & (pair.truth.area > 0)
    counts = ReturnCounts()
    for g in np.flatnonzero(seen[:cut].any(axis=0) & seen[cut:].any(axis=0)):
        left, right = majority(matched[:cut, g][::-1]), majority(matched[cut:, g])
        covered = left is not None and right is not None
        counts += ReturnCounts(1, int(covered), int(covered and left == right))
    return counts
