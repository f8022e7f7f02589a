"""ROUGE-1, ROUGE-2 and ROUGE-L F1 with the rouge-score package, stemmer on (paper section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["ROUGE_TYPES", "AnswerCounts", "count_answers", "rouge_scores"]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """What the averages are made of; nothing in here was dropped.

    Attributes:
        answers: All answers.
        empty: Answers without a character that is not white space; they score 0.
        unfinished: Answers cut at the token limit; they are scored as they are.
        unscorable: References without a letter a-z or a digit, which ROUGE's tokenizer turns into nothing: any
            answer to them scores 0.
    """

    answers: int
    empty: int
    unfinished: int
    unscorable: int


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


def rouge_scores(references: Sequence[str | Sequence[str]], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of each answer against its reference, or against the best of several.

    Returns:
        ``rouge1``, ``rouge2`` and ``rougeL``, each (E,) float64 between 0 and 1, in the order given. An empty answer
        scores 0 and stays in.

    Raises:
        ValueError: The two sequences differ in length.
    """
    rows = [
        _scorer().score_multi(targets=[reference] if isinstance(reference, str) else reference, prediction=answer)
        for reference, answer in zip(references, answers, strict=True)
    ]
    return {name: np.array([row[name].fmeasure for row in rows], dtype=np.float64) for name in ROUGE_TYPES}


def count_answers(references: Sequence[str], answers: Sequence[str], finish_reasons: Sequence[str]) -> AnswerCounts:
    """Count the answers that pull an average down without being wrong in an ordinary way."""
    return AnswerCounts(
        answers=len(answers),
        empty=sum(not answer.strip() for answer in answers),
        unfinished=sum(reason == "length" for reason in finish_reasons),
        unscorable=sum(not _has_words(reference) for reference in references),
    )


def _has_words(text: str) -> bool:
    return any(character.isascii() and character.isalnum() for character in text.lower())
