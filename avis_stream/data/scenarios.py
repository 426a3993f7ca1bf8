"""Which scenario a class belongs to: Music, Speaking, Machine, Animal.

The paper tells its videos apart by these four but publishes no table, so this one is ours.
"""

from __future__ import annotations

from collections.abc import Mapping

_CLASSES = {
    "Music": (
        "violin", "guitar", "cello", "flute", "piano", "ukulele", "accordion", "guzheng", "clarinet", "saxophone",
        "tuba", "banjo", "pipa", "bassoon", "trumpet", "bass", "erhu",
    ),
    "Speaking": ("person",),
    "Machine": ("car", "lawn_mover", "airplane", "tree_harvester"),
    "Animal": ("cat", "dog", "lion", "horse"),
}  # fmt: skip

SCENARIOS = tuple(_CLASSES)

_OF_CLASS = {name: scenario for scenario, names in _CLASSES.items() for name in names}


def scenario_of_class(name: str) -> str | None:
    """The scenario of an AVISeg class; None for a class of somebody else's list."""
    return _OF_CLASS.get(name)


def scenario_of_video(sounding_seconds: Mapping[str, int]) -> str | None:
    """The scenario that most of a video's sounding objects belong to, by their seconds.

    Where two have as many, the one that says more about the video: a singer at the piano is Music, not Speaking.

    Args:
        sounding_seconds: By class name.
    Returns:
        None if nothing sounds, or nothing of a class with a scenario.
    """
    seconds = dict.fromkeys(("Music", "Machine", "Animal", "Speaking"), 0)
    for name, count in sounding_seconds.items():
        scenario = scenario_of_class(name)
        if scenario is not None:
            seconds[scenario] += count
    best = max(seconds, key=seconds.__getitem__)
    return best if seconds[best] else None
