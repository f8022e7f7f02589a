"""Scores that settle arguments: bits per byte, answers and their ROUGE, intervals, leaks, comparisons.

Names are loaded when they are first used, so that a comparison of finished runs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sra_core.evaluation.decisions import Sampling
    from sra_core.evaluation.generation import Answer, generate
    from sra_core.evaluation.intervals import Comparison, Interval, compare_all, detectable_difference, interval, paired
    from sra_core.evaluation.likelihood import Likelihood, bits_per_byte, response_likelihood
    from sra_core.evaluation.scores import AnswerCounts, count_answers, rouge_scores

__all__ = [
    "Answer",
    "AnswerCounts",
    "Comparison",
    "Interval",
    "Likelihood",
    "Sampling",
    "bits_per_byte",
    "compare_all",
    "count_answers",
    "detectable_difference",
    "generate",
    "interval",
    "paired",
    "response_likelihood",
    "rouge_scores",
]

_HOMES = {
    "decisions": ("Sampling",),
    "generation": ("Answer", "generate"),
    "intervals": ("Comparison", "Interval", "compare_all", "detectable_difference", "interval", "paired"),
    "likelihood": ("Likelihood", "bits_per_byte", "response_likelihood"),
    "scores": ("AnswerCounts", "count_answers", "rouge_scores"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
