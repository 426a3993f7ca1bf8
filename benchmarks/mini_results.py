"""What `avism_mini` reaches on made sets, and whether it really listens.

    avis-stream synth SETS/disjoint --split test --videos 60 --assets ASSETS --classes disjoint
    avis-stream synth SETS/photographs --split test --videos 30 --assets ASSETS --photographs
    python benchmarks/mini_results.py --sets SETS --assets ASSETS [--split test] [--json FILE] [--weights FILE]
        [--only disjoint|photographs] [--videos N] [--sweep]

Prints a table for each set and writes everything as JSON. Scores are those of `mode="fixed"`, in percent. Thresholds
are the ones in the weight file, chosen on val by `--sweep`; test is for reporting.

The rows, for each set: nothing; the same network trained without sound (`--deaf`); every visible object, its true mask;
our masks, shown when the truth sounds; true masks, shown when ours are; ours. `frame AP50` in them is that of what is
shown. That of all that was found, in any frame and of any class that it may be, ranked by how likely it sounds, stands
below: of the thresholds only a floor (`CANDIDATE_SCORE`) and `duplicate_iou` take part in it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from avis_stream.config import PostprocessConfig
from avis_stream.data import rle
from avis_stream.data.annotations import Track, Video, parse_predictions, read_json
from avis_stream.data.dataset import DataSplit, open_split
from avis_stream.metrics import evaluation
from avis_stream.models.avism import AVISM
from avis_stream.models.clip import ClipResult
from avis_stream.models.predict import predict_video
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.synth.soundscape import RATE, fill, gain, room_tone
from avis_stream.weights import load

COLUMNS = {"FSLA": "FA", "silent": "FAn", "single": "FAs", "multi": "FAm", "HOTA": "HOTA", "pooled": "HOTA_pooled",
           "frame AP50": "frame_AP50", "mAP": "AP_all", "IDF1": "IDF1", "IDSW": "IDSW"}  # fmt: skip
SAME_OBJECT = 0.1
"""Overlap at which one of our tracks counts as the object of the truth that it overlaps most."""
RIGHT_MASK = 0.5
CANDIDATE_SCORE = 0.02
"""Least score of a candidate."""
CHECKED = 20
"""Videos that checks with another sound are run on."""

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Seen:
    """A video, the truth about all its visible objects, and what the model makes of it with its gate open."""

    video: Video
    truth: tuple[Track, ...]
    found: ClipResult
    overlap: NDArray[np.float64]
    """[T, truth, found], of the visible masks."""


@dataclass(frozen=True)
class Answered(Seen):
    """And what it answers, as it is used."""

    ours: Entries
    candidates: Entries
    """The same with all gates open, for average precision."""
    deaf: Entries
    """Of the same network trained without sound; empty without one."""
    other: OtherSounds | None
    """For the first videos only."""


@dataclass(frozen=True)
class OtherSounds:
    """The answers of one video under sounds that are not its own."""

    quiet: int
    """Frames with a mask over room tone alone."""
    foreign: int
    """Frames with a mask over the sound of an absent class."""
    swapped: Entries
    """The answers over that."""
    earlier: dict[float, Entries]
    """By how many seconds the sound is early."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", type=Path, help="default: those that come with the package")
    parser.add_argument("--deaf", type=Path, help="weights of the same network trained without sound")
    parser.add_argument("--only", choices=["disjoint", "photographs"], help="one of the two sets")
    parser.add_argument("--videos", type=int, help="only the first so many of each set")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="look for thresholds, on val")
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    report: dict[str, Any] = {"protocol": Protocol.load().digest, "postprocess": repr(model.config.postprocess)}
    deaf = None if options.deaf is None else load("avism_mini", options.deaf)
    for name in ("disjoint", "photographs") if options.only is None else (options.only,):
        split = open_split(options.sets / name, options.split, model.classes)
        videos = split.annotations.videos[: options.videos]
        if options.sweep:
            sweep(model, split, [see(model, split, video) for video in tqdm(videos, desc=name)])
            continue
        ears = Ears(options.assets, options.split)
        answered = []
        for n, video in enumerate(tqdm(videos, desc=name)):
            with looking_once(model):
                answered.append(answer(model, deaf, split, video, ears if n < CHECKED else None))
        rows = table_rows(split, answered, with_deaf=deaf is not None)
        show(f"{name} {options.split}: {len(videos)} videos", rows)
        checks = of_candidates(split, answered) | listening(split, answered[:CHECKED]) | pairs(model, split, answered)
        for key, value in checks.items():
            print(f"  {key}: {value}")
        report[name] = {"videos": len(videos), "rows": rows, "checks": checks}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


