"""`sra compare`: finished results side by side: scores, intervals, tables, page, charts. Nothing here loads torch."""

from sra_core.compare.charts import figures
from sra_core.compare.comparison import RunComparison, compare_runs
from sra_core.compare.find import find_evaluation
from sra_core.compare.intervals import Comparison, Interval, compare_all, detectable_difference, interval, paired
from sra_core.compare.lead import Lead, few_texts, kept_nats, teacher_lead
from sra_core.compare.page import html_report, page_name, report_tables, terminal_report, write_report
from sra_core.compare.results import (
    ANSWER_SCHEMA,
    EvaluatedRun,
    ModelScores,
    all_references,
    read_answers,
    read_run,
    read_runs,
)
from sra_core.compare.rouge import SCORING, AnswerCounts, answer_scores, count_answers, rouge_scores
from sra_core.compare.track import track_comparison
from sra_core.compare.words import split_words

__all__ = [
    "ANSWER_SCHEMA",
    "SCORING",
    "AnswerCounts",
    "Comparison",
    "EvaluatedRun",
    "Interval",
    "Lead",
    "ModelScores",
    "RunComparison",
    "all_references",
    "answer_scores",
    "compare_all",
    "compare_runs",
    "count_answers",
    "detectable_difference",
    "few_texts",
    "figures",
    "find_evaluation",
    "html_report",
    "interval",
    "kept_nats",
    "page_name",
    "paired",
    "read_answers",
    "read_run",
    "read_runs",
    "report_tables",
    "rouge_scores",
    "split_words",
    "teacher_lead",
    "terminal_report",
    "track_comparison",
    "write_report",
]
