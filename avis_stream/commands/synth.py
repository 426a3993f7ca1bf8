"""`avis-stream synth`: makes a data set in AVISeg's layout whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avis_stream.commands.progress import progress
from avis_stream.config import AVISEG_CLASSES
from avis_stream.errors import AvisStreamError
from avis_stream.synth.assets import AssetLibrary
from avis_stream.synth.library import Library
from avis_stream.synth.procedural import ProceduralLibrary
from avis_stream.synth.protocol import DEFAULT, Protocol
from avis_stream.synth.scene import Scene, make_scene
from avis_stream.synth.write import write_film, write_set

_SEEDS = {"train": 1_000_000, "val": 2_000_000, "test": 3_000_000}
"""Added to the seed, so that no two splits of one seed share a scene even where they share parts."""


def make_set(
    out: Path,
    *,
    split: str,
    videos: int,
    seed: int,
    assets: Path | None,
    protocol_file: Path | None,
    photographs: bool,
    films: bool,
    classes: str | None = None,
    force: bool,
) -> Path:
    """Writes `videos` scenes of a split to `out`; returns the path of its JSON.

    Args:
        out: Folder of the set; several splits may share it.
        split: `train`, `val` or `test`.
        videos: How many.
        seed: Of the set; the same seed makes the same set.
        assets: Folder of cut-outs and sounds; None: everything is drawn and played by the program.
        protocol_file: Another protocol than the frozen one.
        photographs: Only real photographs as scenes, for a set of its own.
        films: Write an MP4 of each scene as well.
        classes: Names of those to use, with commas, or `disjoint`: those whose cut-outs no two splits share; None: all.
        force: Replace a split that is there.
    Raises:
        AvisStreamError: The split is there already, or the assets do not suffice.
    """
    if (out / f"{split}.json").exists() and not force:
        raise AvisStreamError(f"{out / split}.json is there already; give another folder, or --force to replace it")
    protocol = Protocol.load(protocol_file or DEFAULT)
    only = protocol.disjoint if classes == "disjoint" else None if classes is None else tuple(classes.split(","))
    if only is not None and assets is None:
        raise AvisStreamError("--classes needs --assets: a set drawn by the program has all classes")
    unknown = [name for name in only or () if name not in AVISEG_CLASSES]
    if unknown:
        raise AvisStreamError(f"--classes must be of AVISeg's {len(AVISEG_CLASSES)}, got {', '.join(unknown)}")
    library: Library = (
        ProceduralLibrary() if assets is None else AssetLibrary(assets, protocol, split, only=only or AVISEG_CLASSES)
    )
    if photographs and not library.has_photographs:
        raise AvisStreamError("--photographs needs --assets with coco_images or pet_images of this split")
    bar = progress(range(videos), videos, split, "video")
    share = 1.0 if photographs else protocol.photograph_share[split]

    def scenes() -> Iterator[Scene]:
        for index in bar:
            scene = make_scene(
                library,
                protocol,
                seed=seed + _SEEDS[split],
                index=index,
                seconds=protocol.seconds[split],
                size=protocol.size,
                photograph_share=share,
            )
            if films:
                write_film(out / split / "films" / f"{split}_{index:05d}.mp4", scene)
            yield scene

    # Its pictures are replaced one by one: what ends in between must not look like the set that was there.
    (out / f"{split}.json").unlink(missing_ok=True)
    return write_set(out, split, scenes(), protocol, seed)
