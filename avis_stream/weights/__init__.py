"""Weights: reading and writing files, official key names, models by name."""

from avis_stream.weights.load import from_official, load

__all__ = ["from_official", "load"]
