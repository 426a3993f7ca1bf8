"""Training clips from a data set on disk, drawn and changed as the official loader does it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avis_stream.config import AugmentConfig, AVISMConfig
from avis_stream.data.annotations import Track, Video
from avis_stream.data.dataset import DataSplit, masks_of
from avis_stream.errors import DataError
from avis_stream.train.augment import Geometry, apply_geometry, draw_frames, draw_geometry
from avis_stream.train.batch import ClipSample
from avis_stream.train.sound_augment import change_seconds


class DatasetClips:
    """Clips of the videos of a split, each epoch in another order; videos without annotations are left out."""

    def __init__(self, split: DataSplit, model: AVISMConfig, *, frames: int, config: AugmentConfig, seed: int) -> None:
        """Opens nothing but the first video's stored features, if the model is to learn from those.

        Args:
            split: The data.
            model: What learns: its classes, and whether it hears for itself or takes the split's stored features.
            frames: In a clip.
            config: Sampling and augmentation.
            seed: Of the whole series.
        Raises:
            DataError: No video has an annotation; or the model has no sound encoder and there are no features for it.
        """
        self._split, self._frames, self._config, self._seed = split, frames, config, seed
        self._audio, classes = model.audio, model.classes
        names = split.annotations.categories
        self._class_of = {number: classes.index(name) for number, name in names.items() if name in classes}
        self._nothing = len(classes)
        self._videos = [v for v in split.annotations.videos if split.annotations.tracks[v.id]]
        if not self._videos:
            raise DataError(f"{split.annotations.path}: no video has an annotation to learn from")
        self._features(self._videos[0])

    def clip(self, number: int) -> ClipSample:
        """Clip `number` of the series: a video of this epoch's order, a few of its frames, one geometry."""
        epoch, place = divmod(number, len(self._videos))
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._videos))
        video = self._videos[order[place]]
        rng = np.random.default_rng([self._seed, 1, number])
        frames = draw_frames(video.length, self._frames, self._config, rng)
        tracks, visible = self._tracks(video)
        images = torch.stack([self._split.image(video, t) for t in frames])
        masks = [masks_of(track, video, frames, visible=visible) for track in tracks]
        heard = [[track.segmentations[t] is not None for t in frames] for track in tracks]
        sounding = torch.tensor(heard, dtype=torch.bool)  # of none at all, too
        geometry = draw_geometry(video.height, video.width, len(frames), self._config, rng)
        previous = self._previous(video, frames, geometry)
        together = torch.stack(masks) if masks else _no_masks(images)
        images, together = apply_geometry(images, together, geometry, self._config)
        labels = torch.tensor([self._class_of[t.category_id] for t in tracks], dtype=torch.int64)
        if self._config.silent_first_frame_has_no_class and len(labels):
            labels[~together[:, 0].flatten(1).any(dim=1)] = self._nothing
        features = self._features(video)
        seconds, valid = torch.zeros(len(frames), 16_000), None
        if features is None:
            seconds, valid = self._seconds(video, frames, rng)
        return ClipSample(
            images=images.contiguous(),
            seconds=seconds,
            labels=labels,
            masks=together.contiguous(),
            name=f"{video.name} frames {frames}",
            features=None if features is None else features[frames],
            sounding=sounding.view(len(tracks), len(frames)) if visible else None,
            previous=previous,
            valid_samples=valid,
        )

    def _features(self, video: Video) -> Tensor | None:
        """Stored features [T, A], for a model without a sound encoder; None: the model listens."""
        if self._audio.encoder != "none":
            return None
        features = self._split.features(video)
        if features is None:
            raise DataError(
                f"{video.name} has no stored features (FEATAudios), and this model no sound encoder to make its own: "
                "add them, or give the encoder's weights (--audio-weights)"
            )
        if features.shape[1] != self._audio.feature_dim:
            raise DataError(
                f"{video.name} has stored features of {features.shape[1]} numbers a second, but the model takes "
                f"{self._audio.feature_dim}: they are of another encoder"
            )
        return features

    def _tracks(self, video: Video) -> tuple[list[Track], bool]:
        """The objects of a video, and whether their masks are known in silence too: of all of them, or of none."""
        tracks = self._split.annotations.tracks[video.id]
        visible = all(track.visible is not None for track in tracks)
        if visible:
            tracks += self._split.annotations.silent.get(video.id, ())
        return [t for t in tracks if not t.crowd and t.category_id in self._class_of], visible

    def _seconds(self, video: Video, frames: list[int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What is heard, changed as configured; what is mixed in is as old in its video as the frames in theirs.

        And how much of each second its video has.
        """
        config, other = self._config.sound, None
        if config.mix_share > 0:
            beside = self._videos[rng.integers(len(self._videos))]
            other = self._split.seconds(beside, [t % beside.length for t in frames]).numpy()
        seconds, valid = self._split.sound(video, frames)
        return torch.from_numpy(change_seconds(seconds.numpy(), config, rng, other)), valid

    def _previous(self, video: Video, frames: list[int], geometry: Geometry) -> Tensor | None:
        """The pictures 100 ms earlier, changed like their frames; None if any of them is missing."""
        earlier = [self._split.previous(video, t) for t in frames]
        there = [picture for picture in earlier if picture is not None]
        if len(there) < len(frames):
            return None
        images = torch.stack(there)
        return apply_geometry(images, _no_masks(images), geometry, self._config)[0].contiguous()


def _no_masks(images: Tensor) -> Tensor:
    return torch.zeros((0, len(images), *images.shape[-2:]), dtype=torch.bool)
