#!/usr/bin/env python3
"""Fine-tunes a model to your own classes, from any weights: what fits is taken, the rest begins at random.

    python examples/fine_tune.py DATA WEIGHTS OUT bell,whistle

DATA holds train.json in AVISeg's layout. Made for reading; `avis-stream train --init` does the same and more.
"""

import sys
from dataclasses import replace
from pathlib import Path

from avis_stream.config import TrainConfig
from avis_stream.data.dataset import open_split
from avis_stream.presets import preset
from avis_stream.train.dataset_clips import DatasetClips
from avis_stream.train.loop import train
from avis_stream.weights.files import save_weights
from avis_stream.weights.initial import start_from
from avis_stream.weights.load import untrained_model


def main(data: str, weights: str, out: str, classes: str, schedule: TrainConfig | None = None) -> None:
    """Trains and writes OUT/weights.safetensors."""
    schedule = schedule or TrainConfig(steps=2_000, learning_rate=2e-4, gradient_clip=1.0)
    config = replace(preset("avism_mini"), classes=tuple(classes.split(",")))
    model = untrained_model(config)
    print(start_from(model, weights))
    split = open_split(data, "train", config.classes)
    clips = DatasetClips(split, config, frames=schedule.frames, config=schedule.augment, seed=0)
    train(model, clips, schedule, Path(out))
    save_weights(model.state_dict(), model.config, Path(out) / "weights.safetensors", half=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
