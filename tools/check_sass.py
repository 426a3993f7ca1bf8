"""Holds the machine code of the CUDA kernels to the limits in sass_limits.toml, without a GPU.

    python tools/check_sass.py                       # the library of the installed package
    python tools/check_sass.py path/to/libavis_cuda.so --table

A spill, a stack frame, a load that is no longer 16 bytes wide or a kernel that lost half its occupancy costs a factor
on the device and shows nowhere else here. Needs cuobjdump, nvdisasm (PyPI: nvidia-cuda-cuobjdump,
nvidia-cuda-nvdisasm) and c++filt. Exit status 0: all is well; 1: a limit is broken; 3: nothing to check, and why.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "avis_stream" / "ops" / "libavis_cuda.so"
LIMITS = Path(__file__).with_name("sass_limits.toml")

# Threads, blocks and bytes of shared memory of a multiprocessor, by architecture: CUDA programming guide, "Compute
# capabilities". All have 65536 registers. What a kernel uses counts the 1 KB that every block takes.
MULTIPROCESSORS = {
    "80": (2048, 32, 164 << 10),
    "86": (1536, 16, 100 << 10),
    "89": (1536, 24, 100 << 10),
    "90": (2048, 32, 228 << 10),
    "100": (2048, 32, 228 << 10),
    "120": (1536, 24, 100 << 10),
}
REGISTERS = 65536
BLOCK = 128  # threads; all our kernels have as many


class NothingToCheckError(Exception):
    """A tool or the library is missing."""


@dataclass
class Kernel:
    """One kernel for one architecture."""

    name: str
    arch: str
    registers: int
    stack: int
    local: int
    shared: int
    instructions: dict[str, int] = field(default_factory=dict)

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.instructions.items() if re.fullmatch(pattern, name))

    def occupancy(self, dynamic_shared: int) -> float:
        """Share of a multiprocessor's threads that fit at the same time."""
        threads, blocks, shared = MULTIPROCESSORS[self.arch]
        per_warp = -(-self.registers * 32 // 256) * 256  # registers are given out in lots of 256
        by_registers = REGISTERS // (per_warp * (BLOCK // 32))
        by_shared = shared // max(self.shared + dynamic_shared, 1)
        return min(by_registers, by_shared, blocks, threads // BLOCK) * BLOCK / threads


def tool(name: str) -> str:
    """Path of one of NVIDIA's tools: from the PATH, or from PyPI's packages of this interpreter."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in Path(folder).glob(f"*/bin/{name}"):
            return str(path)
    raise NothingToCheckError(
        f"{name} is missing: pip install -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    )


def _lines(*command: str) -> Iterator[str]:
    beside = str(Path(tool("nvdisasm")).parent)  # cuobjdump calls nvdisasm
    env = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} failed with status {process.returncode}")


def short_names(mangled: list[str]) -> dict[str, str]:
    """`msda_forward<float, 32, 12>` and the like."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    short = [re.sub(r"^void |avis::gpu::|\(.*\)$", "", name) for name in done.stdout.splitlines()]
    return dict(zip(mangled, short, strict=True))


def read_kernels(library: Path) -> list[Kernel]:
    """All kernels of a library: resources first, then the counts of instructions."""
    found: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    usage = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for line in _lines(tool("cuobjdump"), "--dump-resource-usage", str(library)):
        if match := re.search(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif (match := usage.search(line)) and name:
            registers, stack, shared, local = map(int, match.groups())
            found[arch, name] = Kernel(name, arch, registers, stack, local, shared)
            name = ""
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]+)")
    counts: dict[str, int] = {}
    for line in _lines(tool("cuobjdump"), "-sass", str(library)):
        if match := instruction.match(line):
            counts[match[1]] = counts.get(match[1], 0) + 1
        elif match := re.search(r"(?:arch =|code for) sm_(\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            if ("", match[1]) in found:  # of a lone cubin, resources come without the architecture
                found[arch, match[1]] = replace(found.pop(("", match[1])), arch=arch)
            counts = found[arch, match[1]].instructions
    names = short_names(sorted({name for _, name in found}))
    for kernel in found.values():
        kernel.name = names[kernel.name]
    return list(found.values())


def limits_of(kernel: Kernel, table: dict[str, Any]) -> dict[str, Any]:
    """What the table says of a kernel: later patterns add to earlier ones."""
    limits: dict[str, Any] = {}
    for pattern, values in table.items():
        if fnmatch.fnmatchcase(kernel.name, pattern):
            limits |= values
    return limits


def complaints(kernel: Kernel, limits: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a kernel."""
    if kernel.stack or kernel.local:
        yield f"{kernel.stack} bytes of stack and {kernel.local} of local memory, want none"
    if spilled := kernel.count(r"(LDL|STL)\b.*"):
        yield f"{spilled} loads and stores of spilled registers, want none"
    if doubles := kernel.count(r"D(ADD|MUL|FMA|SETP|MNMX)\b.*|F2F\.F64.*|F2F\.F32\.F64"):
        yield f"{doubles} instructions in double precision, want none"
    if not limits:
        yield "no line in sass_limits.toml is about it; add one"
        return
    if kernel.registers > limits["registers"]:
        yield f"{kernel.registers} registers, limit {limits['registers']}"
    occupancy = kernel.occupancy(limits.get("dynamic_shared", 0))
    if occupancy < limits["occupancy"]:
        yield f"{occupancy:.0%} of the threads fit at a time, want {limits['occupancy']:.0%}"
    for what, pattern in (
        ("wide_loads", r"LDG\.E\.128.*"),
        ("wide_stores", r"STG\.E\.128.*"),
        ("wide_shared_loads", r"LDS\.128.*"),
    ):
        if kernel.count(pattern) < limits.get(what, 0):
            yield f"{kernel.count(pattern)} {what.replace('_', ' ')} of 16 bytes, want {limits[what]}"
    if int(kernel.arch) >= 90 and kernel.count(r"REDG\.E\.ADD\.F32x4.*") < limits.get("wide_atomics", 0):
        yield f"{kernel.count('REDG.*F32x4.*')} atomic additions of four floats, want {limits['wide_atomics']}"


def check(library: Path, limits: dict[str, Any]) -> tuple[list[Kernel], list[str]]:
    """All kernels, and what is wrong."""
    kernels = read_kernels(library)
    wrong = [
        f"sm_{kernel.arch} {kernel.name}: {complaint}"
        for kernel in kernels
        for complaint in complaints(kernel, limits_of(kernel, limits["kernels"]))
    ]
    built = {kernel.arch for kernel in kernels}
    wrong += [f"no kernels for sm_{arch}" for arch in limits["architectures"] if arch not in built]
    return kernels, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, nargs="?", default=LIBRARY)
    parser.add_argument("--archs", nargs="+", help="that must be there (default: those of the table)")
    parser.add_argument("--table", action="store_true", help="write what every kernel uses")
    options = parser.parse_args()
    limits = tomllib.loads(LIMITS.read_text())
    limits["architectures"] = options.archs or limits["architectures"]
    try:
        if not options.library.is_file():
            raise NothingToCheckError(f"{options.library} was not built: AVIS_STREAM_BUILD=cuda, where nvcc is")
        kernels, wrong = check(options.library, limits)
    except NothingToCheckError as error:
        sys.stderr.write(f"nothing was checked: {error}\n")
        return 3
    if options.table:
        for k in sorted(kernels, key=lambda k: (k.name, int(k.arch))):
            occupancy = k.occupancy(limits_of(k, limits["kernels"]).get("dynamic_shared", 0))
            wide = {name: k.count(rf"{name}.*128.*") for name in ("LDG", "STG", "LDS")}
            wide["RED"] = k.count("REDG.*F32x4.*")
            sys.stdout.write(
                f"{k.name:36} sm_{k.arch:4} {k.registers:3} registers {k.shared:6} B shared {occupancy:4.0%} fit; "
                f"of 16 bytes: {' '.join(f'{n} {name}' for name, n in wide.items())}\n"
            )
    for line in wrong:
        sys.stderr.write(line + "\n")
    architectures = sorted({k.arch for k in kernels}, key=int)
    sys.stderr.write(f"{len(kernels)} kernels for sm_{' '.join(architectures)}: {len(wrong) or 'no'} complaints\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
