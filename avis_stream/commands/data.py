"""`avis-stream doctor --data` and `info --data`: what is wrong with a data set, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from avis_stream.commands.output import aligned
from avis_stream.data.annotations import read_annotations
from avis_stream.data.dataset import annotation_file, splits
from avis_stream.data.statistics import SplitStatistics, split_statistics
from avis_stream.data.validate import data_set_problems
from avis_stream.errors import DataError
from avis_stream.files import atomic_path, printable
from avis_stream.writers.statistics import draw_statistics


def check_data(root: Path, out: TextIO) -> None:
    """Writes every problem of a data set to `out`, one a line.

    Raises:
        DataError: There are problems, or there is no data set.
    """
    count = 0
    for problem in data_set_problems(root):
        out.write(f"{problem}\n")
        count += 1
    if count:
        raise DataError(f"{root}: {count} {'problem' if count == 1 else 'problems'}; correct the files named above")
    out.write(f"{root}: {', '.join(splits(root))}: no problem found\n")


def describe_data(root: Path, out: TextIO, *, json_file: Path | None, plot_file: Path | None) -> None:
    """Writes what is in a data set to `out`, and to files where they are wanted.

    Raises:
        DataError: There is no data set, or its annotations are broken.
    """
    names = splits(root)
    if not names:
        annotation_file(root, "train")  # says what is missing
    found = {name: split_statistics(read_annotations(annotation_file(root, name))) for name in names}
    out.write(f"{_splits_table(found)}\n\n{_classes_table(found)}\n")
    if json_file is not None:
        with atomic_path(json_file) as path:
            content = {name: statistics.as_json() for name, statistics in found.items()}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if plot_file is not None:
        draw_statistics(found, plot_file, title=printable(str(root)))


def _splits_table(found: dict[str, SplitStatistics]) -> str:
    lines = [
        [
            "split",
            "videos",
            "frames",
            "objects",
            "masks",
            "silent",
            "single",
            "multi",
            "most at once",
            "seconds a video",
        ]
    ]
    for name, s in found.items():
        shares = [f"{100 * share:.1f} %" for share in s.shares().values()]
        span = f"{s.lengths.min()} to {s.lengths.max()}, mean {s.lengths.mean():.1f}"
        counts = [len(s.lengths), s.lengths.sum(), s.objects_of_class.sum(), s.masks_of_class.sum()]
        lines.append([name, *(f"{count:,}" for count in counts), *shares, str(s.sounding.max()), span])
    scenarios = [
        f"{name}: " + ", ".join(f"{scenario} {count}" for scenario, count in sorted(s.scenarios.items()))
        for name, s in found.items()
    ]
    return aligned(lines, last_is_text=True) + "\n\nvideos by scenario\n" + "\n".join(scenarios)


def _classes_table(found: dict[str, SplitStatistics]) -> str:
    """All splits together; classes that never sound are left out."""
    rows: dict[str, list[int]] = {}
    partners: dict[str, dict[str, int]] = {}
    for s in found.values():
        for k, name in enumerate(s.classes):
            row = rows.setdefault(name, [0, 0, 0])
            for n, counts in enumerate((s.videos_of_class, s.objects_of_class, s.masks_of_class)):
                row[n] += int(counts[k])
            own = partners.setdefault(name, {})
            for other, seconds in zip(s.classes, s.together[k].tolist(), strict=True):
                if other != name and seconds:
                    own[other] = own.get(other, 0) + seconds
    lines = [["class", "videos", "objects", "masks", "sounds most often with (seconds)"]]
    for name, row in rows.items():
        if row[1]:
            most = sorted(partners[name].items(), key=lambda pair: -pair[1])[:3]
            with_whom = ", ".join(f"{other} {seconds}" for other, seconds in most) or "nothing else"
            lines.append([name, *(f"{count:,}" for count in row), with_whom])
    return aligned(lines, last_is_text=True)
