"""`timeline.png`: who sounds when, under the level of the sound itself. Made for reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from avis_stream.types import SAMPLE_RATE, AVPair, OnlineResult
from avis_stream.writers.base import Pending
from avis_stream.writers.colors import identity_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 40
"""More identities than this make a poster, not a picture: those that sound longest stay."""

_BIN_SECONDS = 1 / 40  # resolution of the level strip
_INK, _PALE, _GRID = "#22262b", "#8a929b", "#e6e8eb"


@dataclass(slots=True)
class _Row:
    class_id: int
    present: list[tuple[float, float]] = field(default_factory=list)
    sounding: list[tuple[float, float]] = field(default_factory=list)
    """Stretches as (begin, end) in seconds."""

    @property
    def sounding_seconds(self) -> float:
        return sum(end - begin for begin, end in self.sounding)


class TimelineWriter:
    """Gathers stretches of time per identity, and the level of the sound; draws when it is closed."""

    def __init__(self, path: str | Path, classes: Sequence[str], *, fps: float, title: str = "") -> None:
        self._pending = Pending(path)
        self._classes = classes
        self._interval = 1.0 / float(fps)
        self._title = title
        self._rows: dict[int, _Row] = {}
        self._levels: list[tuple[float, np.ndarray[Any, np.dtype[np.float32]]]] = []
        self._end = 0.0

    def write(self, pair: AVPair, result: OnlineResult) -> None:
        """Takes one frame."""
        begin = pair.frame.pts_seconds
        end = begin + self._interval
        for row, track_id in enumerate(result.track_id.tolist()):
            entry = self._rows.setdefault(track_id, _Row(class_id=0))
            entry.class_id = int(result.class_id[row])
            _extend(entry.present, begin, end)
            if result.sounding[row]:
                _extend(entry.sounding, begin, end)
        self._levels.append((end, _peaks(pair.audio, min(1.0, self._interval))))
        self._end = max(self._end, end)

    def close(self) -> None:
        """Draws the picture. Matplotlib is loaded here only, and without a display."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = self._shown_rows()
        height = 1.35 + 0.36 * max(len(rows), 1) + (0.35 if self._title else 0.0)
        figure = Figure(figsize=(12.0, max(2.6, height + 0.55)), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        strip, table = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [0.95, 0.36 * max(len(rows), 1) + 0.1]}
        )
        self._draw_level(strip)
        self._draw_rows(table, rows)
        if self._title:
            strip.set_title(
                self._title, loc="left", color=_INK, fontsize=13, fontweight="bold", pad=10, parse_math=False
            )
        figure.savefig(self._pending.path, dpi=130)
        self._pending.commit()

    def abort(self) -> None:
        """Leaves nothing."""
        self._pending.discard()

    def _shown_rows(self) -> list[tuple[int, _Row]]:
        """Identities in order of id: those that ever sounded, at most `MAX_ROWS`."""
        heard = [(track_id, row) for track_id, row in self._rows.items() if row.sounding]
        longest = sorted(heard, key=lambda entry: -entry[1].sounding_seconds)[:MAX_ROWS]
        return sorted(longest, key=lambda entry: entry[0])

    def _draw_level(self, axes: Axes) -> None:
        """The loudest sample of every 25 ms, mirrored: the outline of a waveform."""
        levels = self._levels or [(0.0, np.zeros(0, np.float32))]
        times = np.concatenate([end - _BIN_SECONDS * np.arange(len(peaks))[::-1] for end, peaks in levels])
        peaks = np.concatenate([peaks for _, peaks in levels])
        axes.fill_between(times, -peaks, peaks, color=_PALE, linewidth=0, step="pre")
        axes.axhline(0, color=_PALE, linewidth=0.6)
        top = max(0.05, float(peaks.max(initial=0.0)) * 1.08)
        axes.set(ylim=(-top, top), yticks=[0])
        axes.set_yticklabels(["sound"], color=_INK, fontsize=11)
        _bare(axes)
        axes.tick_params(axis="x", length=0)

    def _draw_rows(self, axes: Axes, rows: Sequence[tuple[int, _Row]]) -> None:
        labels = []
        for line, (track_id, row) in enumerate(rows):
            color = tuple(channel / 255 for channel in identity_color(track_id))
            labels.append(f"#{track_id}  {self._classes[row.class_id].replace('_', ' ')}")
            for begin, end in row.present:  # seen but silent: a thread between the bars
                axes.plot([begin, end], [line, line], color=color, linewidth=1.4, alpha=0.55, solid_capstyle="butt")
            bars = [(begin, end - begin) for begin, end in row.sounding]
            axes.broken_barh(bars, (line - 0.33, 0.66), facecolors=[color], edgecolor=_INK, linewidth=0.5, zorder=3)
            for begin, width in bars:
                if width >= 0.045 * self._end:
                    axes.text(begin + width / 2, line, f"{width:.3g} s", ha="center", va="center", fontsize=8.5,
                              color=_INK, zorder=4)  # fmt: skip
        if not rows:
            axes.text(self._end / 2, 0, "nothing sounded", ha="center", va="center", color=_PALE, fontsize=12)
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels(labels, color=_INK, fontsize=11, parse_math=False)
        axes.set(ylim=(max(len(rows), 1) - 0.4, -0.6), xlim=(0, self._end or 1.0))
        hidden = sum(bool(row.sounding) for row in self._rows.values()) - len(rows)
        note = f"     ({hidden} more that sound for less are not shown)" if hidden else ""
        axes.set_xlabel(f"bar: sounding    thin line: known, silent{note}", color=_PALE, fontsize=9.5, loc="left")
        _time_axis(axes, self._end)
        _bare(axes)


def _extend(stretches: list[tuple[float, float]], begin: float, end: float) -> None:
    """Appends a stretch, joined with the last one where they touch."""
    if stretches and begin - stretches[-1][1] < 1e-6:
        stretches[-1] = (stretches[-1][0], end)
    else:
        stretches.append((begin, end))


def _peaks(audio: torch.Tensor, seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Largest magnitude per bin over the last `seconds` of a frame's sound: what it adds to the frame before."""
    width = round(_BIN_SECONDS * SAMPLE_RATE)
    bins = max(1, round(seconds / _BIN_SECONDS))
    tail = audio[-min(bins * width, SAMPLE_RATE) :].abs()
    return np.asarray(tail.reshape(-1, width).amax(dim=1), dtype=np.float32)


def _time_axis(axes: Axes, end: float) -> None:
    """Ticks at round times, seven to fifteen of them, as m:ss or h:mm:ss."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
    step = next((s for s in steps if end / s <= 15), steps[-1])
    ticks = np.arange(0, end + step * 0.01, step)
    axes.set_xticks(ticks)
    axes.set_xticklabels([_clock(t, step) for t in ticks], color=_INK, fontsize=10)


def _clock(seconds: float, step: float) -> str:
    whole = int(seconds + 1e-6)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
    return text if step >= 1 else f"{text}.{round((seconds - whole) * 10)}"


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
