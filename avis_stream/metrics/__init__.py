"""How good predictions are: FSLA, HOTA, TrackMAP, identity; numpy and scipy alone."""

from avis_stream.metrics.evaluate import Evaluation, evaluate, evaluation

__all__ = ["Evaluation", "evaluate", "evaluation"]
