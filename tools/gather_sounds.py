"""Brings recordings of Debian's packages together for training: `python tools/gather_sounds.py DIR`.

Few recordings of a class are learnt by heart (ADR 0013). Debian's games and soundfonts hold many more; what is taken
is listed in `debian_sounds.toml`. DIR is then for `train --data synth:ASSETS:DIR`: `sounds/<class>/*.flac` and
`sounds_other/debian/*.flac`, 16 kHz, one channel. The same packages give the same files. Needs `apt-get`, `dpkg-deb`,
`fluidsynth` and `pip install mido`; about 5 GB are fetched, one package at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from avis_stream.errors import DataError
from avis_stream.files import atomic_path
from avis_stream.synth.assets import decoded

if TYPE_CHECKING:
    from mido import MidiFile

RATE = 16_000
_LONGEST = 20 * RATE
_MOST = 60
"""At most so many files of one class from one package: the voices of a package are few."""
_PHRASES = 5
"""Played on each instrument of each font."""
_PHRASE_SECONDS = 8.0
_RANGES = {
    "accordion": (53, 84),
    "banjo": (48, 74),
    "bass": (28, 50),
    "bassoon": (34, 62),
    "cello": (36, 67),
    "clarinet": (50, 82),
    "flute": (60, 91),
    "guitar": (40, 72),
    "piano": (36, 88),
    "saxophone": (44, 76),
    "trumpet": (54, 80),
    "tuba": (29, 53),
    "violin": (55, 88),
}
"""MIDI keys that players of it use."""
_CHORDS = {"accordion": 0.5, "banjo": 0.4, "guitar": 0.5, "piano": 0.5, "violin": 0.1, "cello": 0.1}
"""Share of the beats with more than one note."""
_EFFECT_KEYS = (52, 56, 60, 64, 68)
"""At which an effect is played: lower or higher, slower or faster."""
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), tuple(range(12)))
"""Major, minor, pentatonic, all keys: semitones above the tonic."""


def gather(folder: Path, table: dict[str, Any], cache: Path | None, only: Collection[str]) -> None:
    """Writes what the table names into a folder, and beside it which packages it is from.

    Args:
        folder: Gets `sounds`, `sounds_other` and `packages.txt`: name, version, SHA-256 of each package.
        table: As `debian_sounds.toml`.
        cache: Folder of packages that were fetched before; None: there is none.
        only: Packages to look at; empty: all.
    Raises:
        SystemExit: A package cannot be had, or the table names what is not in it.
    """
    recordings = {k: v for k, v in table.items() if k not in {"fonts", "instruments", "effects"}}
    packages = sorted({package for files in recordings.values() for package in files} | set(table["fonts"]))
    for package in only or packages:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            archive = unpacked(package, root, cache)
            wanted = ((kind, files[package]) for kind, files in recordings.items() if package in files)
            count = sum(copied(folder, package, kind, patterns, root) for kind, patterns in wanted)
            if package in table["fonts"]:
                count += played(folder, package, table, root)
            note(folder / "packages.txt", f"{archive.name} {hashlib.sha256(archive.read_bytes()).hexdigest()}")
            print(f"{package}: {count} recordings", flush=True)


def note(path: Path, line: str) -> None:
    """Adds a line to a file, once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.is_file() else []
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(sorted({*lines, line})) + "\n")


def copied(folder: Path, package: str, kind: str, patterns: list[str], root: Path) -> int:
    """Writes what a package holds of a class; how many."""
    count = 0
    for path in chosen(root, patterns, f"{kind}/{package}"):
        inside = str(path.relative_to(root))
        name = re.sub(r"[^a-z0-9]+", "-", str(Path(inside).with_suffix("")).lower())
        short = f"{name[-40:].strip('-')}-{hashlib.sha1(inside.encode()).hexdigest()[:6]}"
        try:
            samples = decoded(path, "g722" if path.suffix == ".g722" else None)
        except DataError as error:
            print(f"{package}: {error}", flush=True)
            continue
        if written(home(folder, kind) / f"{package}_{short}.flac", samples):
            count += 1
        else:
            print(f"{package}: too short or silent: {inside}", flush=True)
    return count


def unpacked(package: str, root: Path, cache: Path | None) -> Path:
    """A package's files under `root`, and its archive; nothing of it is installed or run."""
    found = sorted(cache.glob(f"{package}_*.deb")) if cache else []
    if not found:
        got = subprocess.run(
            ["apt-get", "download", "-qq", package], cwd=root, capture_output=True, text=True, check=False
        )
        found = sorted(root.glob("*.deb"))
        if got.returncode or not found:
            raise SystemExit(
                f"{package} cannot be fetched (is this Debian 12, with `apt-get update` done?): {got.stderr}"
            )
    subprocess.run(["dpkg-deb", "--extract", str(found[-1]), str(root)], check=True)
    return found[-1]


