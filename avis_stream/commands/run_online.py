"""`avis-stream run --mode online`: a recording as a stream, in memory that does not grow with its length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avis_stream.commands.progress import progress
from avis_stream.commands.run import RunOptions, circumstances, result_writers
from avis_stream.errors import MediaError
from avis_stream.models.avism import AVISM
from avis_stream.online import OnlineConfig, OnlineSegmenter
from avis_stream.sources.clip import Clip
from avis_stream.stages import StageTimer
from avis_stream.writers.base import Writers
from avis_stream.writers.predictions import PredictionsWriter
from avis_stream.writers.summary import SummaryWriter


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a stream turned out to hold."""

    sounding: int
    """Identities that sounded; others may have been known without ever being heard."""
    frames: int


def run_online(
    model: AVISM, clip: Clip, folder: Path, options: RunOptions, config: OnlineConfig | None = None
) -> StreamSummary:
    """Segments a recording frame by frame, as if it were live, and writes all results into `folder`.

    Every frame is written with its own result, so settings whose results come late are refused.

    Args:
        model: Prepared for inference.
        clip: The recording; it is read once.
        folder: An existing, empty folder.
        options: What to write; `memory_bytes` has no meaning here.
        config: None: the settings for live use, at the clip's rate.
    Returns:
        What there was; `clip.broken` says where the recording broke off, if it did.
    Raises:
        ConfigError: `alignment="official"` or `refine_delay`.
        MediaError: The recording has no frame.
    """
    timer = StageTimer()
    config = config or OnlineConfig.of(model.config, hop_seconds=1 / clip.fps)
    config.require_at_once("a recording as a stream")
    online = OnlineSegmenter(model, config)
    state = online.init_state()
    frames, size = 0, state.nbytes
    sounding: set[int] = set()
    summary = SummaryWriter(folder / "summary.json", model.classes, fps=clip.fps)
    predictions = PredictionsWriter(folder / "predictions.json")
    with Writers([*result_writers(model, clip, folder, options), predictions, summary]) as writers:
        for pair in progress(clip, clip.expected_frames, "frames"):
            with timer("step"):
                result, state = online.step_pair(pair, state)
            with timer("write"):
                writers.write(pair, result)
            sounding.update(result.track_id[result.sounding].tolist())
            frames += 1
        if not frames:
            raise MediaError("a clip must have at least one frame, got none")
        summary.add(mode="online", state_bytes=size, broken=clip.broken, **circumstances(model, timer))
    return StreamSummary(sounding=len(sounding), frames=frames)
