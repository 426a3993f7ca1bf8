"""Which weights of a model stand for classes, and where: what must change places in a model of other classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClassAxis:
    """Where a weight has an entry for each class."""

    axis: int
    nothing: bool = False
    """Whether "no object" follows the classes."""

    def shape(self, weight: Tensor, classes: Sequence[str]) -> tuple[int, ...] | None:
        """Of a weight of a model of some classes, without those; None: it is not of so many."""
        rest = list(weight.shape)
        return tuple(rest) if rest.pop(self.axis) == len(classes) + self.nothing else None


CLASS_AXES: Mapping[str, ClassAxis] = {
    "localizer.class_embed.weight": ClassAxis(0, nothing=True),
    "localizer.class_embed.bias": ClassAxis(0, nothing=True),
    "localizer.peaks.centre.weight": ClassAxis(0),
    "localizer.peaks.centre.bias": ClassAxis(0),
    "localizer.peaks.class_proj.weight": ClassAxis(1),
    "localizer.sounding.tag.3.weight": ClassAxis(0),
    "localizer.sounding.tag.3.bias": ClassAxis(0),
    "tracker.class_embed.weight": ClassAxis(0, nothing=True),
    "tracker.class_embed.bias": ClassAxis(0, nothing=True),
}
"""By name, in every model that has them; no other weight depends on the classes."""


def of_classes(
    name: str, own: Tensor, other: Tensor, classes: Sequence[str], other_classes: Sequence[str]
) -> Tensor | None:
    """A weight with the entries of another model's, for classes of the same name; the others stay its own.

    Args:
        name: One of `CLASS_AXES`.
        own: The weight.
        other: The other model's.
        classes: Names that `own` has entries for.
        other_classes: Those of `other`.
    Returns:
        None where not a single entry stands for the same.
    """
    where, rest = CLASS_AXES[name], (None,) if CLASS_AXES[name].nothing else ()
    wanted, given = ([*names, *rest] for names in (classes, other_classes))
    shared = [(wanted.index(entry), given.index(entry)) for entry in wanted if entry in given]
    if not shared:
        return None
    into, out_of = (own.new_tensor(places).long() for places in zip(*shared, strict=True))
    entries = other.index_select(where.axis, out_of).to(own.dtype)
    return own.index_copy(where.axis, into, entries)
