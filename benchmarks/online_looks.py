#!/usr/bin/env python3
"""What the localizer makes of every frame of a set of streams, made once and kept on disk.

    python benchmarks/online_looks.py SET --looks FOLDER [--split test] [--weights FILE] [--videos N]

`online_results.py` and `online_returns.py` run the tracker and the identities on these as often as they like, and make
them themselves where they are missing. Each video is a file of its own, half a megabyte a frame, under a name that says
of which weights and of which set; it is there whole or not at all, so several programs may share a folder, and one that
was ended goes on with the next video. After changes of the localizer's code remove the folder: no name can tell.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from avis_stream.data import rle
from avis_stream.data.annotations import Video
from avis_stream.data.dataset import DataSplit, annotation_file, open_split
from avis_stream.errors import DataError
from avis_stream.files import atomic_path
from avis_stream.models.avism import AVISM
from avis_stream.models.preprocess import network_size, normalise_and_pad, resize_images
from avis_stream.models.sounding import motion_between
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.online.door import FrameInput, fingerprint
from avis_stream.online.looking import Eye, FrameAnswer, Seen
from avis_stream.online.predictions import StreamPredictions
from avis_stream.online.seeing import draw
from avis_stream.online.tracking import Arrival
from avis_stream.types import SAMPLE_RATE
from avis_stream.weights import load

Entries = list[dict[str, Any]]
LIKELY = 0.3
"""Class score above which a frame query is likely an object, by the localizer alone."""
_FORM = 2
"""Of the files; another one whenever what is in them changes."""
_TENSORS = ("queries", "logits", "audio", "features", "mask_embed", "chance", "picture")
_STEP = 3
"""Of the pixels of a picture that are kept: enough for the colours of what is seen."""


@dataclass(frozen=True)
class Look:
    """What the localizer made of one frame; features in half precision."""

    queries: Tensor
    logits: Tensor
    audio: Tensor
    features: Tensor
    mask_embed: Tensor
    chance: Tensor
    picture: Tensor
    """uint8 [3, h, w], every so many pixels of it."""
    masks: list[rle.Rle]
    """Of the frame queries that are likely an object."""
    likely: Tensor
    """int64 [F], which those are."""
    silent: bool
    """Its second of sound holds next to nothing, by the default of `OnlineConfig.silence_dbfs`."""


class Replay(Eye):
    """An eye that has seen the stream before; `looks` by frame number, `silence`: silent seconds are told to be so."""

    def __init__(self, model: AVISM, looks: Sequence[Look], *, silence: bool = False) -> None:
        super().__init__(model, None)
        self._looks, self._silence = looks, silence

    def look_at(self, given: Sequence[FrameInput]) -> list[Seen]:
        return [self._seen_before(own) for own in given]

    def _seen_before(self, given: FrameInput) -> Seen:
        look = self._looks[given.frame_id]
        thing = 1 - look.logits.softmax(-1)[:, -1]
        arrival = Arrival(look.queries[None], look.audio[None], thing.max()[None])
        answer = FrameAnswer(look.features.float(), look.chance, look.mask_embed, look.logits)
        return Seen(arrival, answer, self.sizes(given.size), silent=self._silence and look.silent)


def with_table(model: AVISM, video: Video, looks: Sequence[Look], config: OnlineConfig) -> Entries:
    """Entries by public id of a stream of these looks, which may be longer than the video whose size it has."""
    online = OnlineSegmenter(model, config)
    online._eye = Replay(model, looks, silence=config.silence_dbfs is not None)
    state, gathered = online.init_state((video.height, video.width)), StreamPredictions()
    sound = torch.zeros(SAMPLE_RATE)
    for t, look in enumerate(looks):
        picture = look.picture.repeat_interleave(_STEP, dim=1).repeat_interleave(_STEP, dim=2)
        result, state = online.step(picture[:, : video.height, : video.width], sound, state, frame_id=t)
        if result.frame_id >= 0:
            gathered.add(result)
    for result in online.finish(state):
        gathered.add(result)
    return gathered.entries(video.id)


# --- making them --------------------------------------------------------------------------------------------------


@torch.no_grad()
def look_at_all(model: AVISM, split: DataSplit, video: Video) -> list[Look]:
    """A look at each frame of a video."""
    frames = tqdm(range(video.length), desc=f"localizing {video.name}", disable=not sys.stderr.isatty())
    return [
        _look(model, split.image(video, t), split.seconds(video, [t]), split.previous(video, t)) for t in frames
    ]  # fmt: skip


@torch.no_grad()
def look_at_black(model: AVISM, height: int, width: int) -> Look:
    """A look at a black picture, in which nothing moved, with digital silence."""
    black = torch.zeros(3, height, width, dtype=torch.uint8)
    return _look(model, black, torch.zeros(1, SAMPLE_RATE), black)


def _look(model: AVISM, picture: Tensor, seconds: Tensor, earlier: Tensor | None) -> Look:
    height, width = picture.shape[1:]
    size = network_size(height, width, model.config.input)

    def prepared(picture: Tensor) -> Tensor:
        return normalise_and_pad(resize_images(picture[None], size), model.config.input)

    images = prepared(picture)
    audio = model.hear(seconds)
    pixels = model.pixel_decoder(model.backbone(images))
    motion = None if earlier is None or not model.wants_previous else motion_between(images, prepared(earlier))
    answer = model.localizer(pixels, audio, motion).heads[-1]
    assert answer.sounding is not None, "only models with a sounding head"
    likely = (answer.logits[0].softmax(-1)[:, :-1].amax(-1) > LIKELY).nonzero()[:, 0]
    masks, _ = draw(answer.mask_embed[0, likely], pixels.mask_features[0], Eye(model, None).sizes((height, width)))
    power = float(seconds.double().square().mean())
    return Look(
        queries=answer.queries[0],
        logits=answer.logits[0],
        audio=audio[0],
        features=pixels.mask_features[0].half(),
        mask_embed=answer.mask_embed[0],
        chance=answer.sounding[0].sigmoid(),
        picture=picture[:, ::_STEP, ::_STEP].clone(),
        masks=[rle.encode(mask) for mask in masks],
        likely=likely,
        silent=power < 10 ** ((OnlineConfig().silence_dbfs or -math.inf) / 10),
    )


# --- keeping them -------------------------------------------------------------------------------------------------


def looks_of(model: AVISM, split: DataSplit, video: Video, folder: Path | None) -> list[Look]:
    """The looks of a video: those kept in `folder`, or made now and kept there; None: kept nowhere.

    Raises:
        DataError: A kept file cannot be read.
    """
    if folder is None:
        return look_at_all(model, split, video)
    path = folder / kept_name(model, split, video)
    if not path.is_file():
        _keep(path, look_at_all(model, split, video))
    return _kept(path)


def kept_name(model: AVISM, split: DataSplit, video: Video) -> str:
    """The path in the folder of looks: it says of which weights and of which set."""
    truth = annotation_file(split.root, split.name)
    words = f"{_FORM} {fingerprint(model)} {truth.resolve()} {hashlib.sha256(truth.read_bytes()).hexdigest()}"
    key = hashlib.sha256(words.encode()).hexdigest()[:16]
    return f"{split.root.resolve().name}-{split.name}-{key}/{video.name}.pt"


def _keep(path: Path, looks: Sequence[Look]) -> None:
    plain: dict[str, Any] = {name: torch.stack([getattr(look, name) for look in looks]) for name in _TENSORS}
    plain |= {name: [getattr(look, name) for look in looks] for name in ("masks", "likely", "silent")}
    with atomic_path(path) as temporary:
        torch.save(plain, temporary)


def _kept(path: Path) -> list[Look]:
    try:  # mapped, so that programs that read the same video share its memory
        plain = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        names = list(plain)
        return [Look(**dict(zip(names, own, strict=True))) for own in zip(*plain.values(), strict=True)]
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} holds no looks that can be read ({error}); remove it, they are made again") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a data set in AVISeg's layout")
    parser.add_argument("--looks", type=Path, required=True, metavar="FOLDER", help="where they are kept")
    parser.add_argument("--videos", type=int, help="the first so many (default: all)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", help='default: those that come with the package; "random": for a dry run')
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    split = open_split(options.set, options.split, model.classes)
    for video in split.annotations.videos[: options.videos]:
        print(f"{video.name}: {len(looks_of(model, split, video, options.looks))} looks")


if __name__ == "__main__":
    main()
