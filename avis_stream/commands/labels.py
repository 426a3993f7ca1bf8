"""`avis-stream import` and `labels`: other tools' labels become a data set, and answers go where they are corrected."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from scipy.io import wavfile
from torch import Tensor

from avis_stream.commands.progress import progress
from avis_stream.config import AVISEG_CLASSES
from avis_stream.data.annotations import Track, Video, read_predictions
from avis_stream.data.aviseg import previous_file
from avis_stream.data.dataset import open_split, set_categories
from avis_stream.data.images import read_image
from avis_stream.data.labels.coco import read_coco, read_ytvis, ytvis_document
from avis_stream.data.labels.cvat import cvat_document, read_cvat
from avis_stream.data.labels.isat import read_isat, write_isat
from avis_stream.data.labels.video import LabelledObject, LabelledVideo, class_names
from avis_stream.data.rle import Rle, as_rle
from avis_stream.errors import AvisStreamError, DataError
from avis_stream.files import atomic_path
from avis_stream.sources.file import sound_track

logger = logging.getLogger(__name__)

IMPORTS = ("coco", "ytvis", "isat", "cvat")
EXPORTS = ("ytvis", "isat", "cvat")
_RECORDINGS = (".wav", ".flac", ".ogg", ".m4a", ".mp3", ".mp4", ".mkv", ".webm", ".mov", ".avi")


def import_labels(
    kind: str, source: Path, out: Path, *, split: str, images: Path | None, audio: Path | None, force: bool
) -> str:
    """Makes a data set in AVISeg's layout of labels that another tool wrote; returns a line for people.

    Args:
        kind: One of `IMPORTS`.
        source: The tool's file, or its folder.
        out: Folder of the set; several splits may share it.
        split: E.g. `train`.
        images: Where the images lie; None: beside the labels.
        audio: Folder of recordings named like the videos, of any kind that FFmpeg reads; None: there is no sound.
        force: Replace a split that is there.
    Raises:
        DataError: Labels are broken, or images missing or broken; what was there is left.
        AvisStreamError: The split is there already.
    """
    target = out / f"{split}.json"
    if target.exists() and not force:
        raise AvisStreamError(f"{target} is there already; give another folder, or --force to replace it")
    videos, root = _read(kind, source, images)
    if not videos:
        raise DataError(f"{source}: no video in it")
    twice = [name for name, count in Counter(video.name for video in videos).items() if count > 1]
    if twice:
        raise DataError(f"{source}: several videos are called {twice[0]!r}; rename all but one")
    _require_images(videos, root)
    categories = _categories(out, split, class_names(videos))
    silent, gone = 0, [target]  # first: its files are replaced, and what ends in between must not look like a set
    with ExitStack() as made:  # at its end all of them take their places: what fails before leaves what is there
        for video in progress(videos, len(videos), split, "video"):
            gone += _copy_images(video, root, out / split, made)
            sound = out / split / "WAVAudios" / f"{video.name}.wav"
            if not _copy_sound(video.name, audio, sound, made):
                silent += 1
                gone.append(sound)
        for path in gone:
            path.unlink(missing_ok=True)
    kept = [replace(v, images=tuple(f"{v.name}/{t}.jpg" for t in range(len(v.images)))) for v in videos]
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(ytvis_document(kept, categories)) + "\n", encoding="utf-8")
    objects = [own.class_name for video in videos for own in video.objects]
    without = f", {silent} of them without sound" if silent else ""
    return f"{len(videos)} videos{without}, {len(objects)} objects of {len(set(objects))} classes: {target}"


def _categories(out: Path, split: str, names: Sequence[str]) -> dict[int, str]:
    """Classes by id: those of the set's other splits as they are there, then new ones.

    Raises:
        DataError: The other splits contradict each other.
    """
    known, problems = set_categories(out, without=split)
    if problems:
        raise DataError(f"{problems[0]}; import these splits anew, or give another folder")
    if not known:
        return dict(enumerate(AVISEG_CLASSES if set(names) <= set(AVISEG_CLASSES) else names, 1))
    new = (name for name in names if name not in known.values())
    return known | dict(enumerate(new, max(known) + 1))


def _read(kind: str, source: Path, images: Path | None) -> tuple[list[LabelledVideo], Path]:
    """The videos, and the folder that their image files are relative to."""
    if kind == "isat":
        return list(read_isat(source, images)), images or source
    if kind == "cvat":
        return list(read_cvat(source, images)), images or (source if source.is_dir() else source.parent) / "images"
    videos = list((read_ytvis if kind == "ytvis" else read_coco)(source))
    if images is None and videos:  # beside the file, or where YTVIS and AVISeg keep them
        places = [source.parent, source.parent / "JPEGImages", source.parent / source.stem / "JPEGImages"]
        images = next((place for place in places if (place / videos[0].images[0]).is_file()), None)
    return videos, images or source.parent


def _require_images(videos: Sequence[LabelledVideo], root: Path) -> None:
    for video in videos:
        missing = next((root / name for name in video.images if not (root / name).is_file()), None)
        if missing is not None:
            raise DataError(f"{missing}: no such image of {video.name}; say where they are with --images")


def _copy_images(video: LabelledVideo, root: Path, split: Path, made: ExitStack) -> list[Path]:
    """Those of its frames, and those 100 ms earlier where they lie beside them as in AVISeg's layout.

    Returns:
        Where there are none of the latter, which may be there of a set that is replaced.
    """
    without = []
    for t, name in enumerate(video.images):
        image, target = root / name, split / "PrevImages" / video.name / f"{t}.jpg"
        picture = read_image(image)
        if not _fits(picture, video):
            raise DataError(
                f"{image} is {_size(picture)}, its labels say {video.width}x{video.height}; correct whichever is wrong"
            )
        _copy_image(picture, image, split / "JPEGImages" / video.name / f"{t}.jpg", made)
        pictures = image.absolute().parent.parent
        earlier = previous_file(pictures.parent, image) if pictures.name == "JPEGImages" else None
        cue = None if earlier is None else _cue(earlier, video)
        if earlier is None or cue is None:
            without.append(target)
        else:
            _copy_image(cue, earlier, target, made)
    return without


def _cue(earlier: Path, video: LabelledVideo) -> Tensor | None:
    """The picture 100 ms before a frame; None, with a warning, where it is of no use: a frame does without."""
    try:
        picture = read_image(earlier)
    except DataError as error:
        logger.warning("%s; its frame is imported without it, and has no motion cue", error)
        return None
    if not _fits(picture, video):
        logger.warning(
            "%s is %s, the frame 100 ms after it %dx%d: that is imported without it, and has no motion cue",
            earlier, _size(picture), video.width, video.height,
        )  # fmt: skip
        return None
    return picture


def _fits(picture: Tensor, video: LabelledVideo) -> bool:
    return picture.shape[1:] == (video.height, video.width)


def _size(picture: Tensor) -> str:
    height, width = picture.shape[1:]
    return f"{width}x{height}"


def _copy_image(picture: Tensor, source: Path, target: Path, made: ExitStack) -> None:
    """Writes a picture as everybody will see it: as it was read of its file, upright and in 8 bits."""
    temporary = made.enter_context(atomic_path(target))
    if _is_plain_jpeg(source):
        temporary.write_bytes(source.read_bytes())
    else:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, quality=95)


def _is_plain_jpeg(path: Path) -> bool:
    """Whether a picture may be copied as it is: one that a note in it turns is turned for good instead."""
    with Image.open(path) as picture:
        return picture.format == "JPEG" and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _copy_sound(name: str, audio: Path | None, target: Path, made: ExitStack) -> bool:
    """Writes a video's sound as WAV; False if there is none."""
    files = () if audio is None else (path for path in sorted(audio.glob(f"{escape(name)}.*")) if path.is_file())
    kinds = {path.suffix.lower(): path for path in files if path.stem == name}  # recorders write .WAV
    source = next((kinds[suffix] for suffix in _RECORDINGS if suffix in kinds), None)
    if source is None:
        return False
    track = sound_track(source)
    samples = np.concatenate([block.samples for block in track.blocks()], axis=1).T
    temporary = made.enter_context(atomic_path(target))
    wavfile.write(temporary, track.rate, np.round(samples * 32767).astype(np.int16))
    return True


