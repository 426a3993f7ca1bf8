"""The training loop: one process, or one of several under `torchrun`."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import convert_conv2d_weight_memory_format
from tqdm import tqdm

from avis_stream.config import TrainConfig
from avis_stream.errors import AvisStreamError
from avis_stream.files import atomic_path
from avis_stream.models.avism import AVISM
from avis_stream.train.batches import S, batches
from avis_stream.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from avis_stream.train.optimiser import build_optimiser, set_rate
from avis_stream.train.points import random_points
from avis_stream.train.processes import all_or_none, any_of_all, rank_and_count
from avis_stream.train.source import Source
from avis_stream.train.step import ClipLosses

logger = logging.getLogger(__name__)

Log = Callable[[int, dict[str, float]], None]
"""Takes a step number and the losses of that step by name."""

Validate = Callable[[int], dict[str, float]]
"""Takes a step number, judges the model as it is then, in evaluation mode; scores by name with `JUDGED_BY`."""

JUDGED_BY = "val_FSLA"
"""The score that says which weights are the best; more is better."""


class Stopped(AvisStreamError):
    """Training was asked to stop (Ctrl-C, SIGTERM); its state is saved."""


def train(
    model: AVISM,
    source: Source[S],
    config: TrainConfig,
    folder: Path,
    *,
    losses: nn.Module | None = None,
    still: Sequence[str] = (),
    ahead: bool = True,
    resume: bool = False,
    save_every: int = 500,
    log: Log | None = None,
    validate: Validate | None = None,
    keep_best: Callable[[], None] | None = None,
) -> Progress:
    """Trains a model in place and keeps its state in `folder/last.pt`.

    Every process takes its own clips; losses and gradients are means over processes. Clip numbers follow from the step,
    random points from torch's generator, so a resumed run goes on exactly as if it had not stopped.

    Args:
        model: As `unfolded_model` gives it; left in evaluation mode.
        source: Numbered clips.
        config: Schedule.
        folder: For checkpoints; made if missing.
        losses: Takes samples of the source and where points come from, gives losses by name with their `total`; None:
            `ClipLosses` of the model.
        still: What `losses` cannot teach, besides what `config` freezes: first words of the names of its weights.
        ahead: Make samples in a process of its own; False: they are there already.
        resume: Go on from `folder/last.pt`, exactly if as many processes go on as stopped.
        save_every: Steps between checkpoints; there is one before and one after each validation, too.
        log: Called on the first process after every step; and with the scores of a validation, when the state that
            knows of it is safe: what is made up for when a run goes on was not logged before.
        validate: Called on the first process every `config.validate_every` steps and after the last; when a run goes
            on, first of all if it failed at the step that was saved.
        keep_best: Called whenever `JUDGED_BY` was as much as ever before or more, to put the weights away. What any of
            these three raises ends the run, in all processes.
    Raises:
        Stopped: Asked to stop; the state is saved.
        AvisStreamError: A loss or a gradient is not finite, in this process or another; the weights have not moved, and
            the clips at fault are saved and named; or what another process does alone failed there. A clip that cannot
            be made is told by its own error; what was learnt before is saved.
        CheckpointError: `resume`, and there is nothing to resume from.
    """
    rank, world = rank_and_count()
    torch.manual_seed(config.seed + rank)
    optimiser = build_optimiser(model, config, still)
    checkpoint = folder / "last.pt"
    progress = load_checkpoint(checkpoint, model, optimiser) if resume else Progress()
    convert_conv2d_weight_memory_format(model, torch.channels_last)  # oneDNN's own order
    step_of = ClipLosses(model, config) if losses is None else losses
    if world > 1:
        step_of = DistributedDataParallel(step_of)
    draw = random_points(model.device)
    model.train()
    begun = progress.step
    bar = tqdm(total=config.steps, initial=begun, unit="step", disable=rank > 0 or not sys.stderr.isatty())
    first, last = ((step * world + rank) * config.clips for step in (begun, config.steps))
    steps = batches(source, config.clips, range(first, last, world * config.clips), ahead=ahead)

    def save() -> None:
        save_checkpoint(checkpoint, model, optimiser, config, progress)

    def note(figures: dict[str, float]) -> None:
        with all_or_none("logging", model.device):
            if log is not None and rank == 0:
                log(progress.step, figures)

    def judge(by: Validate) -> None:
        scores = _judge(model, progress, by, keep_best)
        save()
        note(scores)

    with _stop_requests() as stop, bar, closing(steps):
        if validate is not None and progress.validated < begun and _is_due(begun, config):
            judge(validate)  # what failed or broke off when the run had come so far
        while (samples := _samples(steps, model.device, save if progress.step > begun else None)) is not None:
            set_rate(optimiser, config, progress.step)
            values = _step(model, step_of, optimiser, samples, config, draw, folder)
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{values['total']:.2f}")
            note(values)
            if validate is not None and _is_due(progress.step, config):
                save()  # before: a validation that fails must not cost what was learnt
                judge(validate)
            stopping = any_of_all(stop.is_set(), model.device)
            ended, saved = progress.step == config.steps, progress.step == progress.validated
            if not saved and (stopping or ended or progress.step % save_every == 0):
                save()
            if stopping:
                raise Stopped(f"stopped after step {progress.step}; go on with --resume {folder}")
    model.eval()
    return progress


def _is_due(step: int, config: TrainConfig) -> bool:
    """Whether the model is to be judged after a step."""
    return step % config.validate_every == 0 or step >= config.steps


def _judge(
    model: AVISM, progress: Progress, validate: Validate, keep_best: Callable[[], None] | None
) -> dict[str, float]:
    """Validates on the first process, for which the others wait; they get no scores."""
    scores: dict[str, float] = {}
    with all_or_none("validating", model.device):
        if rank_and_count()[0] == 0:
            model.eval()
            scores = validate(progress.step)
            model.train()
            figure = scores[JUDGED_BY]
            if figure >= progress.best:  # of equals, such as 0 while nothing passes a threshold, who has learnt more
                progress.best = figure
                if keep_best is not None:
                    keep_best()
    progress.validated = progress.step
    return scores


def _samples(steps: Iterator[list[S]], device: torch.device, save: Callable[[], None] | None) -> list[S] | None:
    """What this process learns from next; None after the last step. Where it cannot be made all stop, and save first,
    if there is something to be saved.
    """
    try:
        with all_or_none("making clips", device):
            return next(steps, None)
    except Exception as error:
        if save is not None:
            try:
                save()
            except Exception as worse:  # most likely of the same cause, which is what the user must know first
                error.add_note(f"what was learnt could not be saved: {worse}")
        raise


def _step(
    model: AVISM,
    step_of: nn.Module,
    optimiser: torch.optim.Optimizer,
    samples: list[S],
    config: TrainConfig,
    draw: Callable[[int, int], torch.Tensor],
    folder: Path,
) -> dict[str, float]:
    """Losses of one step, by name; the weights have moved when it returns."""
    device = model.device
    samples = [sample.to(device) for sample in samples]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
        losses: dict[str, torch.Tensor] = step_of(samples, draw)
    total = losses["total"]
    finite = math.isfinite(total.item())
    if any_of_all(not finite, device):
        if finite:
            raise AvisStreamError("a loss of another process is not finite; its message names the clips")
        bad = [name for name, value in losses.items() if not math.isfinite(value.item())]
        raise _not_finite(", ".join(bad), samples, folder)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    learning = [p for group in optimiser.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(learning, config.gradient_clip).item()
    if not math.isfinite(norm):  # clipped to NaN; all processes have the same gradients, so all stop here
        raise _not_finite("gradients", samples, folder)
    optimiser.step()
    return {name: value.item() for name, value in losses.items()} | {"gradient_norm": norm}


def _not_finite(what: str, samples: list[S], folder: Path) -> AvisStreamError:
    """The error that names the clips at fault, which are saved."""
    rank, world = rank_and_count()
    where = folder / ("not_finite.pt" if world == 1 else f"not_finite_{rank}.pt")
    with atomic_path(where) as temporary:
        torch.save([{f.name: getattr(s, f.name) for f in fields(s)} for s in samples], temporary)
    return AvisStreamError(f"{what} not finite on {[s.name for s in samples]}; the clips are in {where}")


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set instead of ending the process; a second Ctrl-C ends it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