# --- what is seen -----------------------------------------------------------------------------------------------------


def ungated(model: AVISM) -> PostprocessConfig:
    """Everything that is followed is shown in every frame."""
    return replace(model.config.postprocess, presence_threshold=-1.0)


def candidates_of(model: AVISM) -> PostprocessConfig:
    """All that is found, as every class that it may be, in every frame."""
    return replace(ungated(model), score_threshold=CANDIDATE_SCORE, one_class=False)


def with_postprocess(model: AVISM, config: PostprocessConfig, run: Callable[[], ClipResult]) -> ClipResult:
    before = model.config
    model.config = replace(before, postprocess=config)
    try:
        return run()
    finally:
        model.config = before


def see(model: AVISM, split: DataSplit, video: Video) -> Seen:
    found = with_postprocess(model, ungated(model), lambda: predict_video(model, split, video))
    truth = split.annotations.tracks[video.id] + tuple(split.annotations.silent.get(video.id, ()))
    overlap = np.zeros((video.length, len(truth), len(found)))
    for t in range(video.length):
        masks = found.masks(t)
        for g, track in enumerate(truth):
            if track.visible is not None and track.visible[t] is not None and len(found):
                wanted = rle.decode(track.visible[t])
                both = (masks & wanted).flatten(1).sum(1)
                overlap[t, g] = (both / (masks | wanted).flatten(1).sum(1).clamp(min=1)).numpy()
    return Seen(video, truth, found, overlap)


def sounds(track: Track, t: int) -> bool:
    return track.segmentations[t] is not None


def gated(seen: Seen, config: PostprocessConfig) -> Entries:
    """The same answers with a gate closed afterwards: near enough to choose thresholds by."""
    entries = []
    for i, entry in enumerate(seen.found.to_aviseg(seen.video.id)):
        assert seen.found.presence is not None
        open_at = seen.found.presence[i] > config.presence_threshold
        if entry["score"] > config.score_threshold and open_at.any():
            masks = [m if o else None for m, o in zip(entry["segmentations"], open_at.tolist(), strict=True)]
            entries.append({**entry, "segmentations": masks})
    return entries


# --- the six rows -----------------------------------------------------------------------------------------------------


def table_rows(split: DataSplit, answered: list[Answered], *, with_deaf: bool) -> dict[str, dict[str, Any]]:
    videos = [s.video for s in answered]
    rows: dict[str, Entries] = {
        "nothing": [],
        "all visible objects, true masks": [e for s in answered for e in all_visible(s)],
        "our masks, true sounding": [e for s in answered for e in true_sounding(s)],
        "true masks, our sounding": [e for s in answered for e in our_sounding(s, s.ours)],
        "ours": [e for s in answered for e in s.ours],
    }
    if with_deaf:
        rows["the same trained without sound"] = [e for s in answered for e in s.deaf]
    return {name: score(split, videos, entries) for name, entries in rows.items()}


def all_visible(seen: Seen) -> Entries:
    return [truth_entry(seen, track, [True] * seen.video.length) for track in seen.truth]


