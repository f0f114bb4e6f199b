from .evaluate import card_metrics, evaluate, refuse_other_teachers
from .fidelity import EvalRow, mean_score, measure
from .text_scores import TextScore, text_scores
from .validation import knn_accuracy
from .verdict import Verdict, verdict

__all__ = [
    "EvalRow",
    "TextScore",
    "Verdict",
    "card_metrics",
    "evaluate",
    "knn_accuracy",
    "mean_score",
    "measure",
    "refuse_other_teachers",
    "text_scores",
    "verdict",
]
