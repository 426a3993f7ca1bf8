"""The element avisseg as a plugin of programs: gst-inspect-1.0, gst-launch-1.0, and what is installed for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from gst_runs import video
from live_tools import flash_and_beep, lines_of, need_gstreamer

from avis_stream.commands.gst import environment
from avis_stream.errors import AvisStreamError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    need_gstreamer("gst-launch-1.0", "gst-inspect-1.0")
    return os.environ | environment() | {"GST_REGISTRY": str(tmp_path / "registry.bin"), "OMP_NUM_THREADS": "1"}


def test_inspect_shows_documented_properties(shell: dict[str, str]) -> None:
    done = subprocess.run(["gst-inspect-1.0", "avisseg"], env=shell, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("video_sink", "video_src", "audio_sink", "mask_src", "json_src"):
        assert f"'{name}'" in done.stdout
    for name in ("model", "weights", "device", "score-threshold", "mask-threshold", "audio-wait-ms", "max-latency-ms",
                 "num-threads", "sync", "overlay", "post-messages", "result-age-ms", "stats"):  # fmt: skip
        assert f"  {name} " in done.stdout


def test_launch_records_a_film_with_overlay_and_sound(shell: dict[str, str], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    text = (
        f"avisseg name=m weights=random overlay=true {video(60, live=True, width=320, height=180)} ! m.video_sink "
        f"audiotestsrc is-live=true num-buffers=105 samplesperbuffer=960 ! audio/x-raw,rate=48000,channels=1 ! "
        "tee name=t ! queue ! audioconvert ! audioresample ! m.audio_sink t. ! queue ! audioconvert ! avenc_aac ! "
        "queue ! mux. m.video_src ! videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast ! queue ! "
        f"mp4mux name=mux ! filesink location={film}"
    )
    done = subprocess.run(
        ["gst-launch-1.0", "-e", *text.split()], env=shell, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with av.open(str(film)) as container:
        assert {s.type: s.codec_context.name for s in container.streams} == {"video": "h264", "audio": "aac"}
        assert sum(1 for _ in container.decode(video=0)) == 60


def test_the_sound_of_a_file_waits_for_its_pictures(shell: dict[str, str], tmp_path: Path) -> None:
    """As docs/live.md has it. The demuxer would hand out all of it while pictures wait for their results."""
    clip, told = flash_and_beep(tmp_path / "clip.mp4", seconds=40), tmp_path / "results.jsonl"
    text = (
        f"avisseg name=m weights=random sync=true filesrc location={clip} ! decodebin name=d d. ! queue ! videorate ! "
        "videoconvert ! video/x-raw,format=RGB,framerate=1/1 ! queue ! m.video_sink d. ! queue ! audioconvert ! "
        "audioresample ! queue ! m.audio_sink m.video_src ! queue ! fakesink "
        f"m.json_src ! queue ! filesink location={told}"
    )
    done = subprocess.run(
        ["gst-launch-1.0", "-e", *text.split()], env=shell, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    heard = [record["audio_valid"] for record in lines_of(told.read_text())]
    assert len(heard) in (40, 41)
    assert min(heard[1:39]) > 0.9


def test_an_environment_that_is_missing_is_an_error_with_a_remedy_and_is_not_remembered(
    shell: dict[str, str], tmp_path: Path
) -> None:
    """The registry trap: the element is there all the same, and works as soon as its packages do."""
    # As if it were installed for a Python without torch and avis_stream: nothing beside the file leads to them.
    folder = tmp_path / "plugins"
    (folder / "python").mkdir(parents=True)
    (folder / "interop").mkdir()
    (folder / "python" / "gstavis.py").write_bytes((ROOT / "python" / "gstavis.py").read_bytes())
    (tmp_path / "interop").mkdir()
    (tmp_path / "interop" / "gst_element.py").write_bytes(
        (ROOT / "avis_stream" / "interop" / "gst_element.py").read_bytes()
    )
    lonely = shell | {"GST_PLUGIN_PATH": str(folder), "AVIS_STREAM_VENV": str(tmp_path / "nowhere")}
    lonely.pop("VIRTUAL_ENV", None)
    lonely.pop("PYTHONPATH", None)
    command = ["gst-launch-1.0", *video(2).split(), "!", "avisseg", "weights=random", "!", "fakesink"]
    done = subprocess.run(command, env=lonely, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode != 0
    assert "avis_stream cannot be imported" in done.stderr + done.stdout
    assert "avis-stream gst env" in done.stderr + done.stdout
    mended = lonely | {"AVIS_STREAM_VENV": sys.prefix}
    done = subprocess.run(command, env=mended, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("given", ["cache", "", "relative"])
def test_an_environment_that_is_read_only_has_its_files_in_the_users_cache(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the place of a folder stands for what even root cannot write."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / given) if given == "cache" else given)
    monkeypatch.chdir(tmp_path)
    registries = set()
    for name in ("one", "other"):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "file" / name))
        values = environment()
        registry, plugins = Path(values["GST_REGISTRY"]), Path(values["GST_PLUGIN_PATH"].split(os.pathsep)[0])
        wanted = tmp_path / "cache" if given == "cache" else tmp_path / "home" / ".cache"
        assert registry.parents[2] == wanted
        assert registry.parents[1].name == "avis-stream"
        assert registry.parent.is_dir()
        assert (plugins / "python" / "gstavis.py").is_file()
        registries.add(registry)
    assert len(registries) == 2


def test_without_room_for_a_registry_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "file" / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(AvisStreamError, match=r"can be written to, none of these can: .*; set XDG_CACHE_HOME"):
        environment()


def test_the_wheel_holds_the_loader(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)], cwd=ROOT,
        env=os.environ | {"AVIS_STREAM_BUILD": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "avis_stream" / "gst" / "python"
    assert [path.name for path in installed.iterdir()] == ["gstavis.py"]
    assert (installed / "gstavis.py").read_bytes() == (ROOT / "python" / "gstavis.py").read_bytes()
    assert (installed.parents[1] / "interop" / "gst_element.py").exists()
    assert [path.name for path in (ROOT / "python").iterdir() if path.suffix == ".py"] == ["gstavis.py"]
