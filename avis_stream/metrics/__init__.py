"""How good predictions are: FSLA, HOTA, TrackMAP, identity; of other systems' answers, too. Numpy and scipy alone."""

from avis_stream.metrics.answers import answers_of_predictions, parse_answers, score_answers
from avis_stream.metrics.evaluate import Evaluation, evaluate, evaluation
from avis_stream.metrics.prefix import prefix_curve
from avis_stream.metrics.reid import reappearance
from avis_stream.metrics.segmentation import binary_scores, label_maps, segmentation_summary, semantic_scores
from avis_stream.metrics.splice import across_cut
from avis_stream.metrics.streaming import as_live, read_latencies

__all__ = [
    "Evaluation",
    "across_cut",
    "answers_of_predictions",
    "as_live",
    "binary_scores",
    "evaluate",
    "evaluation",
    "label_maps",
    "parse_answers",
    "prefix_curve",
    "read_latencies",
    "reappearance",
    "score_answers",
    "segmentation_summary",
    "semantic_scores",
]