def export_labels(kind: str, data: Path, split: str, out: Path, *, predictions: Path | None, force: bool) -> str:
    """Writes a split's truth, or answers for it, as a labelling tool wants it; returns a line for people.

    Args:
        kind: One of `EXPORTS`: one JSON for all (`ytvis`), a folder of images with a JSON each for a video (`isat`), an
            XML and a folder of images for a video (`cvat`).
        data: Folder of the set.
        split: Its name.
        out: Folder to write to.
        predictions: Answers; None: the truth.
        force: Write into a folder that holds files.
    Raises:
        DataError: A file is missing or broken.
        AvisStreamError: `out` holds files.
    """
    if out.is_dir() and any(out.iterdir()) and not force:
        raise AvisStreamError(f"{out} holds files already; give another folder, or --force to write into it")
    opened = open_split(data, split)
    truth, pictures = opened.annotations, opened.folder / "JPEGImages"
    tracks = truth.tracks if predictions is None else read_predictions(predictions, truth)
    videos = [
        LabelledVideo(
            video.name,
            video.width,
            video.height,
            tuple(path.relative_to(pictures).as_posix() for path in opened.files(video).images),
            tuple(_object(t, truth.categories, video) for t in tracks.get(video.id, ())),
            tuple(_object(t, truth.categories, video) for t in truth.silent.get(video.id, ()) if predictions is None),
        )
        for video in truth.videos
    ]
    if kind == "ytvis":
        with atomic_path(out / f"{split}.json") as temporary:
            temporary.write_text(json.dumps(ytvis_document(videos, truth.categories)) + "\n", encoding="utf-8")
        return f"{len(videos)} videos: {out / split}.json"
    _say_what_is_lost(kind, videos)
    for video in progress(videos, len(videos), split, "video"):
        folder = out / video.name if kind == "isat" else out / "images" / video.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in video.images:
            with atomic_path(folder / Path(name).name) as temporary:
                temporary.write_bytes((pictures / name).read_bytes())
        if kind == "isat":
            write_isat(folder, video)
        else:
            with atomic_path(out / f"{video.name}.xml") as temporary:
                temporary.write_text(cvat_document(video, list(truth.categories.values())), encoding="utf-8")
    return f"{len(videos)} videos: {out}"


def _say_what_is_lost(kind: str, videos: Sequence[LabelledVideo]) -> None:
    """Other tools know one mask a frame, and not whether its object sounds."""
    never = sum(len(video.silent) for video in videos)
    pausing = sum(bool((own.visible or {}).keys() - own.masks.keys()) for video in videos for own in video.objects)
    if never or pausing:
        logger.warning(
            "%s knows sounding objects alone: %d that never sound, and silent seconds of %d others, are left out; "
            "--to ytvis keeps them", kind, never, pausing,
        )  # fmt: skip


def _object(track: Track, categories: Mapping[int, str], video: Video) -> LabelledObject:
    def by_frame(stored: Sequence[Any]) -> dict[int, Rle]:
        return {t: as_rle(mask, video.height, video.width) for t, mask in enumerate(stored) if mask is not None}

    visible = None if track.visible is None else by_frame(track.visible)
    return LabelledObject(categories[track.category_id], by_frame(track.segmentations), track.crowd, visible)
