"""What the localizer alone finds in scenes that it has not seen: outlined, named, heard; by class and by size.

    python benchmarks/localizer_found.py --assets ASSETS [--split val] [--scenes 160] [--weights FILE] [--pairs cued]

One frame a scene, drawn by the frozen protocol from the pictures and sounds of the split; nothing is tracked, no mask
is gated. Where `benchmarks/mini_results.py` says how good the answers are, this says which part of the model to blame.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm

from avis_stream.models.avism import AVISM
from avis_stream.models.preprocess import network_size
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.protocol import Protocol
from avis_stream.train.batch import ClipSample, stack_images, stack_previous
from avis_stream.train.source import SynthClips
from avis_stream.weights import load

SCENES_AT_ONCE = 8
RIGHT_MASK = 0.5
FEWEST_PIXELS = 100
"""Of an object in the network's picture: less of it is not asked for."""


@dataclass(frozen=True)
class Asked:
    """One visible object, and what was made of it."""

    class_name: str
    area: float
    """Share of the picture."""
    outlined: bool
    """By any query."""
    shown: bool
    """By a query that gives it its class and passes the score threshold."""
    named: bool
    """By the best of the queries that outline it."""
    sounds: bool
    chance: float
    """That it sounds, by the same query."""
    query: int
    """Its number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--photographs", type=float, default=0.0, help="share of scenes that are real photographs")
    parser.add_argument("--weights", type=Path, help="default: those that come with the package")
    parser.add_argument("--pairs", choices=["cued", "uncued"], help="nothing but scenes with two objects of one class")
    options = parser.parse_args()
    model = load("avism_mini", options.weights)
    protocol = Protocol.load()
    if options.pairs is not None:
        protocol = replace(protocol, pair_share=1.0, pair_cued_share=float(options.pairs == "cued"))
    height, width = network_size(protocol.size[1], protocol.size[0], model.config.input)
    scenes = SynthClips(
        AssetLibrary(options.assets, protocol, options.split),
        protocol,
        frames=1,
        size=(width, height),
        seed=77,
        classes=model.classes,
        photograph_share=options.photographs,
    )
    asked, pairs, false = [], [], 0
    for first in tqdm(range(0, options.scenes, SCENES_AT_ONCE), desc=options.split):
        for found, wrong in answers(model, [scenes.clip(first + i) for i in range(SCENES_AT_ONCE)]):
            asked += found
            pairs += pairs_of(found)
            false += wrong
    show(asked, false / options.scenes, model.config.postprocess.score_threshold)
    show_pairs(pairs)


@torch.no_grad()
def answers(model: AVISM, samples: list[ClipSample]) -> Iterator[tuple[list[Asked], int]]:
    """For each scene its objects, and how many queries show what is not there."""
    images = stack_images(samples, model.config.input)
    previous = stack_previous(samples, model.config.input)
    tokens = model.localize(images, model.hear(torch.cat([s.seconds for s in samples])), previous)
    assert tokens.mask_embed is not None
    assert tokens.sounding is not None
    masks = torch.einsum("tnc,tchw->tnhw", tokens.mask_embed, tokens.clip_mask_features)
    masks = F.interpolate(masks, size=images.shape[-2:], mode="bilinear", align_corners=False) > 0
    score, label = tokens.logits.softmax(-1)[..., :-1].max(-1)
    shown = score > model.config.postprocess.score_threshold
    for t, sample in enumerate(samples):
        assert sample.sounding is not None
        height, width = sample.masks.shape[-2:]
        there = sample.masks[:, 0].sum((1, 2)) >= FEWEST_PIXELS
        overlap = iou(masks[t, :, :height, :width], sample.masks[there, 0])  # [N, G]
        right = label[t][:, None] == sample.labels[there][None]
        hits = (overlap > RIGHT_MASK) & right & shown[t][:, None]
        objects = []
        for g, (k, sounds) in enumerate(zip(sample.labels[there], sample.sounding[there, 0], strict=True)):
            best = int((overlap[:, g] * (overlap[:, g] > RIGHT_MASK) * score[t]).argmax())
            objects.append(
                Asked(
                    class_name=model.classes[int(k)],
                    area=float(sample.masks[there][g, 0].float().mean()),
                    outlined=bool((overlap[:, g] > RIGHT_MASK).any()),
                    shown=bool(hits[:, g].any()),
                    named=bool(right[best, g]),
                    sounds=bool(sounds),
                    chance=float(tokens.sounding[t, best]),
                    query=best,
                )
            )
        yield objects, int((shown[t] & ~hits.any(1)).sum())


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Overlaps [N, G] of masks bool [N, H, W] and [G, H, W]."""
    a, b = one.flatten(1).float(), other.flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both).clamp(min=1)


def ranking(loud: ArrayLike, quiet: ArrayLike) -> float:
    """Chance that of a sounding and a silent one the sounding one is believed more (area under the ROC curve)."""
    loud, quiet = np.asarray(loud, float), np.asarray(quiet, float)
    if not len(loud) or not len(quiet):
        return float("nan")
    ranks = rankdata(np.concatenate([loud, quiet]))[: len(loud)]
    return float((ranks.mean() - (len(loud) + 1) / 2) / len(quiet))


def pairs_of(found: list[Asked]) -> list[tuple[Asked, Asked]]:
    """Of the objects of a scene those two of a class of which one sounds, that one first."""
    classes = {a.class_name: [b for b in found if b.class_name == a.class_name] for a in found}
    return [
        (alike[0], alike[1]) if alike[0].sounds else (alike[1], alike[0])
        for alike in classes.values()
        if len(alike) == 2 and alike[0].sounds != alike[1].sounds
    ]


def show_pairs(pairs: list[tuple[Asked, Asked]]) -> None:
    both = [pair for pair in pairs if pair[0].outlined and pair[1].outlined]
    apart = [(one, other) for one, other in both if one.query != other.query]
    right = [one.chance > other.chance for one, other in apart]
    if apart:
        print(
            f"{len(pairs)} pairs of a class of which one sounds: both outlined {len(both) / len(pairs):.2f}, by two "
            f"queries {len(apart) / len(pairs):.2f}; of these the right one is believed more {np.mean(right):.2f}"
        )


def show(asked: list[Asked], false: float, threshold: float) -> None:
    def line(name: str, part: list[Asked]) -> str:
        outlined = [a for a in part if a.outlined]
        who = ranking([a.chance for a in outlined if a.sounds], [a.chance for a in outlined if not a.sounds])
        shares = [np.mean([a.outlined for a in part]), np.mean([a.shown for a in part])]
        shares += [np.mean([a.named for a in outlined]) if outlined else np.nan, who]
        return f"{name:>16}{len(part):>9}" + "".join(f"{share:>11.2f}" for share in shares)

    print(f"{'':16}{'objects':>9}{'outlined':>11}{'shown':>11}{'class':>11}{'AUC':>11}")
    print(line("all", asked))
    for name in sorted({a.class_name for a in asked}):
        print(line(name, [a for a in asked if a.class_name == name]))
    by_area = sorted(asked, key=lambda a: a.area)
    for part in np.array_split(np.arange(len(asked)), 4):
        largest = by_area[part[-1]].area if len(part) else 0.0
        print(line(f"area to {100 * largest:.1f} %", [by_area[i] for i in part]))
    print(
        f"outlined: overlap above {RIGHT_MASK:g}, by any query; shown: also its class is, scored above {threshold:g};\n"
        f"class: right, of those outlined; AUC: of who sounds. Shown and not there, in each picture: {false:.2f}"
    )


if __name__ == "__main__":
    main()
