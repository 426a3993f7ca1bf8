"""A picture of right and wrong seconds: one row a video, one cell a second, its colour says what went wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avis_stream.files import atomic_path
from avis_stream.metrics.alignment import ALPHAS
from avis_stream.metrics.fsla import FrameVerdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 80
"""More videos than this make a poster, not a picture: the worst stay."""

THRESHOLD = 9
"""Which of the 19: IoU 0.5."""

_INK, _PALE, _GRID = "#22262b", "#8a929b", "#e6e8eb"

# Seen by colour-blind eyes too: light against dark, blue against orange.
CAUSES = {
    "right": "#9ccfc0",
    "missed: fewer shown than sound": "#1f6fb4",
    "false alarm: more shown than sound": "#e8833a",
    "as many, but another place, class or track": "#5b3a8c",
}


def causes(video: FrameVerdicts) -> NDArray[np.int64]:
    """What every frame [T] is, as an index into `CAUSES`; right means right at IoU 0.5."""
    wrong = np.where(video.shown < video.sounding, 1, np.where(video.shown > video.sounding, 2, 3))
    return np.where(video.right[:, THRESHOLD], 0, wrong).astype(np.int64)


def draw_verdicts(videos: Sequence[FrameVerdicts], path: str | Path, *, title: str) -> None:
    """Draws all videos, or the worst `MAX_ROWS` of them, worst first. Without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    assert abs(ALPHAS[THRESHOLD] - 0.5) < 1e-9
    share = [float(video.right[:, THRESHOLD].mean()) for video in videos]
    order = np.argsort(share, kind="stable")
    rows = [videos[n] for n in order[:MAX_ROWS]]
    longest = max((len(video.kind) for video in rows), default=1)
    figure = Figure(figsize=(12, 1.9 + 0.24 * max(len(rows), 1)), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for line, video in enumerate(rows):
        _draw_row(axes, line, video)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([_short(video.name) for video in rows], color=_INK, fontsize=9, parse_math=False)
    axes.set(ylim=(max(len(rows), 1) - 0.4, -0.6), xlim=(0, longest))
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(rows)))
    right.set_yticklabels([f"{100 * share[n]:.0f} %" for n in order[:MAX_ROWS]], color=_INK, fontsize=9)
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    _bare(axes)
    hidden = len(videos) - len(rows)
    more = f"; {hidden} better videos are not shown" if hidden else ""
    note = f"second (full height: something sounds, low: silence{more})"
    axes.set_xlabel(note, color=_PALE, fontsize=9.5, loc="left")
    counts = np.bincount(np.concatenate([causes(v) for v in videos]) if videos else [], minlength=len(CAUSES))
    handles = [
        Patch(color=color, label=f"{name} ({n})") for (name, color), n in zip(CAUSES.items(), counts, strict=True)
    ]
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold", parse_math=False)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_row(axes: Axes, line: int, video: FrameVerdicts) -> None:
    """Stretches of the same cause and height are one bar each."""
    colors = list(CAUSES.values())
    cause, silent = causes(video), video.sounding == 0
    borders = np.flatnonzero((np.diff(cause) != 0) | (np.diff(silent.astype(int)) != 0)) + 1
    edges = [0, *borders.tolist(), len(cause)]
    for begin, end in itertools.pairwise(edges):
        half = 0.12 if silent[begin] else 0.4
        bars: list[Any] = [(begin, end - begin)]
        axes.broken_barh(bars, (line - half, 2 * half), facecolors=[colors[cause[begin]]], linewidth=0)


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=_INK, labelsize=9)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
