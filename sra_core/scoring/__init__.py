"""The evaluate stage: teacher, initial student and student on the same examples of every data set."""

from sra_core.scoring.sets import EvaluationSet, evaluation_identity, evaluation_sets
from sra_core.scoring.stage import SUMMARY, report_evaluation, score_student

__all__ = [
    "SUMMARY",
    "EvaluationSet",
    "evaluation_identity",
    "evaluation_sets",
    "report_evaluation",
    "score_student",
]
