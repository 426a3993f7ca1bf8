"""CVAT's XML for videos (version 1.1): tracks with polygons, masks or boxes, each valid until the next of its track.

Source: CVAT's description of its XML format, https://docs.cvat.ai/docs/other/xml_format. A mask is given inside its
box, as run lengths row by row, nothing first. Boxes are not outlines and are refused. Frames are counted as in the film
that the task was made of: one that takes every 25th from 100 on has images 100, 125, 150. Whether an object stands for
many is not in the format: it is an attribute `iscrowd` of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import torch
from torch import Tensor

from avis_stream.data import rle
from avis_stream.data.aviseg import numbered_images
from avis_stream.data.labels.video import LabelledObject, LabelledVideo
from avis_stream.data.rle import Rle
from avis_stream.errors import DataError

_CROWD = "iscrowd"
_CROWD_ATTRIBUTE = {"name": _CROWD, "mutable": "False", "input_type": "checkbox", "default_value": "false"}


def read_cvat(path: Path, images: Path | None = None) -> Iterator[LabelledVideo]:
    """The video of an `annotations.xml`, or of each `.xml` in a folder.

    Args:
        path: File or folder.
        images: Where the images of the video lie; of several, in one folder each, named like the XML; None: `images`
            beside the XML.
    Raises:
        DataError: The file is broken, has boxes, names frames that its task does not have, or there are more or fewer
            images than those.
    """
    files = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .xml file in it; give CVAT's annotations.xml, or a folder of such files")
    for file in files:
        name = file.stem if file.stem != "annotations" else file.absolute().parent.name
        root = file.parent / "images" if images is None else images
        folder = root / name if (root / name).is_dir() else root
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the one with the video's images (--images)")
        yield _video(file, name, tuple(str(p.relative_to(root)) for p in numbered_images(folder)))


def _video(file: Path, name: str, images: tuple[str, ...]) -> LabelledVideo:
    try:
        root = Xml.parse(file).getroot()
    except (OSError, Xml.ParseError) as error:
        raise DataError(f"{file} cannot be read as XML ({error}); export it from CVAT again") from error
    size = root.find(".//original_size")
    if size is None:
        raise DataError(f"{file} has no original_size; export the task as `CVAT for video 1.1`")
    width, height = int(size.findtext("width", "0")), int(size.findtext("height", "0"))
    frames = _Frames.of(file, root, len(images))
    announced = root.findtext("./meta//size")
    if announced and int(announced) != len(images):
        raise DataError(
            f"{file}: its task has {announced} frames, there are {len(images)} images; give those (--images)"
        )
    objects = [_object(file, track, (width, height), frames) for track in root.iter("track")]
    classes = tuple(str(label.text) for label in root.findall("./meta//labels/label/name"))
    return LabelledVideo(name, width, height, images, tuple(o for o in objects if o.masks), classes=classes)


@dataclass(frozen=True, slots=True)
class _Frames:
    """Which frames of its film a task takes."""

    start: int
    step: int
    count: int

    @classmethod
    def of(cls, file: Path, root: Xml.Element, count: int) -> _Frames:
        said = f"start={root.findtext('./meta//start_frame') or 0} {root.findtext('./meta//frame_filter') or 'step=1'}"
        found = re.fullmatch(r"start=(\d+)\s+step\s*=\s*([1-9]\d*)\s*", said)
        if found is None:
            raise DataError(
                f"{file}: start_frame and frame_filter must be like start=0 step=25, got {said}; correct them"
            )
        return cls(int(found.group(1)), int(found.group(2)), count)

    def place(self, file: Path, where: str, frame: int) -> int:
        """Of a frame among the task's images."""
        place, beside = divmod(frame - self.start, self.step)
        if place < 0 or beside:
            raise DataError(
                f"{file}: {where} has frame {frame}, but its task takes {self.start}, {self.start + self.step}, ... "
                "(start_frame and frame_filter); export it from CVAT again"
            )
        if place >= self.count:
            raise DataError(f"{file}: {where} goes to frame {frame}, but there are {self.count} images (--images)")
        return place


