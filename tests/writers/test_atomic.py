"""A result appears complete or not at all."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_results import CLASSES, pair_at, result_for

from avis_stream.commands.output import output_folder
from avis_stream.files import atomic_path
from avis_stream.writers.base import Writer, Writers
from avis_stream.writers.jsonl import JsonlWriter
from avis_stream.writers.masks import PngMaskWriter, RleMaskWriter
from avis_stream.writers.overlay import OverlayWriter
from avis_stream.writers.predictions import PredictionsWriter
from avis_stream.writers.summary import SummaryWriter
from avis_stream.writers.timeline import TimelineWriter

MAKERS: dict[str, Callable[[Path], Writer]] = {
    "results.jsonl": lambda path: JsonlWriter(path, CLASSES),
    "predictions.json": lambda path: PredictionsWriter(path),
    "overlay.mp4": lambda path: OverlayWriter(path, CLASSES, fps=1),
    "timeline.png": lambda path: TimelineWriter(path, CLASSES, fps=1),
    "masks": lambda path: PngMaskWriter(path),
    "masks.json": lambda path: RleMaskWriter(path, CLASSES),
    "summary.json": lambda path: SummaryWriter(path, CLASSES, fps=1),
}


def write_some(writer: Writer | Writers, frames: int = 3) -> None:
    for index in range(frames):
        pair = pair_at(index)
        writer.write(pair, result_for(pair, [(1, 1, 0.9, (4, 4, 20, 20))]))


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_there_before_it_is_complete(tmp_path: Path, name: str) -> None:
    writer = MAKERS[name](tmp_path / name)
    write_some(writer)
    assert not (tmp_path / name).exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    writer.abort()  # too late, and harmless
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", MAKERS)
def test_abort_leaves_nothing(tmp_path: Path, name: str) -> None:
    for frames in (0, 2):
        writer = MAKERS[name](tmp_path / name)
        write_some(writer, frames)
        writer.abort()
        writer.abort()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MAKERS)
def test_abort_keeps_what_was_there(tmp_path: Path, name: str) -> None:
    first = MAKERS[name](tmp_path / name)
    write_some(first)
    first.close()
    writer = MAKERS[name](tmp_path / name)
    write_some(writer)
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_nothing_of_any_writer(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with Writers([make(tmp_path / name) for name, make in MAKERS.items()]) as writers:
            write_some(writers)
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_all_writers_together(tmp_path: Path) -> None:
    with Writers([make(tmp_path / name) for name, make in MAKERS.items()]) as writers:
        write_some(writers)
    assert {path.name for path in tmp_path.iterdir()} == set(MAKERS)


def test_a_writer_that_cannot_close_takes_the_later_ones_along(tmp_path: Path) -> None:
    class Failing(PredictionsWriter):
        def close(self) -> None:
            raise OSError("disk full")

    writers = Writers([Failing(tmp_path / "a.json"), JsonlWriter(tmp_path / "b.jsonl", CLASSES)])
    write_some(writers)
    with pytest.raises(OSError, match="disk full"):
        writers.close()
    assert list(tmp_path.iterdir()) == []


def test_what_happens_only_once_is_kept_on_errors(tmp_path: Path) -> None:
    class Failing(PredictionsWriter):
        def close(self) -> None:
            raise OSError("disk full")

    def failing() -> None:
        made = [Failing(tmp_path / "a.json"), JsonlWriter(tmp_path / "b.jsonl", CLASSES)]
        with Writers(made, keep=True) as writers:
            write_some(writers)
            raise RuntimeError

    with pytest.raises(OSError, match="disk full"):
        failing()
    assert [path.name for path in tmp_path.iterdir()] == ["b.jsonl"]


def test_no_frame_makes_no_film(tmp_path: Path) -> None:
    OverlayWriter(tmp_path / "overlay.mp4", CLASSES, fps=1).close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_on_another_file_system_gets_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be renamed into it from outside, as from one file system into another."""
    (mounted := tmp_path / "mounted").mkdir()
    (tmp_path / "out").symlink_to(mounted)
    rename = Path.replace

    def within(path: Path, target: Path) -> Path:
        if (mounted in path.resolve().parents) != (mounted in target.resolve().parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", within)
    for out in (tmp_path / "out", mounted):
        with output_folder(out, force=out == mounted) as folder:
            (folder / "summary.json").write_text(out.name)
        assert [path.name for path in mounted.iterdir()] == ["summary.json"]
        assert (mounted / "summary.json").read_text() == out.name

    def failing() -> None:
        with output_folder(mounted, force=True) as folder:
            (folder / "summary.json").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert (mounted / "summary.json").read_text() == "mounted"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mounted", "out"]


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "report.json", tmp_path / "elsewhere" / "kept"
    link.symlink_to(file)
    for text in ("new", "newer"):  # there is nothing behind it at first
        with atomic_path(link) as temporary:
            assert temporary.suffix == ".json"
            temporary.write_text(text)
        assert link.is_symlink()
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["kept"]


def test_a_pipe_stays_and_gets_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_text(pipe, "all of it")
    assert pipe.is_fifo()
    reader.join(5)
    assert got == [b"all of it"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.json"]


def test_an_open_file_is_added_to(tmp_path: Path) -> None:
    """As `/dev/stdout` is, where the shell sends it to a file: what was printed before stays, and so what is later."""
    with (tmp_path / "printed.txt").open("w") as printed:
        printed.write("a table\n")
        printed.flush()
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{printed.fileno()}")
        write_text(tmp_path / "stdout", "{}\n")
        assert os.fstat(printed.fileno()).st_ino == (tmp_path / "printed.txt").stat().st_ino
    assert (tmp_path / "printed.txt").read_text() == "a table\n{}\n"
