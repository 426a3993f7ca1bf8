"""What the environment demands, and the commands that install what is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from avis_stream.errors import ConfigError, NativeUnavailableError, SourceError
from avis_stream.needs import NEEDS, install_extra, required
from avis_stream.ops import _library
from avis_stream.sources import open as opening
from avis_stream.sources.child import list_microphones

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "listed"),
    [("", []), ("native", ["native"]), ("gst, native", ["native", "gst"]), (" mic ,,cuda,", ["cuda", "mic"])],
    ids=repr,
)
def test_a_list_with_commas(text: str, listed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", text)
    assert [name for name in NEEDS if required(name)] == listed


def test_nothing_is_required_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVIS_STREAM_REQUIRE", raising=False)
    assert not any(required(name) for name in NEEDS)


def test_an_unknown_name_is_refused_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", "native,gstreamer")
    with pytest.raises(ConfigError, match="native, cuda, gst, mic, arm, got gstreamer"):
        required("mic")


@pytest.mark.parametrize(
    ("text", "device", "raises"),
    [("gst, native", "cpu", True), ("cuda", "cuda", True), ("cuda", "cpu", False), ("native", "meta", False)],
    ids=repr,
)
def test_operators_honour_it(text: str, device: str, raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", text)
    monkeypatch.setattr(_library, "_warned", {"cpu", "cuda"})
    if raises:
        with pytest.raises(NativeUnavailableError, match=f"AVIS_STREAM_REQUIRE={text.split(', ')[-1]}, but avis::x"):
            _library.note_fallback("x", device)
    else:
        _library.note_fallback("x", device)


@pytest.mark.parametrize(("text", "backend"), [("gst", "auto"), ("mic", "auto"), ("gst", "ffmpeg")], ids=repr)
def test_sources_honour_it(text: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GStreamer FFmpeg steps in, unless that is forbidden; who asks for FFmpeg gets it."""
    monkeypatch.setenv("AVIS_STREAM_REQUIRE", text)
    monkeypatch.setattr(opening, "has_gstreamer", lambda: False)
    if (text, backend) == ("gst", "auto"):
        with pytest.raises(SourceError, match="AVIS_STREAM_REQUIRE=gst"):
            opening.open_sources("rtsp://camera/", None, backend="auto")
    else:
        opening.open_sources("rtsp://camera/", None, backend=backend)  # type: ignore[arg-type]


def test_a_session_does_not_begin_without_the_microphone_that_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf() -> list[dict[str, object]]:
        raise SourceError("PyAudio cannot be imported")

    monkeypatch.setenv("AVIS_STREAM_REQUIRE", "mic")
    for found in (lambda: [], deaf):
        monkeypatch.setattr(opening, "list_microphones", found)
        with pytest.raises(SourceError, match="AVIS_STREAM_REQUIRE=mic, but"):
            opening.open_sources("synthetic://flashbeep", "mic")
        opening.open_sources("synthetic://flashbeep", "source")
    monkeypatch.setattr(opening, "list_microphones", lambda: [{"name": "USB"}])
    assert len(opening.open_sources("synthetic://flashbeep", "mic")) == 2


def test_remedies_install_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("serve", "mic"):
        assert install_extra(name).startswith("pip install ")
        for wanted in extras[name]:
            assert re.split(r"[<>=!~\[ ;]", wanted)[0] in install_extra(name)
    for path in (ROOT / "avis_stream").rglob("*.py"):
        for name in re.findall(r"install_extra\([\"'](\w+)[\"']\)", path.read_text()):
            assert name in extras, path


def test_no_remedy_asks_an_index_for_a_package_that_is_on_none() -> None:
    """`pip install 'avis-stream[...]'` finds nothing."""
    texts = [*(ROOT / "avis_stream").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    wrong = [p.name for p in texts if re.search(r"pip install ['\"]?avis-stream", p.read_text())]
    assert not wrong


def test_a_worker_says_the_same_though_it_imports_nothing_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyaudio.py").write_text("raise ImportError('no PortAudio')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    remedy = f"(no PortAudio); apt-get install portaudio19-dev, then {install_extra('mic')}"
    with pytest.raises(SourceError, match=re.escape(remedy)):
        list_microphones(60)
