"""A picture of what is in a data set: how many sound at once, lengths of videos, classes, and which go together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avis_stream.data.statistics import SplitStatistics
from avis_stream.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PALE, _GRID = "#22262b", "#8a929b", "#e6e8eb"
_COLORS = ("#1f6fb4", "#e8833a", "#5b3a8c", "#9ccfc0", "#8a929b")


def draw_statistics(found: Mapping[str, SplitStatistics], path: str | Path, *, title: str) -> None:
    """Draws all splits in one picture. Without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in next(iter(found.values())).classes if any(_masks(s, n) for s in found.values())]
    figure = Figure(figsize=(13, 5.2 + 0.28 * max(6, len(names))), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    (at_once, lengths), (classes, together) = figure.subplots(
        2, 2, gridspec_kw={"height_ratios": [3.2, max(6.0, 0.28 * len(names)) + 1]}
    )
    _bars_at_once(at_once, found)
    _lengths(lengths, found)
    _classes(classes, found, names)
    _together(together, found, names)
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _bars_at_once(axes: Axes, found: Mapping[str, SplitStatistics]) -> None:
    most = max(int(s.sounding.max()) for s in found.values())
    width = 0.8 / len(found)
    for n, (name, s) in enumerate(found.items()):
        share = 100 * np.bincount(s.sounding, minlength=most + 1) / len(s.sounding)
        place = np.arange(most + 1) + (n - (len(found) - 1) / 2) * width
        axes.bar(place, share, width * 0.92, color=_COLORS[n % len(_COLORS)], label=f"{name} ({len(s.lengths)} videos)")
    axes.set_xticks(range(most + 1))
    axes.legend(frameon=False, fontsize=9)
    _named(axes, "objects that sound at once", "% of the seconds")


def _lengths(axes: Axes, found: Mapping[str, SplitStatistics]) -> None:
    every = np.concatenate([s.lengths for s in found.values()])
    width = max(1, round((every.max() - every.min()) / 25))
    edges = np.arange(every.min(), every.max() + 2 * width, width) - 0.5
    colors = [_COLORS[n % len(_COLORS)] for n in range(len(found))]
    axes.hist([s.lengths for s in found.values()], bins=list(edges), color=colors, stacked=True)
    _named(axes, "seconds a video", "videos")


def _classes(axes: Axes, found: Mapping[str, SplitStatistics], names: list[str]) -> None:
    left = np.zeros(len(names))
    for n, (name, s) in enumerate(found.items()):
        seconds = np.array([_masks(s, label) for label in names], float)
        axes.barh(range(len(names)), seconds, left=left, color=_COLORS[n % len(_COLORS)], label=name)
        left += seconds
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels([name.replace("_", " ") for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    _named(axes, "object seconds", "")


def _together(axes: Axes, found: Mapping[str, SplitStatistics], names: list[str]) -> None:
    """Darker: more seconds together. The diagonal, a class with itself, is left out."""
    total = np.zeros((len(names), len(names)))
    for s in found.values():
        index = [s.classes.index(name) if name in s.classes else -1 for name in names]
        part = s.together[np.ix_(index, index)].astype(float)
        part[[k < 0 for k in index]] = 0
        part[:, [k < 0 for k in index]] = 0
        total += part
    np.fill_diagonal(total, np.nan)
    axes.imshow(np.log1p(total), cmap="Blues", aspect="auto")
    if len(names) <= 14:
        for row, line in enumerate(total):
            for column, seconds in enumerate(line):
                if seconds > 0:
                    dark = np.log1p(seconds) > 0.6 * np.nanmax(np.log1p(total))
                    axes.text(column, row, f"{seconds:.0f}", ha="center", va="center", fontsize=7.5,
                              color="white" if dark else _INK)  # fmt: skip
    labels = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels(labels, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(labels, parse_math=False)
    _named(axes, "seconds in which both sound", "", grid=False)


def _masks(s: SplitStatistics, name: str) -> int:
    return int(s.masks_of_class[s.classes.index(name)]) if name in s.classes else 0


def _named(axes: Axes, below: str, beside: str, *, grid: bool = True) -> None:
    axes.set_xlabel(below, color=_INK, fontsize=10)
    axes.set_ylabel(beside, color=_INK, fontsize=10)
    axes.tick_params(colors=_INK, labelsize=8.5, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