def _object(file: Path, track: Xml.Element, size: tuple[int, int], frames: _Frames) -> LabelledObject:
    where = f"track {track.get('id')}"
    shapes = sorted(track, key=lambda shape: int(shape.get("frame", 0)))
    masks: dict[int, Rle] = {}
    at = [
        (frames.place(file, where, frame), list(group))
        for frame, group in groupby(shapes, key=lambda shape: int(shape.get("frame", 0)))
    ]
    for (frame, group), (following, _) in zip(at, [*at[1:], (frames.count, [])], strict=True):
        shown = [shape for shape in group if shape.get("outside") != "1"]
        if shown:
            parts = torch.stack([_mask(file, where, shape, size) for shape in shown])
            masks |= dict.fromkeys(range(frame, following), rle.encode(parts.any(dim=0)))
    said = {(a.text or "").strip().lower() for a in track.iter("attribute") if a.get("name") == _CROWD}
    return LabelledObject(str(track.get("label")), masks, crowd=bool(said & {"true", "1", "yes"}))


def _mask(file: Path, where: str, shape: Xml.Element, size: tuple[int, int]) -> Tensor:
    width, height = size
    if shape.tag == "polygon":
        points = [float(v) for point in shape.get("points", "").split(";") for v in point.split(",")]
        return rle.decode(rle.from_polygons([points], height, width))
    if shape.tag != "mask":
        raise DataError(f"{file}: {where} has a {shape.tag}; only polygons and masks outline an object: redraw it")
    left, top, w, h = (int(float(shape.get(side, 0))) for side in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    if sum(runs) != w * h or left < 0 or top < 0 or left + w > width or top + h > height:
        raise DataError(f"{file}: {where} has a mask that does not fit its box of {w}x{h} at {left},{top}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
    whole = np.zeros((height, width), bool)
    whole[top : top + h, left : left + w] = inside
    return torch.from_numpy(whole)


def cvat_document(video: LabelledVideo, classes: Sequence[str]) -> str:
    """A video as XML that CVAT imports: a track for each object, a mask for each of its frames."""
    root = Xml.Element("annotations")
    Xml.SubElement(root, "version").text = "1.1"
    task = Xml.SubElement(Xml.SubElement(root, "meta"), "task")
    for key, value in (("name", video.name), ("size", str(len(video.images))), ("mode", "interpolation")):
        Xml.SubElement(task, key).text = value
    labels = Xml.SubElement(task, "labels")
    for name in classes:
        label = Xml.SubElement(labels, "label")
        Xml.SubElement(label, "name").text = name
        if any(own.crowd for own in video.objects):
            attribute = Xml.SubElement(Xml.SubElement(label, "attributes"), "attribute")
            for key, value in _CROWD_ATTRIBUTE.items():
                Xml.SubElement(attribute, key).text = value
    original = Xml.SubElement(task, "original_size")
    Xml.SubElement(original, "width").text = str(video.width)
    Xml.SubElement(original, "height").text = str(video.height)
    for number, own in enumerate(video.objects):
        track = Xml.SubElement(root, "track", id=str(number), label=own.class_name, source="auto")
        last: Xml.Element | None = None
        for t in range(len(video.images)):
            mask = own.masks.get(t)
            if mask is not None and rle.area(mask):
                last = Xml.SubElement(track, "mask", _shape(t, mask))
            elif last is not None and last.get("outside") == "0":  # gone: said once, at the first frame without it
                last = Xml.SubElement(track, "mask", {**last.attrib, "frame": str(t), "outside": "1"})
        for shape in track if own.crowd else ():
            Xml.SubElement(shape, "attribute", name=_CROWD).text = "true"
    Xml.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _shape(t: int, mask: Rle) -> dict[str, str]:
    left, top, width, height = (int(side) for side in rle.box(mask))
    inside = rle.decode(mask).numpy()[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside])))
    runs = np.diff(np.concatenate([[0], edges, [len(inside)]]))
    return {
        "frame": str(t), "keyframe": "1", "outside": "0", "occluded": "0", "z_order": "0",
        "rle": ",".join(str(run) for run in runs), "left": str(left), "top": str(top),
        "width": str(width), "height": str(height),
    }  # fmt: skip
