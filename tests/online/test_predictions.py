"""Data sets run as streams, and `eval --mode online`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import Media, regular, tone, write_media
from scipy.io import wavfile
from small_model import SMALL, open_config, small_model
from torch import Tensor

from avis_stream.cli import main
from avis_stream.commands.run import RunOptions, run_offline
from avis_stream.data.annotations import parse_predictions
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.models.avism import AVISM
from avis_stream.models.predict import predict
from avis_stream.online import OnlineSegmenter
from avis_stream.online.predictions import StreamPredictions, predict_streams, run_video
from avis_stream.sources.file import open_clip
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.scene import make_scene
from avis_stream.synth.write import write_set


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> DataSplit:
    protocol = replace(Protocol.load(), size=(96, 64))
    scenes = [
        make_scene(ProceduralLibrary(), protocol, seed=1, index=i, seconds=(5, 5), size=(96, 64), photograph_share=0.0)
        for i in range(2)
    ]
    root: Path = tmp_path_factory.mktemp("made")
    write_set(root, "test", scenes, protocol, seed=1)
    return open_split(root, "test", small_model().classes)


def told_to_the_encoder(model: AVISM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Will hold how many samples of each second were there, by those who let the model hear it; -1: they do not say."""
    told, hear = list[int](), model.hear

    def spy(seconds: Tensor, valid_samples: Tensor | None = None) -> Tensor:
        told.extend([-1] * len(seconds) if valid_samples is None else valid_samples.tolist())
        return hear(seconds, valid_samples)

    monkeypatch.setattr(model, "hear", spy)
    return told


def test_a_video_is_stepped_through_frame_by_frame(split: DataSplit) -> None:
    online = OnlineSegmenter(small_model(), open_config(silence_dbfs=None))
    video = split.annotations.videos[0]
    gathered, state = StreamPredictions(), online.init_state()
    for t in range(video.length):
        sound = split.seconds(video, [t])[0]
        result, state = online.step(split.image(video, t), sound, state, previous=split.previous(video, t))
        gathered.add(result)
    entries = gathered.entries(video.id)
    assert entries
    found = next(iter(predict_streams(online, split)))
    assert [(e["score"], e["segmentations"]) for e in found] == [(e["score"], e["segmentations"]) for e in entries]
    parse_predictions(Path("streams"), found, split.annotations)


def test_a_second_that_the_recording_ends_in_is_heard_as_segment_hears_it(
    split: DataSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders are told how much of it was there (quirk Q20)."""
    shutil.copytree(split.root, tmp_path / "made")
    (wav, *_) = sorted((tmp_path / "made" / "test" / "WAVAudios").glob("*.wav"))
    wavfile.write(wav, 16_000, np.full(72_000, 5000, np.int16))
    short = open_split(tmp_path / "made", "test", small_model().classes)
    video = next(own for own in short.annotations.videos if own.name == wav.stem)
    model = small_model()
    told = told_to_the_encoder(model, monkeypatch)
    images = torch.stack([short.image(video, t) for t in range(video.length)])
    model.segment(images, torch.full((72_000,), 0.1))
    list(predict(model, short, [video]))
    list(run_video(OnlineSegmenter(model, open_config(silence_dbfs=None)), short, video))
    assert told == [16_000, 16_000, 16_000, 16_000, 8_000] * 3


def test_sound_that_ends_before_its_film_is_heard_as_segment_hears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs hold whole seconds, so that it must be told besides how much of each was there."""
    film = Media(regular(4, 10), rate=Fraction(10), sound=tone(2.3), sound_codec="pcm_f32le", sound_format="flt")
    clip = open_clip(write_media(tmp_path / "film.mkv", film), previous=True)
    pairs, model = list(clip), small_model()
    told = told_to_the_encoder(model, monkeypatch)
    model.segment(torch.stack([pair.frame.image for pair in pairs]), torch.from_numpy(tone(2.3, rate=16_000)))
    assert told == (wanted := [16_000, 16_000, 4800, 0])
    online = OnlineSegmenter(small_model(objects="frame"), open_config(silence_dbfs=None))
    told_online, state = told_to_the_encoder(online.model, monkeypatch), online.init_state()
    for pair in pairs:
        _, state = online.step_pair(pair, state)
        online.refresh_pair(pair, state)
    assert told_online == [count for count in wanted for _ in ("step", "refresh")]
    model.segment_pairs(pairs)
    (tmp_path / "out").mkdir()
    run_offline(model, clip, tmp_path / "out", RunOptions(video=False))
    assert told == wanted * 3


@pytest.mark.parametrize("settings", [{"refine_delay": 2}, {"alignment": "official"}])
def test_frames_that_wait_arrive_in_the_end(split: DataSplit, settings: dict[str, object]) -> None:
    online = OnlineSegmenter(small_model(), open_config(**settings))
    video = split.annotations.videos[1]
    assert [result.frame_id for result in run_video(online, split, video)] == list(range(video.length))


def test_eval_runs_a_model_online(split: DataSplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "answers.json"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = ["eval", "--data", str(split.root), "--split", "test", "--weights", "random", *settings]
    assert main([*command, "--mode", "online", "--save", str(kept), "--metrics", "fixed"]) == 0
    assert "FSLA" in capsys.readouterr().out
    assert kept.exists()
