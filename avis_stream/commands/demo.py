"""`avis-stream demo`: the main job on the clip that ships with the package."""

from __future__ import annotations

from pathlib import Path

from avis_stream.commands.run import RunOptions, run_offline
from avis_stream.models.clip import ClipResult
from avis_stream.sources.file import open_clip
from avis_stream.weights.load import load

_MODEL = "avism_mini"
_CLIP = Path(__file__).parents[1] / "assets" / "demo" / "demo.mp4"


def run_demo(folder: Path, *, video: bool = True) -> ClipResult:
    """Segments the demo clip and writes all results into `folder`, an existing, empty one; the overlay if `video`."""
    model = load(_MODEL)
    clip = open_clip(_CLIP, previous=model.wants_previous)
    return run_offline(model, clip, folder, RunOptions(video=video, truth=_CLIP.with_name("truth.json")))
