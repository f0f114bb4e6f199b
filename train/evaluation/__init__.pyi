from .evaluate import card_metrics, evaluate, refuse_other_teachers
from .fidelity import EvalRow, mean_score, measure
from .mask_scores import mask_scores
from .tasks import TaskScore
from .text_scores import text_scores
from .validation import knn_accuracy
from .verdict import Verdict, verdict

__all__ = [
    "EvalRow",
    "TaskScore",
    "Verdict",
    "card_metrics",
    "evaluate",
    "knn_accuracy",
    "mask_scores",
    "mean_score",
    "measure",
    "refuse_other_teachers",
    "text_scores",
    "verdict",
]