def truth_entry(seen: Seen, track: Track, shown: list[bool]) -> dict[str, Any]:
    assert track.visible is not None
    masks = [m if s else None for m, s in zip(track.visible, shown, strict=True)]
    return {"video_id": seen.video.id, "category_id": track.category_id, "score": 1.0, "segmentations": masks}


def true_sounding(seen: Seen) -> Entries:
    """Each of our tracks is shown in the frames in which the object that it covers sounds."""
    entries = []
    for i, entry in enumerate(seen.found.to_aviseg(seen.video.id)):
        masks: list[Any] = [None] * seen.video.length
        for t in range(seen.video.length):
            best = int(seen.overlap[t, :, i].argmax()) if len(seen.truth) else 0
            if len(seen.truth) and seen.overlap[t, best, i] >= SAME_OBJECT and sounds(seen.truth[best], t):
                masks[t] = entry["segmentations"][t]
        shown = {key: value for key, value in entry.items() if key != "frame_scores"}  # who sounds is known here
        entries.append({**shown, "segmentations": masks})
    return entries


def our_sounding(seen: Seen, ours: Entries) -> Entries:
    """Each true mask is shown in the frames in which one of our shown masks covers it."""
    entries = []
    for track in seen.truth:
        assert track.visible is not None
        shown = []
        for t, visible in enumerate(track.visible):
            overlaps = [mask_overlap(entry["segmentations"][t], visible) for entry in ours]
            others = [max((mask_overlap(e["segmentations"][t], o.visible[t]) for o in seen.truth if o is not track
                           and o.visible is not None), default=0.0) for e in ours]  # fmt: skip
            shown.append(any(a >= SAME_OBJECT and a >= b for a, b in zip(overlaps, others, strict=True)))
        entries.append(truth_entry(seen, track, shown))
    return entries


def of_candidates(split: DataSplit, answered: Sequence[Answered]) -> dict[str, Any]:
    """Average precision of all that is found: as sounding, and as merely there, whoever sounds."""
    videos, found = [s.video for s in answered], [e for s in answered for e in s.candidates]
    there = [{key: value for key, value in entry.items() if key != "frame_scores"} for entry in found]
    visible = [e for s in answered for e in all_visible(s)]
    return {
        "frame AP50 of all candidates": score(split, videos, found)["frame_AP50"],
        "frame AP50 of all candidates as visible objects": score(split, videos, there, visible)["frame_AP50"],
    }


def mask_overlap(one: Any, other: Any) -> float:
    if one is None or other is None:
        return 0.0
    a, b = rle.decode(one), rle.decode(other)
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def score(split: DataSplit, videos: list[Video], entries: Entries, truth: Entries | None = None) -> dict[str, Any]:
    """Scores of the given videos of a split; `truth`: other annotations than the file's."""
    annotations = split.annotations
    wanted = {video.id for video in videos}
    tracks = {k: v for k, v in annotations.tracks.items() if k in wanted}
    part = replace(annotations, videos=tuple(videos), tracks=tracks)
    if truth is not None:
        found = parse_predictions(Path("truth"), truth, part)
        part = replace(part, tracks={video.id: found.get(video.id, ()) for video in videos})
    summary = evaluation(part, parse_predictions(Path("ours"), entries, part), "fixed").summary()
    return {key: summary[key] for key in COLUMNS.values()}


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n{'':32}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:32}" + "".join(f"{'-' if row[key] is None else row[key]:>11}" for key in COLUMNS.values()))
    sys.stdout.flush()


# --- does it listen? --------------------------------------------------------------------------------------------------


