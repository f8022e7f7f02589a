from .agreement import Agreement, agreement_table, teacher_agreement
from .answers import AnswerSet
from .contenders import Scoring
from .decisions import Sampling
from .generation import Answer, generate
from .leaks import Leak, LeakReport, find_leaks
from .sets import EvaluationSet, check_datasets, evaluation_sets, identity
from .settings import AnswerSettings, pick_backend, require_lm_eval
from .stage import score_student
from .summary import SUMMARY, report_evaluation

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
    "Scoring",
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
