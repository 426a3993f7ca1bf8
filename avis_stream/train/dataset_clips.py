"""Training clips from a data set on disk, drawn and changed as the official loader does it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from avis_stream.audio.resample import mono_seconds
from avis_stream.config import AugmentConfig
from avis_stream.data.annotations import Video
from avis_stream.data.dataset import DataSplit, masks_of
from avis_stream.errors import DataError
from avis_stream.train.augment import apply_geometry, draw_frames, draw_geometry
from avis_stream.train.batch import ClipSample


class DatasetClips:
    """Clips of the videos of a split, each epoch in another order; videos without annotations are left out."""

    def __init__(
        self, split: DataSplit, classes: tuple[str, ...], *, frames: int, config: AugmentConfig, seed: int
    ) -> None:
        """Opens nothing yet.

        Args:
            split: The data.
            classes: The model's.
            frames: In a clip.
            config: Sampling and augmentation.
            seed: Of the whole series.
        Raises:
            DataError: No video has an annotation.
        """
        self._split, self._frames, self._config, self._seed = split, frames, config, seed
        names = split.annotations.categories
        self._class_of = {number: classes.index(name) for number, name in names.items() if name in classes}
        self._nothing = len(classes)
        self._videos = [v for v in split.annotations.videos if split.annotations.tracks[v.id]]
        if not self._videos:
            raise DataError(f"{split.annotations.path}: no video has an annotation to learn from")

    def clip(self, number: int) -> ClipSample:
        """Clip `number` of the series: a video of this epoch's order, a few of its frames, one geometry."""
        epoch, place = divmod(number, len(self._videos))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._videos))
        video = self._videos[order[place]]
        rng = np.random.default_rng([self._seed, 1, number])
        frames = draw_frames(video.length, self._frames, self._config, rng)
        tracks = [
            t for t in self._split.annotations.tracks[video.id] if not t.crowd and t.category_id in self._class_of
        ]
        images = torch.stack([self._split.image(video, t) for t in frames])
        masks = torch.stack([masks_of(track, video, frames) for track in tracks]) if tracks else self._no_masks(images)
        geometry = draw_geometry(video.height, video.width, len(frames), self._config, rng)
        images, masks = apply_geometry(images, masks, geometry, self._config)
        labels = torch.tensor([self._class_of[t.category_id] for t in tracks], dtype=torch.int64)
        if self._config.silent_first_frame_has_no_class and len(labels):
            labels[~masks[:, 0].flatten(1).any(dim=1)] = self._nothing
        features = self._split.features(video)
        return ClipSample(
            images=images.contiguous(),
            seconds=self._seconds(video, frames) if features is None else torch.zeros(len(frames), 16_000),
            labels=labels,
            masks=masks.contiguous(),
            name=f"{video.name} frames {frames}",
            features=None if features is None else features[frames],
        )

    def _seconds(self, video: Video, frames: list[int]) -> Tensor:
        """The second of sound of each frame; silence where the video has none."""
        wav = self._split.files(video).wav
        if wav is None:
            return torch.zeros(len(frames), 16_000)
        try:
            rate, samples = wavfile.read(wav, mmap=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{wav} cannot be read as WAV ({error}); convert it to 16-bit PCM") from error
        parts = [np.asarray(samples[t * rate : (t + 1) * rate]) for t in frames]
        scale = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max) + 1.0
        waves = [torch.from_numpy(part.astype(np.float32) / scale) for part in parts]
        return torch.cat([mono_seconds(w.T if w.dim() == 2 else w, rate, 1)[0] for w in waves])

    @staticmethod
    def _no_masks(images: Tensor) -> Tensor:
        return torch.zeros((0, len(images), *images.shape[-2:]), dtype=torch.bool)