class Ears:
    """Sounds to put in place of a video's own."""

    def __init__(self, assets: Path, split: str) -> None:
        self.protocol = Protocol.load()
        self.library = AssetLibrary(assets, self.protocol, split)

    def tone(self, seconds: int, rng: np.random.Generator) -> Tensor:
        """Room tone alone."""
        return torch.from_numpy(room_tone(seconds * RATE, self.protocol, rng)).view(seconds, RATE)

    def absent(self, seconds: int, present: set[str], rng: np.random.Generator) -> tuple[Tensor, str]:
        """Room tone and the sound of one class that is not in the picture."""
        name = str(rng.choice([c for c in self.library.classes if c not in present]))
        level = gain(rng.uniform(*self.protocol.object_dbfs))
        voice = torch.from_numpy(level * fill(self.library.sound(name, rng), seconds * RATE, rng))
        return (self.tone(seconds, rng) + voice.view(seconds, RATE)).clamp(-1, 1), name


def answer(model: AVISM, deaf: AVISM | None, split: DataSplit, video: Video, ears: Ears | None) -> Answered:
    seen = see(model, split, video)

    def say(seconds: Tensor | None = None, of: AVISM = model) -> Entries:
        return predict_video(of, split, video, seconds).to_aviseg(video.id)

    other = None
    if ears is not None:
        rng = np.random.default_rng([7, video.id])
        present = {split.annotations.categories[track.category_id] for track in seen.truth}
        quiet = predict_video(model, split, video, ears.tone(video.length, rng))
        foreign = predict_video(model, split, video, ears.absent(video.length, present, rng)[0])
        other = OtherSounds(
            quiet=frames_with_a_mask(quiet),
            foreign=frames_with_a_mask(foreign),
            swapped=foreign.to_aviseg(video.id),
            earlier={offset: say(earlier(split, video, offset)) for offset in (0.25, 0.5, 1.0)},
        )
    silent = [] if deaf is None else say(of=deaf)
    candidates = with_postprocess(model, candidates_of(model), lambda: predict_video(model, split, video))
    return Answered(
        seen.video, seen.truth, seen.found, seen.overlap,
        ours=say(), candidates=candidates.to_aviseg(video.id), deaf=silent, other=other,
    )  # fmt: skip


def frames_with_a_mask(result: ClipResult) -> int:
    return sum(bool(result.to_binary(t).any()) for t in range(result.frames))


@contextmanager
def looking_once(model: AVISM) -> Iterator[None]:
    """What a model sees in pictures is kept while the block lasts: they are shown again and again, to other sounds."""
    backbone, decoder = model.backbone, model.pixel_decoder
    model.backbone, model.pixel_decoder = nn.Identity(), Memory(backbone, decoder)  # type: ignore[assignment]
    try:
        yield
    finally:
        model.backbone, model.pixel_decoder = backbone, decoder


