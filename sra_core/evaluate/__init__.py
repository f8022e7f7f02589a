"""`sra evaluate`: teacher, initial student and student on the same held-out examples of every data set."""

from sra_core.evaluate.agreement import Agreement, agreement_table, teacher_agreement
from sra_core.evaluate.answers import AnswerSet
from sra_core.evaluate.decisions import Sampling
from sra_core.evaluate.generation import Answer, generate
from sra_core.evaluate.leaks import Leak, LeakReport, find_leaks
from sra_core.evaluate.sets import EvaluationSet, check_datasets, evaluation_sets, identity
from sra_core.evaluate.settings import AnswerSettings, pick_backend, require_lm_eval
from sra_core.evaluate.stage import SUMMARY, report_evaluation, score_student

__all__ = [
    "SUMMARY",
    "Agreement",
    "Answer",
    "AnswerSet",
    "AnswerSettings",
    "EvaluationSet",
    "Leak",
    "LeakReport",
    "Sampling",
    "agreement_table",
    "check_datasets",
    "evaluation_sets",
    "find_leaks",
    "generate",
    "identity",
    "pick_backend",
    "report_evaluation",
    "require_lm_eval",
    "score_student",
    "teacher_agreement",
]
