"""A folder of assets that are as simple as they may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.io import wavfile

from avis_stream.synth.soundscape import RATE


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the assumed shape: blobs, tones, places, and two labelled photographs a split or so."""
    folder = tmp_path_factory.mktemp("assets")
    rng = np.random.default_rng(0)
    for class_name in ("dog", "cat", "tuba"):
        (folder / "sprites" / class_name).mkdir(parents=True)
        (folder / "sounds" / class_name).mkdir(parents=True)
        for i in range(30):
            canvas = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
            ImageDraw.Draw(canvas).ellipse((5, 5, 75, 55), fill=(*rng.integers(0, 255, 3).tolist(), 255))
            canvas.save(folder / "sprites" / class_name / f"pet_{class_name}_{i}.png")
            tone = np.sin(np.arange(RATE) * (0.1 + 0.01 * i)) * 20_000
            wavfile.write(folder / "sounds" / class_name / f"rec_{i}.wav", RATE, tone.astype(np.int16))
    Image.new("RGBA", (80, 60), (0, 0, 0, 0)).save(folder / "sprites" / "dog" / "web_empty.png")
    for kind in ("backgrounds", "pet_images", "pet_labels"):
        (folder / kind).mkdir()
    (folder / "sounds_other" / "rain").mkdir(parents=True)
    for i in range(30):
        picture = Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8))
        picture.save(folder / "backgrounds" / f"place_{i}.jpg")
        picture.save(folder / "pet_images" / f"dog_{i}.jpg")
        (folder / "pet_labels" / f"dog_{i}.txt").write_text("18 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n99 0 0 1 1 0 1\n")
        noise = rng.integers(-9000, 9000, RATE).astype(np.int16)
        wavfile.write(folder / "sounds_other" / "rain" / f"rain_{i}.wav", RATE, noise)
    return folder
