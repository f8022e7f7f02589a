"""Scores that settle arguments: bits per byte, answers and their ROUGE, intervals, leaks, comparisons, reports.

Names are loaded when they are first used, so that a comparison of finished runs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sra_core.evaluation.agreement import Agreement, teacher_agreement
    from sra_core.evaluation.answers import ANSWER_SCHEMA, AnswerSet, read_answers
    from sra_core.evaluation.charts import figures
    from sra_core.evaluation.compare import RunComparison, compare_runs
    from sra_core.evaluation.decisions import Sampling
    from sra_core.evaluation.generation import Answer, generate
    from sra_core.evaluation.intervals import Comparison, Interval, compare_all, detectable_difference, interval, paired
    from sra_core.evaluation.leaks import Leak, LeakReport, find_leaks
    from sra_core.evaluation.likelihood import Likelihood, bits_per_byte, response_likelihood
    from sra_core.evaluation.report import html_report, page_name, report_tables, terminal_report, write_report
    from sra_core.evaluation.results import (
        EvaluatedRun,
        ModelScores,
        agreement_table,
        likelihood_table,
        read_run,
        read_runs,
    )
    from sra_core.evaluation.scores import AnswerCounts, count_answers, rouge_scores
    from sra_core.evaluation.settings import AnswerSettings, pick_backend, require_lm_eval

_HOMES = {
    "agreement": ("Agreement", "teacher_agreement"),
    "answers": ("ANSWER_SCHEMA", "AnswerSet", "read_answers"),
    "charts": ("figures",),
    "compare": ("RunComparison", "compare_runs"),
    "decisions": ("Sampling",),
    "generation": ("Answer", "generate"),
    "intervals": ("Comparison", "Interval", "compare_all", "detectable_difference", "interval", "paired"),
    "leaks": ("Leak", "LeakReport", "find_leaks"),
    "likelihood": ("Likelihood", "bits_per_byte", "response_likelihood"),
    "report": ("html_report", "page_name", "report_tables", "terminal_report", "write_report"),
    "results": ("EvaluatedRun", "ModelScores", "agreement_table", "likelihood_table", "read_run", "read_runs"),
    "scores": ("AnswerCounts", "count_answers", "rouge_scores"),
    "settings": ("AnswerSettings", "pick_backend", "require_lm_eval"),
}

__all__ = [
    "ANSWER_SCHEMA",
    "Agreement",
    "Answer",
    "AnswerCounts",
    "AnswerSet",
    "AnswerSettings",
    "Comparison",
    "EvaluatedRun",
    "Interval",
    "Leak",
    "LeakReport",
    "Likelihood",
    "ModelScores",
    "RunComparison",
    "Sampling",
    "agreement_table",
    "bits_per_byte",
    "compare_all",
    "compare_runs",
    "count_answers",
    "detectable_difference",
    "figures",
    "find_leaks",
    "generate",
    "html_report",
    "interval",
    "likelihood_table",
    "page_name",
    "paired",
    "pick_backend",
    "read_answers",
    "read_run",
    "read_runs",
    "report_tables",
    "require_lm_eval",
    "response_likelihood",
    "rouge_scores",
    "teacher_agreement",
    "terminal_report",
    "write_report",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
