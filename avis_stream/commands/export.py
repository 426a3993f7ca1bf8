"""`avis-stream export`: a model as programs that run without its Python code.

    localizer.pt2                 torch.export: picture and sound features of a frame in, frame queries and features out
    tracker_step_P.pt2            torch.export: frame queries and state in, answer and new state out; P is t mod W
    localizer-cpu.pt2, ...        the same, compiled by AOTInductor for this CPU
    state.safetensors             a state to begin with, see below
    export.json                   names and shapes of all inputs and outputs, and how far each program was off

Which tokens a frame changes depends on its place in the attention window, so there is one step a phase. The programs
are for a stream that has run for a while (`first_frame` in export.json); before, fewer tokens are there to be seen. The
first frames go through `OnlineSegmenter`, whose state is handed on by `state_of(state.body.memory)` from then on;
state.safetensors holds such a one, of random frames.

Where frame queries are the objects (`tracker.objects="frame"`, as with `avism_mini`) no video query is asked, as in a
stream: the step answers with object tokens and what they are recognised by, and the state has nothing of video queries.

The operators stay calls of `avis::...`: `import avis_stream.ops` (or torch.ops.load_library) comes before loading.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from avis_stream.checks import require
from avis_stream.errors import AvisStreamError
from avis_stream.models.avism import AVISM
from avis_stream.online.config import OnlineConfig
from avis_stream.online.memory import TrackerMemory
from avis_stream.online.schedule import Geometry, plan_push
from avis_stream.online.tracking import Arrival, StreamTracker

TOLERANCE = 1e-4
"""How far a reloaded program may be off, relative to the largest magnitude of an output (at least 1)."""

Report = Callable[[str], Any]


class LocalizerProgram(nn.Module):
    """What a frame gives, as tensors in and out."""

    def __init__(self, model: AVISM) -> None:
        super().__init__()
        self.model = model
        some = {"sounding": model.config.localizer.sounding_head, "mask_embed": model.config.tracker.masks == "frame"}
        own = (name for name, there in some.items() if there)
        self.outputs = ("frame_queries", "logits", "clip_mask_features", *own)

    def forward(self, images: Tensor, audio_features: Tensor, previous: Tensor | None = None) -> tuple[Tensor, ...]:
        tokens = self.model.localize(images, audio_features, previous)
        return tuple(getattr(tokens, name) for name in self.outputs)


ANSWERS = ("logits", "mask_embed", "similarity")
"""What video queries say of a stream."""

STATE = ("heard", "tokens", "evidence")
"""The tensors of a `TrackerMemory` that each step writes, besides its list of objects."""

STATE_OF_VIDEO_QUERIES = ("keys", "values", "sink_value", "sink_lse", "anchor_slot", "key_bias")
"""What only video queries read."""


class TrackerStepProgram(nn.Module):
    """One frame of one stream at a fixed phase: the state comes in and goes out, nothing is remembered here."""

    def __init__(self, stream: StreamTracker, seen: int) -> None:
        super().__init__()
        self.tracker = stream.tracker  # registered, so that weights are found
        self.stream = stream
        self.seen = seen
        self.asks = stream.tracker.config.objects == "video"
        self.outputs = (*(ANSWERS if self.asks else ()), "object_tokens", "frame_similarity")

    def forward(self, frame_queries: Tensor, audio_features: Tensor, state: dict[str, Tensor]) -> tuple[Any, ...]:
        memory = memory_of({name: x.clone() for name, x in state.items()}, self.seen)
        plans = self.stream.push([memory], [Arrival(frame_queries, audio_features)])
        said: list[Tensor] = []
        if self.asks:
            answer = self.stream.answer([memory], plans)
            said = [getattr(answer, name) for name in ANSWERS]
        tokens = self.stream.tokens_of_newest(memory, plans[0]).clone()
        frame_similarity = self.tracker.similarity_of_frames(tokens)
        return *said, tokens, frame_similarity, state_of(memory)


def state_of(memory: TrackerMemory) -> dict[str, Tensor]:
    """A memory as named tensors: all that steps of its model's program read and write."""
    asked = memory.keys is not None
    named = {name: getattr(memory, name) for name in (*STATE, *(STATE_OF_VIDEO_QUERIES if asked else ()))}
    named |= {f"objects{i}": x for i, x in enumerate(memory.objects)}
    return {name: x for name, x in named.items() if x is not None}


def memory_of(state: dict[str, Tensor], seen: int) -> TrackerMemory:
    """The memory that `state_of` took apart, for `TrackerStepProgram`; of video queries only what is there."""
    named = {name: state.get(name) for name in (*STATE, *STATE_OF_VIDEO_QUERIES)}
    objects = [state[f"objects{i}"] for i in range(sum(name.startswith("objects") for name in state))]
    return TrackerMemory(seen=seen, objects=objects, **named)  # type: ignore[arg-type]