def chosen(root: Path, patterns: list[str], seed: str) -> list[Path]:
    """The files that match, in order; a few at random where there are many. Links lead out of the package."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    files = [path for path in files if path.suffix not in {".txt", ".xml", ".deb", ".md", ".desktop"}]
    for end in patterns:
        if not any(fnmatch(str(path), f"*{end}") for path in files):
            raise SystemExit(f"{seed}: no file of the package matches {end}")
    paths = [path for path in files if any(fnmatch(str(path), f"*{end}") for end in patterns)]
    return paths if len(paths) <= _MOST else sorted(random.Random(seed).sample(paths, _MOST))


def written(path: Path, samples: NDArray[np.float32]) -> bool:
    """Writes the first 20 s of samples [n], as loud as can be; False where they are silent or shorter than 0.1 s."""
    samples = samples[:_LONGEST]
    if len(samples) < RATE // 10 or np.abs(samples).max() < 1e-3:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = np.round(samples / np.abs(samples).max() * 32_000).astype(np.int16)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(scaled[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return True


def home(folder: Path, kind: str) -> Path:
    """Where recordings of a class lie, and those of none."""
    return folder / "sounds_other" / "debian" if kind == "other" else folder / "sounds" / kind


def played(folder: Path, package: str, table: dict[str, Any], scratch: Path) -> int:
    """Writes phrases on the instruments of the font in `scratch`, and its effects at a few keys; how many."""
    (font,) = chosen(scratch, [table["fonts"][package]], package)
    count = 0
    for name, score, bank, program in scores(package, table):
        midi, wave = scratch / "phrase.mid", scratch / "phrase.wav"
        score.save(midi)
        room = random.Random(name).choice(["0", "1"])
        command = ["fluidsynth", "-niq", "-r", str(RATE), "-R", room, "-C", "0", "-o", "synth.dynamic-sample-loading=1"]
        command += ["-F", str(wave), str(font), str(midi)]
        subprocess.run(command, check=True, capture_output=True)
        kind, _, rest = name.partition("/")
        count += written(home(folder, kind) / f"{package}_{rest}-{bank}-{program}.flac", decoded(wave))
    return count


def scores(package: str, table: dict[str, Any]) -> Iterator[tuple[str, MidiFile, int, int]]:
    """(class/number, what is played, bank, program) of all phrases and effects of a font."""
    for kind, programs in table["instruments"].items():
        for bank, program in programs:
            for number in range(_PHRASES):
                rng = random.Random(f"{package}/{kind}/{program}/{number}")
                yield f"{kind}/phrase{number}", phrase(kind, bank, program, rng), bank, program
    for kind, programs in table["effects"].get(package, {}).items():
        for bank, program in programs:
            for key in _EFFECT_KEYS:
                yield f"{kind}/effect{key}", melody([(0.0, 5.0, key, 110)], bank, program), bank, program


def phrase(kind: str, bank: int, program: int, rng: random.Random) -> MidiFile:
    """A melody nobody wrote: steps on a scale, at times a leap, a rest or a chord."""
    low, high = _RANGES.get(kind, (48, 79))
    scale, tonic = rng.choice(_SCALES), rng.randrange(12)
    keys = [key for key in range(low, high + 1) if (key - tonic) % 12 in scale]
    beat, at, now = rng.choice([0.15, 0.22, 0.3, 0.45, 0.7]), rng.randrange(len(keys)), 0.0
    legato, strum = rng.uniform(0.6, 1.1), rng.uniform(0.0, 0.04)
    notes = []
    while now < _PHRASE_SECONDS:
        length = beat * rng.choice([1, 1, 1, 2, 2, 4])
        if rng.random() > 0.07:
            several = rng.choice([2, 3, 4]) if rng.random() < _CHORDS.get(kind, 0.0) else 1
            for voice in range(several):
                key = keys[min(at + 2 * voice, len(keys) - 1)]
                notes.append((now + voice * strum, max(0.08, length * legato), key, rng.randint(55, 120)))
        now += length
        leap = rng.choice([-4, 4, 5, -5]) if rng.random() < 0.12 else rng.choice([-2, -1, -1, 0, 1, 1, 2])
        at = min(max(at + leap, 0), len(keys) - 1)
    return melody(notes, bank, program)


def melody(notes: list[tuple[float, float, int, int]], bank: int, program: int) -> MidiFile:
    """Notes (start and length in s, key, velocity) as a file, a thousand ticks a second."""
    import mido

    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)])
    track.append(mido.Message("control_change", control=0, value=bank))
    track.append(mido.Message("program_change", program=program))
    events = [(round(1000 * start), "note_on", key, velocity) for start, _, key, velocity in notes]
    events += [(round(1000 * (start + length)), "note_off", key, 0) for start, length, key, _ in notes]
    last = 0
    for at, name, key, velocity in sorted(events):
        track.append(mido.Message(name, note=key, velocity=velocity, time=at - last))
        last = at
    return mido.MidiFile(ticks_per_beat=500, tracks=[track])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--packages", type=Path, help="folder of .deb files that were fetched before")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", default=[], help="packages to look at (default: all)")
    options = parser.parse_args()
    table = tomllib.loads(Path(__file__).with_name("debian_sounds.toml").read_text())
    gather(options.folder, table, options.packages, options.only)


if __name__ == "__main__":
    main()