class Memory(nn.Module):
    """Pictures to pixel features, by what the pictures hold."""

    def __init__(self, backbone: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.known: dict[bytes, Any] = {}

    def forward(self, images: Tensor) -> Any:
        key = hashlib.blake2b(images.numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = self.decoder(self.backbone(images))
        return self.known[key]


def listening(split: DataSplit, answered: list[Answered]) -> dict[str, Any]:
    videos, frames = [s.video for s in answered], sum(s.video.length for s in answered)
    others = [s.other for s in answered if s.other is not None]
    quiet, foreign = sum(o.quiet for o in others), sum(o.foreign for o in others)
    found = {
        "masks on frames with room tone only, %": round(100 * quiet / frames, 2),
        "masks on frames with an absent class's sound only, %": round(100 * foreign / frames, 2),
        "FSLA with an absent class's sound": score(split, videos, [e for o in others for e in o.swapped])["FA"],
        f"FSLA of the same {len(videos)} videos with their own sound": score(
            split, videos, [e for s in answered for e in s.ours]
        )["FA"],
    }
    for offset in others[0].earlier:
        truth = [e for s in answered for e in second_before(s)] if offset == 1.0 else None
        answers = [e for o in others for e in o.earlier[offset]]
        found[f"FSLA with the sound {offset:g} s earlier"] = score(split, videos, answers, truth)["FA"]
    return found


def earlier(split: DataSplit, video: Video, offset: float) -> Tensor:
    """The second of sound that ends `offset` seconds before each frame's own second ends; silence before the start."""
    wave = split.seconds(video, list(range(video.length))).flatten()
    shift = round(offset * RATE)
    return torch.cat([torch.zeros(shift), wave[: len(wave) - shift]]).view(video.length, RATE)


def second_before(seen: Seen) -> Entries:
    """The truth of what is heard in the second before each frame, outlined where it is seen in the frame."""
    entries = []
    for track in seen.truth:
        shown = [t > 0 and sounds(track, t - 1) for t in range(seen.video.length)]
        entry = truth_entry(seen, track, shown)
        if any(mask is not None for mask in entry["segmentations"]):
            entries.append(entry)
    return entries


def pairs(model: AVISM, split: DataSplit, seen: Sequence[Seen]) -> dict[str, Any]:
    """Of seconds in which one of two objects of one class sounds: is it the one that we believe, and show?

    Of all such seconds, and of those in which we outline both: the others say what is seen rather than what is heard.
    """
    kinds = {entry["id"]: entry.get("pair", "") for entry in read_json(split.annotations.path)["videos"]}
    found: dict[str, Any] = {}
    for kind in ("cued", "uncued"):
        verdicts: list[tuple[bool, bool, bool]] = []
        """Of each second: the right one is higher, it alone is shown, both are outlined."""
        for s in (s for s in seen if kinds[s.video.id] == kind):
            by_class: dict[int, list[int]] = {}
            for g, track in enumerate(s.truth):
                by_class.setdefault(track.category_id, []).append(g)
            for members in (m for m in by_class.values() if len(m) == 2):
                for t in range(s.video.length):
                    heard = [g for g in members if sounds(s.truth[g], t)]
                    if len(heard) != 1 or any(s.truth[g].visible[t] is None for g in members):  # type: ignore[index]
                        continue
                    right, wrong = heard[0], next(g for g in members if g != heard[0])
                    chances = [chance(s, g, t) for g in (right, wrong)]
                    shown = [c > model.config.postprocess.presence_threshold for c in chances]
                    outlined = all((s.overlap[t, g] >= RIGHT_MASK).any() for g in members)
                    verdicts.append((chances[0] > chances[1], shown == [True, False], outlined))
        for name, own in ((f"{kind} pairs", verdicts), (f"{kind} pairs, both outlined", [v for v in verdicts if v[2]])):
            if own:
                found[f"{name}, seconds"] = len(own)
                found[f"{name}, the right one higher, %"] = round(100 * sum(v[0] for v in own) / len(own), 1)
                found[f"{name}, exactly the right one shown, %"] = round(100 * sum(v[1] for v in own) / len(own), 1)
    return found


def chance(seen: Seen, g: int, t: int) -> float:
    """Chance of sounding of the likeliest of our tracks that outlines the object in the frame; 0 without one."""
    assert seen.found.presence is not None
    tracks = np.flatnonzero(seen.overlap[t, g] >= RIGHT_MASK)
    return max((float(seen.found.presence[i, t]) for i in tracks), default=0.0)


# --- thresholds -------------------------------------------------------------------------------------------------------


def sweep(model: AVISM, split: DataSplit, seen: list[Seen]) -> None:
    """FSLA for each pair of thresholds, and all scores of the best."""
    videos = [s.video for s in seen]
    rows = {}
    for wanted in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        for presence in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6):
            config = replace(model.config.postprocess, score_threshold=wanted, presence_threshold=presence)
            rows[wanted, presence] = score(split, videos, [e for s in seen for e in gated(s, config)])
        line = (f"{p:g}: {row['FA']}" for (w, p), row in rows.items() if w == wanted)
        print(f"score {wanted:g}, presence " + ", ".join(line), flush=True)
    best = max(rows, key=lambda key: rows[key]["FA"])
    print(f"best at {best}: " + ", ".join(f"{name} {rows[best][key]}" for name, key in COLUMNS.items()), flush=True)


if __name__ == "__main__":
    main()