def first_settled(geometry: Geometry) -> int:
    """A frame that begins a window and from which on what a step does depends on the phase alone."""
    window = geometry.window
    frame = (geometry.pages + max(geometry.capacity) // window + 2) * window
    for later in range(frame, frame + window):
        assert plan_push(geometry, later, later) == plan_push(geometry, later + window, later + window)
    return frame


def export_model(
    model: AVISM, out: Path, size: tuple[int, int], report: Report, *, compiled: bool = True, phases: int | None = None
) -> dict[str, Any]:
    """Writes the programs of `model` for pictures of `size`, reloads each and compares it.

    Args:
        model: On the CPU, ready for inference.
        out: Folder that is there.
        size: (height, width) of the padded picture.
        report: Gets a line about each program.
        compiled: Whether to compile with AOTInductor too, which takes minutes.
        phases: How many phases of the window to export; None: all.
    Raises:
        ConfigError: `size` is of no frame, or there are not so many phases.
        AvisStreamError: A reloaded program differs by more than 1e-4.
    """
    divisor = model.config.input.size_divisor
    require(
        all(s > 0 and s % divisor == 0 for s in size), "size", size, f"multiples of {divisor}, as frames are padded"
    )
    stream = StreamTracker(model.tracker, OnlineConfig())
    geometry = stream.geometry
    wanted = f"1 to {geometry.window}, one for each frame of the tracker's window"
    require(phases is None or 1 <= phases <= geometry.window, "phases", phases, wanted)
    torch.manual_seed(0)
    described: dict[str, Any] = {"model": model.config.name, "torch": torch.__version__, "programs": {}}
    images = torch.randn(1, 3, *size)
    features = torch.randn(1, model.config.audio.feature_dim)
    frame = (images, features, *([torch.randn_like(images)] if model.wants_previous else []))
    with torch.no_grad():
        localizer = LocalizerProgram(model)
        described["programs"]["localizer"] = _write(
            localizer, localizer.outputs, frame, out / "localizer", report, compiled
        )
        linked = model.config.tracker.objects == "frame"
        memory = TrackerMemory.empty(model.config, geometry, not linked, features)
        begin = first_settled(geometry)
        queries = model.tracker.fq_pos.num_embeddings
        arrivals = [
            Arrival(torch.randn(1, queries, model.config.channels), torch.randn(1, model.config.audio.feature_dim))
            for _ in range(begin)
        ]
        for arrival in arrivals:
            plans = stream.push([memory], [arrival])
            if not linked:
                stream.answer([memory], plans)
        state = {name: x.clone() for name, x in state_of(memory).items()}
        safetensors.torch.save_file(state, out / "state.safetensors")
        described |= {"first_frame": begin, "window": geometry.window}
        for phase in range(geometry.window if phases is None else phases):
            program = TrackerStepProgram(stream, begin + phase)
            inputs = (arrivals[phase].frame_queries, arrivals[phase].audio, state)
            name = f"tracker_step_{phase}"
            described["programs"][name] = _write(program, program.outputs, inputs, out / name, report, compiled)
            state = {key: x.clone() for key, x in program(*inputs)[-1].items()}
    (out / "export.json").write_text(json.dumps(described, indent=1) + "\n")
    return described


def _write(
    program: nn.Module, names: Sequence[str], inputs: tuple[Any, ...], target: Path, report: Report, compiled: bool
) -> dict[str, Any]:
    """One program, whose outputs have `names`, exported and compiled; what export.json says of it."""
    start = time.perf_counter()
    wanted = program(*inputs)
    exported = torch.export.export(program, inputs, strict=False)
    plain = target.with_suffix(".pt2")
    torch.export.save(exported, plain)
    off = {plain.name: _difference(torch.export.load(plain).module()(*inputs), wanted, plain)}
    if compiled:
        package = target.with_name(f"{target.name}-cpu.pt2")
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
        off[package.name] = _difference(torch._inductor.aoti_load_package(str(package))(*inputs), wanted, package)
    for name, difference in off.items():
        report(f"{name}: reloaded, off by {difference:.1e} ({time.perf_counter() - start:.0f} s)")
    return {
        "inputs": _shapes(inputs),
        "outputs": dict(zip([*names, "state"], _shapes(wanted), strict=False)),
        "off_by": off,
    }


def _flat(value: Any) -> list[Tensor]:
    leaves: list[Tensor] = torch.utils._pytree.tree_leaves(value)
    return leaves


def _difference(got: Any, wanted: Any, path: Path) -> float:
    """Largest difference of any output, relative to its magnitude.

    Raises:
        AvisStreamError: It is above the tolerance.
    """
    worst = 0.0
    for a, b in zip(_flat(got), _flat(wanted), strict=True):
        finite = torch.isfinite(b.double())
        same = torch.equal(torch.isfinite(a.double()), finite)
        scale = max(1.0, b[finite].abs().max().item()) if finite.any() else 1.0
        apart = (a[finite].double() - b[finite].double()).abs().max().item() / scale if finite.any() else 0.0
        worst = max(worst, apart if same else float("inf"))
    if not worst <= TOLERANCE:
        raise AvisStreamError(
            f"{path.name} was written, but gives results that are off by {worst:.1e}, more than {TOLERANCE:.0e}; "
            "do not use it, and report this with the versions that `avis-stream info` prints"
        )
    return worst


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {key: _shapes(x) for key, x in value.items()}
    return [_shapes(x) for x in value]
