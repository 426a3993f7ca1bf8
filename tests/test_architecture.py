"""The house holds: imports go down only, nothing reads outside the project, the recorded numbers are untouched."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "avis_stream"

LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"serve", "interop"},
    {"train", "stream"},
    {"sources", "writers", "weights", "synth"},
    {"online"},
    {"models", "metrics"},
    {"nn", "audio", "data", "gpu", "presets"},
    {"ops"},
    {"checks", "config", "config_text", "errors", "files", "memory", "needs", "stages", "threads", "types", "_version"},
]
"""From the top down. A part imports from layers below; in the last three, also from its neighbours."""

NEIGHBOURLY = len(LAYERS) - 3


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports() -> list[tuple[str, str, Path]]:
    """(importing part, imported part, file) for every import inside the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        part = inside.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{a.name}" if node.module == "avis_stream" else node.module for a in node.names]
            else:
                continue
            found += [(part, part_of(name), path) for name in names if name.split(".")[0] == "avis_stream"]
    return found


def test_every_part_has_a_layer() -> None:
    parts = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - set().union(*LAYERS) == {"__init__"}


def test_imports_go_down_only() -> None:
    level = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    wrong = [
        f"{path.relative_to(ROOT)}: {part} imports {imported}"
        for part, imported, path in imports()
        if "__init__" not in (part, imported) and part != imported
        if level[imported] < level[part] or (level[imported] == level[part] < NEIGHBOURLY)
    ]
    assert not wrong, "\n".join(wrong)


SPAWNS = [
    "commands/", "interop/follower.py", "serve/hub.py", "serve/sources.py", "sources/", "stream/cores.py",
    "stream/lanes.py", "stream/session.py", "train/batches.py",
]  # fmt: skip
"""What may start threads and processes, as ARCHITECTURE.md has it."""

READS_CLOCK = sorted(
    {*SPAWNS, "interop/gst_stream.py", "serve/app.py", "stages.py", "threads.py"}
    - {"serve/sources.py", "stream/cores.py", "train/batches.py"}
)


def calls(pattern: str) -> set[str]:
    """Files of the package with a call of some dotted name, by their path in it."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.fullmatch(pattern, ast.unparse(node.func)):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


@pytest.mark.parametrize(
    ("pattern", "listed"),
    [
        (r"(threading\.)?(Thread|ComputingThread|Timer)|subprocess\.\w+|multiprocessing\.\w+|os\.(fork|exec\w+|popen|system)|"
         r"(asyncio\.)?to_thread|\w*PoolExecutor|(\w+\.)*DataLoader(\[.*\])?", SPAWNS),
        (r"(time\.)?(monotonic|perf_counter|process_time|sleep|time|time_ns)(_ns)?|(datetime\.)+(now|utcnow|today)",
         READS_CLOCK),
    ],
    ids=["spawns", "reads_clock"],
)  # fmt: skip
def test_what_computes_starts_nothing_and_reads_no_clock(pattern: str, listed: list[str]) -> None:
    found = calls(pattern)
    beyond = {path for path in found if not any(path.startswith(part) for part in listed)}
    assert not beyond, "make it a function of its arguments, or name it in ARCHITECTURE.md and here"
    assert all(any(path.startswith(part) for path in found) for part in listed), "what is listed does it"
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert all(f"`{part}`" in text for part in listed), "what is listed is named there"


def test_every_quirk_that_code_names_has_a_row() -> None:
    rows = set(re.findall(r"^\| (Q\d+) \|", (ROOT / "docs" / "official_quirks.md").read_text(), re.MULTILINE))
    named = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.*"), *(ROOT / "docs").rglob("*.md")]:
        for words in re.findall(r"[Qq]uirks?\s+(Q\d+(?:(?:,| and| to)\s+Q\d+)*)", path.read_text()):
            named |= set(re.findall(r"Q\d+", words))
    assert named
    assert named <= rows
    assert rows == {f"Q{n}" for n in range(1, 29)}, "the list has no holes"


def test_every_quirk_says_where_it_is_and_what_holds_it() -> None:
    text = (ROOT / "docs" / "official_quirks.md").read_text()
    for row in re.findall(r"^\| Q\d+ \|.*", text, re.MULTILINE):
        name, _, where, _, _, tests = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert where, name
        assert re.search(r"`\w[\w./]*`", tests), name
        for test in re.findall(r"`([\w./]+)`", tests):
            path = ROOT / test if test.startswith("tests/") else None
            assert path.exists() if path is not None else any((ROOT / "tests").rglob(test)), f"{name}: {test}"


def test_nothing_reads_outside_the_project() -> None:
    """The founders' notes and assets exist on their machine only, and so do its paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    outside = re.compile(r"\.\./shared|(?<![\w.])/(?:work|root|tmp)/")
    wrong = []
    for name in listed.split("\0"):
        path = ROOT / name
        if path.suffix in {".py", ".cpp", ".h", ".inl", ".cu", ".cuh", ".toml", ".txt", ""} and path.is_file():
            for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
                if outside.search(line) and path != Path(__file__):
                    wrong.append(f"{name}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_recorded_numbers_are_untouched() -> None:
    golden = ROOT / "tests" / "golden"
    for line in (golden / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((golden / name).read_bytes()).hexdigest() == digest, name


def test_the_repository_stays_light() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    size = sum((ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file())
    assert size < 60e6


def test_importing_the_package_is_light() -> None:
    """No extra and nothing slow comes in with `import avis_stream`."""
    heavy = {"gi", "pyaudio", "cupy", "av", "matplotlib", "scipy", "starlette", "tensorboard"}
    code = f"import avis_stream, sys; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.slow
def test_import_adds_at_most_300_ms_to_torch() -> None:
    """Seconds of `import avis_stream` beyond `import torch`, best of five."""
    code = "import torch, time; t = time.perf_counter(); import avis_stream; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(runs) <= 0.3, runs
